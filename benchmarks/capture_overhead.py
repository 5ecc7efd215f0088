"""What capturing adds to a forward of the model: ratios within one interleaved run.

Small random models, batch 1, 128 tokens (swin: an image of 224 x 224), eval mode without gradients:

* ``plain``: the model as it comes;
* ``capture``: ``AttentionExtractor(model).get_attention(...)``, an extractor made anew each time,
  default options, fidelity and count gates on. Where a kernel shows no weights, these are made
  when they are read, and nobody reads them here;
* ``capture and read``: the same, and every map is read once, so that all are made;
* ``empty mode``: the model as it comes, under a `TorchFunctionMode` that passes every function on:
  what it takes at least to see early imports and softmaxes spelled out, whatever is done with them.

The four take turns in an order that changes, and a ratio is taken within a round; told is the
median of all rounds, of wall time and of the process's time on the CPU, which a busy machine
disturbs less. The target is 1.05 for models that go through transformers' attention interface or
call a fused kernel, and 1.10 for those that compute a softmax of their own.

    python -m benchmarks.capture_overhead [--quick] [--rounds 60] [--threads 1] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attncheck import AttentionExtractor
from benchmarks._measure import write_results

LENGTH, VOCABULARY = 128, 1000
TARGETS: Final = {"interface": 1.05, "own softmax": 1.10}


class PassingOn(TorchFunctionMode):
    """Calls every function, and does nothing else."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


class OwnSoftmax(nn.Module):
    """A pre-norm decoder block that spells its attention out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.projections, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        split = self.projections(self.norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        x = x + self.out((weights @ value).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


def by_hand(layers: int, width: int) -> nn.Module:
    blocks = (OwnSoftmax(width, width // 64) for _ in range(layers))
    return nn.Sequential(nn.Embedding(VOCABULARY, width), *blocks)


def hugging_face(name: str, **sizes: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{name}Config")(**sizes)
    model: nn.Module = getattr(transformers, f"{name}Model")(config)
    return model


def gpt2(layers: int, width: int) -> nn.Module:
    ends = {"bos_token_id": 0, "eos_token_id": 0, "use_cache": False, "vocab_size": VOCABULARY}
    sizes = {"n_layer": layers, "n_head": width // 64, "n_embd": width, "n_positions": LENGTH}
    return hugging_face("GPT2", **sizes, **ends)


def xlnet(layers: int, width: int) -> nn.Module:
    sizes = {"n_layer": layers, "n_head": width // 64, "d_model": width, "d_inner": 4 * width}
    return hugging_face("XLNet", **sizes, vocab_size=VOCABULARY)


def bloom(layers: int, width: int) -> nn.Module:
    sizes = {"n_layer": layers, "n_head": width // 64, "hidden_size": width}
    return hugging_face("Bloom", **sizes, vocab_size=VOCABULARY, use_cache=False)


def common(name: str, layers: int, width: int, **more: Any) -> nn.Module:
    return hugging_face(
        name,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        **more,
    )


def text() -> dict[str, Any]:
    return {"input_ids": torch.randint(0, VOCABULARY, (1, LENGTH))}


def image() -> dict[str, Any]:
    return {"pixel_values": torch.randn(1, 3, 224, 224)}


bert = partial(common, "Bert", vocab_size=VOCABULARY)
llama = partial(common, "Llama", vocab_size=VOCABULARY, num_key_value_heads=2, use_cache=False)

MODELS: Final[Mapping[str, tuple[str, Callable[[], nn.Module]]]] = {
    "gpt2 12 x 768": ("interface", lambda: gpt2(12, 768)),
    "bert 12 x 768": ("interface", lambda: bert(12, 768)),
    "gpt2 6 x 384": ("interface", lambda: gpt2(6, 384)),
    "bert 6 x 384": ("interface", lambda: bert(6, 384)),
    "llama 6 x 384": ("interface", lambda: llama(6, 384)),
    "bloom 12 x 768": ("own softmax", lambda: bloom(12, 768)),
    "by hand 12 x 768": ("own softmax", lambda: by_hand(12, 768)),
    "bloom 6 x 384": ("own softmax", lambda: bloom(6, 384)),
    "xlnet 6 x 384": ("own softmax", lambda: xlnet(6, 384)),
    "swin tiny, 224 x 224": ("interface", lambda: hugging_face("Swin")),
}


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Measure one model."""
    kind, make = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    inputs = image() if "swin" in name else text()
    call = partial(model, *inputs.values()) if "hand" in name else partial(model, **inputs)

    def plain() -> None:
        with torch.no_grad():
            call()

    def empty_mode() -> None:
        with torch.no_grad(), PassingOn():
            call()

    def capture() -> Any:
        return AttentionExtractor(model).get_attention(*call.args, **call.keywords)

    def capture_and_read() -> None:
        list(capture())

    ways = {
        "plain": plain,
        "capture": capture,
        "capture and read": capture_and_read,
        "empty mode": empty_mode,
    }
    layers = len(capture())
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    order = list(ways)
    for number in range(rounds + 2):
        random.shuffle(order)
        for way in order:
            wall, cpu = time.perf_counter(), time.process_time()
            ways[way]()
            spent = time.perf_counter() - wall, time.process_time() - cpu
            if number > 1:
                times[way].append(spent)
    row: dict[str, Any] = {
        "kind": kind,
        "layers": layers,
        "target": TARGETS[kind],
        "plain_ms": 1e3 * statistics.median(wall for wall, _ in times["plain"]),
    }
    for way in list(ways)[1:]:
        pairs = list(zip(times[way], times["plain"], strict=True))
        ratios = {
            "wall": sorted(own[0] / other[0] for own, other in pairs),
            "cpu": sorted(own[1] / other[1] for own, other in pairs),
        }
        row[way] = {
            clock: {
                "median": statistics.median(found),
                "middle_half": [found[len(found) // 4], found[3 * len(found) // 4]],
            }
            for clock, found in ratios.items()
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one model, few rounds, no file")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--only", nargs="+", choices=MODELS, help="these models, no file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    random.seed(0)
    names = ["gpt2 6 x 384"] if options.quick else options.only or list(MODELS)
    rows = {}
    columns = "".join(f"{way:>9}{'cpu':>7}" for way in ("capture", "read", "mode"))
    print(f"{'by the plain forward':18}{'plain':>12}{columns}")
    for name in names:
        rows[name] = row = measure(name, 5 if options.quick else options.rounds)
        ratios = [row[way][clock]["median"] for way in list(row)[4:] for clock in ("wall", "cpu")]
        shown = "".join(f"{ratio:8.3f}" for ratio in ratios)
        print(f"{name:20}{row['plain_ms']:8.1f} ms{shown}   target {row['target']}", flush=True)
    if not options.quick and not options.only:
        found = {"length": LENGTH, "threads": options.threads, "rounds": options.rounds}
        print(f"written to {write_results('capture_overhead', {**found, 'models': rows})}")


if __name__ == "__main__":
    main()
