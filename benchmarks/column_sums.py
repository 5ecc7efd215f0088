"""Column sums of attention, how much each key gets from all queries, without the matrix.

One causal layer, heads of 64. Ways, each ``(batch, head, key)``:

* ``attention``: one call of ``scaled_dot_product_attention``, which all others are compared to;
* ``dense``: softmax of all scores, summed;
* ``stock kernels``: two calls of kernels that torch ships. The first gives the log-sum-exp of each
  row; the second has keys as queries, ``-lse`` as a bias, and its own log-sum-exp is the logarithm
  of the column sums. On a CPU the bias travels as one more dimension of the flash kernel; on CUDA
  ``flex_attention``, compiled, adds it, so that half precision loses nothing;
* ``attncheck column sums``: `attncheck.evaluate.column_sums`;
* ``attncheck profile``: every measure of the layer, column sums among them;
* ``flash-colreduce``: on CUDA, where that package is installed.

    python -m benchmarks.column_sums [--quick] [--device cuda] [--lengths 1024 8192]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from statistics import median
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck.attention import LayerAttention, QueryKey
from attncheck.capture.memory import free_memory
from attncheck.evaluate import column_sums, profile_layer
from benchmarks._measure import (
    cuda_available,
    interleave,
    median_ratio,
    peak_memory,
    result_name,
    write_results,
)

HEADS, SIZE = 12, 64
SCALE: Final = SIZE**-0.5
ATTENTION: Final = "attention"


def attend(query: Tensor, key: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, key, is_causal=True)


def dense(query: Tensor, key: Tensor) -> Tensor:
    n = query.shape[2]
    future = torch.full((n, n), -torch.inf, device=query.device).triu(1)
    scores = (query @ key.transpose(-1, -2)).float() * SCALE + future
    return torch.softmax(scores, -1).sum(2)


def stock_on_cpu(query: Tensor, key: Tensor) -> Tensor:
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    lse = kernel(query, key, key, is_causal=True, scale=SCALE)[1]
    # Both sequences backwards: then a key sees the queries behind it by the same causal mask.
    one = torch.ones_like(lse)[..., None]
    seeing = torch.cat([key, one], -1).flip(2)
    seen = torch.cat([query, -lse[..., None] / SCALE], -1).flip(2)
    return kernel(seeing, seen, seen, is_causal=True, scale=SCALE)[1].exp().flip(2)


def stock_on_cuda(query: Tensor, key: Tensor) -> Tensor:
    kernel = torch.ops.aten._scaled_dot_product_flash_attention
    lse = kernel(query, key, key, is_causal=True, scale=SCALE)[1]
    return by_flex(compiled_flex(), query, key, lse)


def by_flex(flex: Any, query: Tensor, key: Tensor, lse: Tensor) -> Tensor:
    """Column sums from the log-sum-exp of each row, ``(batch, head, query)``."""

    def minus_lse(score: Tensor, batch: Tensor, head: Tensor, _: Tensor, row: Tensor) -> Tensor:
        return score - lse[batch, head, row]

    mask = later_queries(query.shape[2], str(query.device))
    options: dict[str, Any] = {"scale": SCALE, "return_lse": True}
    return flex(key, query, query, minus_lse, mask, **options)[1].exp()


@cache
def compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@cache
def later_queries(n: int, device: str) -> Any:
    """The mask by which a key sees the queries from its own on."""
    from torch.nn.attention.flex_attention import create_block_mask

    def later(_: Tensor, __: Tensor, key: Tensor, query: Tensor) -> Tensor:
        return query >= key

    return create_block_mask(later, None, None, n, n, device=device)


def layer_of(query: Tensor, key: Tensor) -> LayerAttention:
    record = QueryKey(query, key, tuple(range(HEADS)), SCALE, causal=True)
    return LayerAttention(record, kind="self", causal=True)


def own(query: Tensor, key: Tensor) -> Tensor:
    return column_sums(layer_of(query, key))


def profile(query: Tensor, key: Tensor) -> object:
    return profile_layer(layer_of(query, key))


def ways(device: str) -> dict[str, Callable[[Tensor, Tensor], object]]:
    """What can run on a device; says what cannot."""
    found: dict[str, Callable[[Tensor, Tensor], object]] = {ATTENTION: attend, "dense": dense}
    if device == "cpu":
        found["stock kernels"] = stock_on_cpu
    elif device.startswith("cuda"):
        found["stock kernels"] = stock_on_cuda
    found["attncheck column sums"] = own
    found["attncheck profile"] = profile
    if not device.startswith("cuda"):
        print("flash-colreduce: left out, runs on CUDA only")
    elif find_spec("flash_colreduce") is None:
        print("flash-colreduce: left out, not installed (pip install flash-colreduce)")
    else:
        from flash_colreduce import flash_colreduce

        found["flash-colreduce"] = partial(flash_colreduce, is_causal=True, reduction="sum")
    return found


def measure(n: int, rounds: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Time, memory and error of each way at one length; what does not fit or fails is told."""
    torch.manual_seed(0)
    query, key = (torch.randn(1, HEADS, n, SIZE, device=device, dtype=dtype) for _ in range(2))
    free = free_memory(torch.device(device))
    fits = free is None or 3 * 4 * HEADS * n * n < free
    left_out = {} if fits else {"dense": "its matrix does not fit"}
    calls: dict[str, Callable[[], Any]] = {}
    results: dict[str, Any] = {}
    for name, way in ways(device).items():
        if name in left_out:
            continue
        try:
            results[name] = way(query, key)
        except Exception as error:
            left_out[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        else:
            calls[name] = partial(way, query, key)
    want = results.get("dense")
    sums = {name: out for name, out in results.items() if isinstance(out, Tensor) and out.ndim == 3}
    errors = {} if want is None else {n: float((s - want).abs().max()) for n, s in sums.items()}
    del results, sums, want
    times = interleave(calls, rounds, device)
    found = {
        name: {
            "ratio": median_ratio(times, name, ATTENTION),
            "seconds": median(times[name]),
            "peak bytes": peak_memory(calls[name], device),
            "largest error by dense": errors.get(name),
        }
        for name in calls
    }
    return {"ways": found, "left out": left_out}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short length, no file")
    parser.add_argument("--device", default="cuda" if cuda_available() else "cpu")
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cpu = options.device == "cpu"
    dtype = torch.float32 if cpu else torch.bfloat16
    lengths = options.lengths or ([1024, 2048] if cpu else [2048, 8192, 32768, 131072])
    data: dict[str, Any] = {
        "device": options.device,
        "dtype": str(dtype),
        "rounds": options.rounds,
        "lengths": {},
    }
    with torch.inference_mode():
        for n in [256] if options.quick else lengths:
            data["lengths"][str(n)] = measure(n, options.rounds, options.device, dtype)
            for name, found in data["lengths"][str(n)]["ways"].items():
                error = found["largest error by dense"]
                print(
                    f"{n:7}  {name:22}{1e3 * found['seconds']:10.2f} ms{found['ratio']:8.2f} x"
                    + ("" if error is None else f"   error {error:.1e}"),
                    flush=True,
                )
            for name, why in data["lengths"][str(n)]["left out"].items():
                print(f"{n:7}  {name:22}left out: {why}")
            if not options.quick:
                write_results(result_name("column_sums", options.device), data)


if __name__ == "__main__":
    main()
