"""What a profile from query and key costs, as a ratio to the attention it is about.

* ``layer``: one layer of 12 heads of 64, float32 (bfloat16 on a GPU): `profile_layer` against one
  call of ``scaled_dot_product_attention`` with the same mask; causal, with tokens, with grouped
  keys (4 key-value heads), with left padding, with a window of 256. A mask keeps it off its causal
  fast path, so that its ratio is smaller.
* ``model``: `profile_model` against the plain forward of a random model of GPT-2-small's shape,
  and the peak of the allocator in an untimed call of each.

    python -m benchmarks.profile_without_matrix layer|model [--quick] [--lengths 2048 8192]

It runs on a GPU where there is one, whose results stand in a file of their own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck.attention import LayerAttention, QueryKey
from attncheck.benchmark import PLAIN, ways_of
from attncheck.evaluate import profile_layer
from benchmarks._measure import (
    cuda_available,
    interleave,
    median_ratio,
    peak_memory,
    result_name,
    write_results,
)
from benchmarks.extraction import build

HEADS, SIZE, WINDOW = 12, 64, 256
NAME: Final = "profile_without_matrix_"


MASKED: Final = 1 << 14
"""Longest sequence whose mask is written out, position by position."""


def layer_ways(n: int, device: str = "cpu") -> dict[str, Callable[[], object]]:
    """Name both sides of every comparison: the attention, and its profile."""
    torch.manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    query, key, value = (
        torch.randn(1, HEADS, n, SIZE, device=device, dtype=dtype) for _ in range(3)
    )
    tokens = torch.randint(0, 1000, (n,)).tolist()
    found: dict[str, Callable[[], object]] = {}

    def add(name: str, shared: int, mask: Tensor | None, given: Any = None) -> None:
        group = HEADS // shared
        reads = tuple(head // group for head in range(HEADS))
        record = QueryKey(query, key[:, :shared], reads, SIZE**-0.5, mask=mask, causal=mask is None)
        layer = LayerAttention(record, kind="self", mask=mask, causal=True)

        def attend() -> object:
            return F.scaled_dot_product_attention(
                query,
                key[:, :shared],
                value[:, :shared],
                attn_mask=mask,
                is_causal=mask is None,
                enable_gqa=group > 1,
            )

        found[f"sdpa {name}"] = attend
        found[f"profile {name}"] = lambda: profile_layer(layer, given)

    add("causal", HEADS, None)
    add("causal, tokens", HEADS, None, tokens)
    add("grouped keys", 4, None)
    if n <= MASKED:
        place = torch.arange(n, device=device)
        behind = place[:, None] - place
        causal = behind >= 0
        add("padding", HEADS, (causal & (place >= n // 8))[None, None])
        add("window", HEADS, (causal & (behind < WINDOW))[None, None])
    return found


def measure_layer(n: int, rounds: int, device: str) -> dict[str, Any]:
    """Time every pair in turn."""
    times = interleave(layer_ways(n, device), rounds, device)
    names = [name.removeprefix("profile ") for name in times if name.startswith("profile")]
    return {
        name: {
            "ratio": median_ratio(times, f"profile {name}", f"sdpa {name}"),
            "sdpa seconds": median(times[f"sdpa {name}"]),
        }
        for name in names
    }


def measure_model(n: int, rounds: int, device: str) -> dict[str, Any]:
    """Time and memory of the plain forward and of the profile."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model, ids = build(n, device, dtype=dtype)
    found, _ = ways_of(model)

    def calls(name: str) -> Callable[[], object]:
        return lambda: found[name].run((ids,), {})

    names = (PLAIN, "profile")
    times = interleave({name: calls(name) for name in names}, rounds, device)
    return {
        "ratio": median_ratio(times, "profile", PLAIN),
        "plain seconds": median(times[PLAIN]),
        "peak bytes": {name: peak_memory(calls(name), device) for name in names},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["layer", "model"])
    parser.add_argument("--quick", action="store_true", help="one short length, no file")
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    parser.add_argument("--device", default="cuda" if cuda_available() else "cpu")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    on_gpu = options.device != "cpu"
    lengths = options.lengths or ([8192, 32768, 131072] if on_gpu else [2048, 8192])
    if options.quick:
        lengths = [128]
    measure = measure_layer if options.part == "layer" else measure_model
    results = {}
    for n in lengths:
        results[str(n)] = measure(n, 3 if options.quick else options.rounds, options.device)
        for name, found in results[str(n)].items():
            print(f"n = {n:5}  {name:16} {found}", flush=True)
    if not options.quick:
        print(write_results(result_name(NAME + options.part, options.device), {"lengths": results}))


if __name__ == "__main__":
    main()
