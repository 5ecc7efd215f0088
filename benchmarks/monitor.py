"""What watching the heads costs a training: steps without, attached but idle, and sampled.

One model is trained; its steps are timed in turn, in a random order, with no monitor, with one that
does not sample, and with one that samples this step. The overhead of sampling every 50 steps is
``(49 * idle + sampled) / (50 * without) - 1``, of medians within rounds. More than 2 % on a model
of ordinary shape makes the exit code 1; the shipped recipe, of 5 ms steps, is told but not judged.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck import HeadMonitor
from benchmarks._measure import cuda_available, interleave, write_results

ROOT = Path(__file__).parent.parent
EVERY: Final = 50
LIMIT: Final = 0.02


@dataclass(frozen=True)
class Shape:
    """A training: sizes of the model and of its batch."""

    width: int
    heads: int
    layers: int
    length: int
    batch: int
    mlp: bool = True
    judged: bool = True
    rounds: int = 8


SHAPES: Final = {
    "shipped recipe": Shape(32, 2, 2, 32, 64, mlp=False, judged=False, rounds=80),
    "small": Shape(256, 4, 4, 128, 8, rounds=16),
    "GPT-2 width": Shape(768, 12, 2, 256, 4, rounds=6),
}
ON_CUDA: Final = {
    "GPT-2 small": Shape(768, 12, 12, 1024, 8, rounds=30),
    "GPT-2 medium": Shape(1024, 16, 24, 1024, 4, rounds=20),
}


class Block(nn.Module):
    """A causal transformer layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.with_mlp = shape.mlp

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens: ``(batch, token, width)`` in and out."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.first(x)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        return x + self.mlp(self.second(x)) if self.with_mlp else x


class Language(nn.Module):
    """Embedding, layers, and a small vocabulary."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed = nn.Embedding(512, shape.width)
        self.blocks = nn.Sequential(*(Block(shape) for _ in range(shape.layers)))
        self.head = nn.Linear(shape.width, 512, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Predict the next token."""
        logits: Tensor = self.head(self.blocks(self.embed(ids)))
        return logits


def measure(shape: Shape, device: str) -> dict[str, Any]:
    """Time the three kinds of step."""
    torch.manual_seed(0)
    model = Language(shape).to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(0, 512, (shape.batch, shape.length + 1), device=device)
    monitor = HeadMonitor(model, every=EVERY, on_alert="ignore")
    sampled = iter(range(0, 10**9, EVERY))

    def step() -> None:
        logits = model(ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    def watched(number: int) -> None:
        monitor.attach()
        monitor.step(number)
        step()
        monitor.detach()

    times = interleave(
        {
            "without": step,
            "idle": lambda: watched(1),
            "sampled": lambda: watched(next(sampled)),
        },
        shape.rounds,
        device,
    )
    assert len(monitor.history) == shape.rounds + 1
    rows = zip(times["without"], times["idle"], times["sampled"], strict=True)
    overhead = [((EVERY - 1) * idle + one) / (EVERY * plain) - 1 for plain, idle, one in rows]
    medians = {f"{name}_ms": 1e3 * statistics.median(held) for name, held in times.items()}
    extra = medians["sampled_ms"] - medians["without_ms"]
    return {
        **medians,
        # Of medians: single rounds of a shared machine scatter by more than the limit.
        "sample_overhead": extra / (EVERY * medians["without_ms"]),
        "overhead": ((EVERY - 1) * medians["idle_ms"] + medians["sampled_ms"])
        / (EVERY * medians["without_ms"])
        - 1,
        "overhead_of_rounds": sorted(overhead),
        "heads": shape.heads * shape.layers,
        "shape": vars(shape),
    }


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write; return 1 if a judged training pays more than the limit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.monitor", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave out the widest model")
    quick = parser.parse_args(argv).quick
    device = "cuda" if cuda_available() else "cpu"
    shapes = {**SHAPES, **(ON_CUDA if device == "cuda" else {})}
    if quick:
        shapes.pop("GPT-2 width")
    print(f"{'training':16} {'without':>9} {'idle':>9} {'sampled':>9}  every {EVERY} steps")
    rows = {}
    for name, shape in shapes.items():
        row = rows[name] = measure(shape, device)
        print(
            f"{name:16}"
            + "".join(f" {row[f'{kind}_ms']:6.1f} ms" for kind in ("without", "idle", "sampled"))
            + f"  {row['overhead']:+.2%}, of which samples {row['sample_overhead']:+.2%}"
        )
    met = all(row["sample_overhead"] < LIMIT for name, row in rows.items() if shapes[name].judged)
    suffix = "_cuda" if device == "cuda" else ""
    path = write_results(
        f"monitor{suffix}", {"met": met, "every": EVERY, "limit": LIMIT, "trainings": rows}
    )
    print(f"written to {path.relative_to(ROOT)}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
