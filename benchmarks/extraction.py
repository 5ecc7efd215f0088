"""What capturing attention costs, as a ratio to the plain forward of the same model.

A random model of GPT-2-small's shape (12 layers, 12 heads, width 768, vocabulary 1000), batch 1:

* ``plain``: the forward, under sdpa;
* ``capture``: the same, all layers captured to the device;
* ``capture last layer``: the same, one layer of twelve;
* ``capture eager``: the model set to eager, captured;
* ``eager output_attentions``: the weights as transformers gives them;
* ``profile_model``: every measure of every head, one layer's weights at a time;
* ``profile of maps``: the same measures from captured maps.

Without transformers a pure-torch model of the same shape stands in, and the two eager rows are
left out. Memory on a CPU is the rise of the peak resident size of a fresh process that makes one
call after a short warm-up; on CUDA it is the allocator's peak in an untimed round.

    python -m benchmarks.extraction [--quick] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck import AttentionExtractor, profile_attention, profile_model
from benchmarks._measure import (
    cuda_available,
    interleave,
    machine,
    median_ratio,
    peak_memory,
    write_results,
)

LAYERS, HEADS, WIDTH, VOCABULARY = 12, 12, 768, 1000
HAS_TRANSFORMERS = find_spec("transformers") is not None


class Block(nn.Module):
    """A pre-norm decoder block on `scaled_dot_product_attention`."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.projections, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        split = self.projections(self.norm(x)).view(*x.shape[:2], 3, HEADS, WIDTH // HEADS)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def build(length: int, device: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    ids = torch.randint(0, VOCABULARY, (1, length), device=device)
    if not HAS_TRANSFORMERS:
        blocks = (Block() for _ in range(LAYERS))
        return nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), *blocks).eval().to(device), ids
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(
        n_layer=LAYERS,
        n_head=HEADS,
        n_embd=WIDTH,
        vocab_size=VOCABULARY,
        n_positions=max(length, 64),
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return GPT2Model(config).eval().to(device), ids


def ways(model: nn.Module, ids: Tensor) -> dict[str, Callable[[], object]]:
    """Name every way; each leaves the model in the backend it sets itself."""

    def under(backend: str, run: Callable[[], object]) -> Callable[[], object]:
        def call() -> object:
            if HAS_TRANSFORMERS:
                model.set_attn_implementation(backend)  # type: ignore[operator]
            with torch.no_grad():
                return run()

        return call

    everything = AttentionExtractor(model, device=None)
    last = AttentionExtractor(model, layers=[LAYERS - 1], device=None)
    found = {
        "plain": under("sdpa", lambda: model(ids)),
        "capture": under("sdpa", lambda: everything.get_attention(ids)),
        "capture last layer": under("sdpa", lambda: last.get_attention(ids)),
        "profile_model": under("sdpa", lambda: profile_model(model, ids)),
        "profile of maps": under("sdpa", lambda: profile_attention(everything.get_attention(ids))),
    }
    if HAS_TRANSFORMERS:
        found["eager output_attentions"] = under(
            "eager", lambda: model(ids, output_attentions=True)
        )
        found["capture eager"] = under("eager", lambda: everything.get_attention(ids))
    return found


def peak_of(name: str, length: int, device: str) -> int:
    """Bytes beyond what the model holds: on a CPU from a fresh process, see the module."""
    if device != "cpu":
        model, ids = build(length, device)
        return peak_memory(ways(model, ids)[name], device)
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.extraction", "--peak", name, "--lengths", str(length)],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(json.loads(ran.stdout.splitlines()[-1]))


def own_peak(name: str, length: int) -> int:
    """Rise of this process's peak resident size over one call, after a warm-up of 64 tokens."""
    model, ids = build(length, "cpu")
    ways(model, ids[:, :64])[name]()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _status("VmRSS")
    ways(model, ids)[name]()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(length: int, rounds: int, device: str, *, memory: bool) -> dict[str, Any]:
    model, ids = build(length, device)
    functions = ways(model, ids)
    times = interleave(functions, rounds, device)
    ratios = {name: median_ratio(times, name, "plain") for name in functions}
    plain = sorted(times["plain"])[len(times["plain"]) // 2]
    result: dict[str, Any] = {"plain seconds": plain, "time ratio": ratios}
    if memory:
        result["peak bytes"] = {name: peak_of(name, length, device) for name in functions}
    return result


def show(length: int, result: dict[str, Any]) -> None:
    print(f"\nn = {length}: plain forward {1e3 * result['plain seconds']:.0f} ms")
    for name, ratio in result["time ratio"].items():
        peak = result.get("peak bytes", {}).get(name)
        print(f"  {name:26}{ratio:6.2f} x" + ("" if peak is None else f"{peak / 2**20:9.0f} MiB"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short length, time only, no file")
    parser.add_argument("--device", default="cuda" if cuda_available() else "cpu")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print(own_peak(options.peak, options.lengths[0]))
        return
    lengths = [64] if options.quick else options.lengths
    readable = options.device != "cpu" or Path("/proc/self/clear_refs").exists()
    memory = readable and not options.quick
    results = {}
    for length in lengths:
        rounds = 3 if options.quick else options.rounds
        results[str(length)] = measure(length, rounds, options.device, memory=memory)
        show(length, results[str(length)])
    print(f"\nmachine: {json.dumps(machine())}")
    if not options.quick:
        name = "extraction" if options.device == "cpu" else f"extraction_{options.device}"
        model = "transformers GPT2Model" if HAS_TRANSFORMERS else "pure torch"
        data = {"device": options.device, "model": model, "lengths": results}
        print(f"written to {write_results(name, data)}")


if __name__ == "__main__":
    main()
