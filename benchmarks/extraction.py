"""What each way of getting at the attention costs, as a ratio to the plain forward of the model.

Two random models, batch 1: ``gpt2`` (GPT-2 small's shape: 12 layers, 12 heads, width 768) and
``llama`` (8 layers, width 1024, 16 query heads over 4 key-value heads), vocabulary 1000. Ways:

* ``plain forward``: the model as it comes, under sdpa; all others are compared to it;
* ``eager output_attentions``: the weights as transformers gives them;
* ``naive hooks``: eager, a forward hook on every module with attention in its name, which copies
  what looks like weights to the CPU;
* ``TransformerLens``: ``run_with_cache`` of all patterns, of a model of the same shape, where that
  package is installed;
* ``capture``: all maps, under sdpa;
* ``profile of maps``: every measure of every head, from captured maps;
* ``profile``: the same without any map.

They take turns, at least 5 rounds; memory is the allocator's peak in an untimed call. Results of
one model and length replace those in the file, so that they may be measured in pieces.

    python -m benchmarks.extraction [--quick] [--device cuda] [--models gpt2] [--lengths 128 512]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck import AttentionExtractor, profile_attention
from attncheck.benchmark import Cost, CostTable, Way, measure_costs, ways_of
from attncheck.capture.memory import free_memory
from attncheck.plot import plot_costs
from benchmarks._measure import RESULTS, cuda_available, write_results

LAYERS, HEADS, WIDTH, VOCABULARY = 12, 12, 768, 1000
HAS_TRANSFORMERS = find_spec("transformers") is not None
PICTURES = Path(__file__).parent.parent / "docs" / "img"


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


def gpt2(longest: int) -> nn.Module:
    """GPT-2 small's shape; without transformers a pure-torch model of it."""
    if not HAS_TRANSFORMERS:
        blocks = (Block() for _ in range(LAYERS))
        return nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), *blocks)
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(
        n_layer=LAYERS,
        n_head=HEADS,
        n_embd=WIDTH,
        vocab_size=VOCABULARY,
        n_positions=max(longest, 64),
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return GPT2Model(config)


def llama(longest: int) -> nn.Module:
    """A Llama with grouped queries."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        num_hidden_layers=8,
        hidden_size=1024,
        intermediate_size=2816,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=max(longest, 64),
        use_cache=False,
    )
    return LlamaModel(config)


MODELS: Final[Mapping[str, Callable[[int], nn.Module]]] = {"gpt2": gpt2, "llama": llama}


def ids_of(length: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, VOCABULARY, (1, length), generator=generator).to(device)


def build(length: int, device: str, name: str = "gpt2") -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return MODELS[name](length).eval().to(device), ids_of(length, device)


def every_way(model: nn.Module, name: str) -> dict[str, Way]:
    """The ways of the package, and the others that people use."""
    found, _ = ways_of(model)
    extractor = AttentionExtractor(model, device=None)
    restore = found["profile"].prepare

    def from_maps(args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
        return profile_attention(list(extractor.get_attention(*args, **kwargs)))

    more = [Way("profile of maps", from_maps, restore, holds_maps=True)]
    if "eager output_attentions" in found:
        eager = found["eager output_attentions"].prepare
        more.append(Way("naive hooks", partial(naive_hooks, model), eager, holds_maps=True))
    if name == "gpt2" and find_spec("transformer_lens"):
        more.append(Way("TransformerLens", transformer_lens(model), restore, holds_maps=True))
    return found | {way.name: way for way in more}


def naive_hooks(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Hook whatever is named like attention, and hope."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else output
        if isinstance(weights, Tensor):
            kept.append(weights.detach().cpu())

    hooks = [m.register_forward_hook(keep) for n, m in model.named_modules() if "att" in n.lower()]
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return kept


def transformer_lens(model: nn.Module) -> Callable[[Sequence[Any], Mapping[str, Any]], object]:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config: Any = model.config
    shape = HookedTransformerConfig(
        n_layers=LAYERS,
        n_heads=HEADS,
        d_model=WIDTH,
        d_head=WIDTH // HEADS,
        n_ctx=config.n_positions,
        d_vocab=VOCABULARY,
        act_fn="gelu_new",
        device=str(next(model.parameters()).device),
    )
    hooked = HookedTransformer(shape).eval()

    def run(args: Sequence[Any], _: Mapping[str, Any]) -> object:
        with torch.no_grad():
            return hooked.run_with_cache(
                args[0], names_filter=lambda hook: hook.endswith("hook_pattern")
            )

    return run


def measure(name: str, lengths: Sequence[int], rounds: int, device: str) -> CostTable:
    """Measure one model."""
    model, _ = build(max(lengths), device, name)
    table = CostTable(f"{name} (random, batch 1)", device, rounds)

    def say(text: str) -> None:
        print(f"\r{name}: {text}".ljust(72), end="", file=sys.stderr, flush=True)

    measure_costs(
        table,
        every_way(model, name),
        lambda n: ((ids_of(n, device),), {}),
        lengths,
        free=partial(free_memory, torch.device(device)),
        say=say,
    )
    print(file=sys.stderr)
    return table


def show(table: CostTable) -> None:
    for cost in table.costs:
        memory = "" if cost.peak_bytes is None else f"{cost.peak_bytes / 1e6:11.1f} MB"
        print(
            f"{cost.length:6}  {cost.way:26}{1e3 * cost.seconds:9.1f} ms{cost.ratio:7.2f} x{memory}"
        )
    for left in table.left_out:
        print(f"{left.length:6}  {left.way:26}left out: {left.reason}")


def merged(file: str, name: str, table: CostTable) -> dict[str, Any]:
    """Put a table into what the file holds."""
    path = RESULTS / f"{file}.json"
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"models": {}}
    rows = {(row["length"], row["way"]): row for row in held["models"].get(name, [])}
    rows |= {(cost.length, cost.way): vars(cost) for cost in table.costs}
    held["models"][name] = [rows[key] for key in sorted(rows, key=lambda key: key[0])]
    return {"device": table.device, "rounds": table.rounds, "models": held["models"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short length, no file")
    parser.add_argument("--device", default="cuda" if cuda_available() else "cpu")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    file = "extraction" if options.device == "cpu" else f"extraction_{options.device}"
    for name in options.models if HAS_TRANSFORMERS else ["gpt2"]:
        lengths = [64] if options.quick else options.lengths
        table = measure(name, lengths, options.rounds, options.device)
        show(table)
        if options.quick:
            continue
        data = merged(file, name, table)
        print(f"written to {write_results(file, data)}")
        costs = [Cost(**row) for row in data["models"][name]]
        whole = CostTable(table.model, table.device, table.rounds, costs)
        plot_costs(whole, save_path=PICTURES / f"{file}_{name}.png")
        if table.interrupted:
            sys.exit(130)


if __name__ == "__main__":
    main()
