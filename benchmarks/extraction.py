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

They take turns, at least 5 rounds; memory is the allocator's peak in an untimed call. A way whose
maps would not fit is left out, with the reason. The file is written after each length, and results
of one model and length replace those in it, so that a run may be cut off, or done in pieces;
``--resume`` skips what the file holds from the same commit, torch and number of threads.

    python -m benchmarks.extraction [--quick] [--resume] [--device cuda] [--models gpt2]
        [--lengths 128 512] [--dtype bfloat16]
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
from benchmarks._measure import RESULTS, cuda_available, machine, result_name, write_results

LAYERS, HEADS, WIDTH, VOCABULARY = 12, 12, 768, 1000
HAS_TRANSFORMERS = find_spec("transformers") is not None
FIRST = 512
"""Measured first where nothing shorter is known: it foretells what longer maps take."""
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


def build(
    length: int, device: str, name: str = "gpt2", dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return MODELS[name](length).eval().to(device, dtype), ids_of(length, device)


def every_way(model: nn.Module, name: str, longest: int) -> dict[str, Way]:
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
        lens = transformer_lens(next(model.parameters()), longest)
        more.append(Way("TransformerLens", lens, restore, holds_maps=True))
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


def transformer_lens(
    like: Tensor, longest: int
) -> Callable[[Sequence[Any], Mapping[str, Any]], object]:
    """Run a model of the same shape, device and dtype, made when it is first called."""
    made: list[Any] = []

    def run(args: Sequence[Any], _: Mapping[str, Any]) -> object:
        if not made:
            made.append(hooked_transformer(like, longest))
        with torch.no_grad():
            return made[0].run_with_cache(
                args[0], names_filter=lambda hook: hook.endswith("hook_pattern")
            )

    return run


def hooked_transformer(like: Tensor, longest: int) -> Any:
    """A random model of GPT-2 small's shape, as TransformerLens before or since 4.0 makes it."""
    shape = {
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "d_model": WIDTH,
        "d_head": WIDTH // HEADS,
        "n_ctx": longest,
        "d_vocab": VOCABULARY,
        "act_fn": "gelu_new",
    }
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError:
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_native(shape, device=like.device, dtype=like.dtype).eval()
    config = HookedTransformerConfig(**shape, device=str(like.device), dtype=like.dtype)
    return HookedTransformer(config).eval()


def measure(
    name: str,
    lengths: Sequence[int],
    options: argparse.Namespace,
    known: list[Cost],
    done: Callable[[CostTable], object],
) -> CostTable:
    """Measure one model, and hand over the table after each length.

    What is ``known`` of shorter lengths foretells which maps will not fit.
    """
    device = options.device
    model, _ = build(max(lengths), device, name, getattr(torch, options.dtype))
    table = CostTable(f"{name} (random, batch 1)", device, options.rounds, list(known))

    def say(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{name}: {text}".ljust(72), end="", file=sys.stderr, flush=True)

    def shown(length: int) -> None:
        say("")
        show(table, length)
        done(table)

    measure_costs(
        table,
        every_way(model, name, max(lengths)),
        lambda n: ((ids_of(n, device),), {}),
        lengths,
        free=partial(free_memory, torch.device(device)),
        say=say,
        done=shown,
    )
    return table


def show(table: CostTable, length: int) -> None:
    for cost in table.costs:
        if cost.length == length:
            memory = "" if cost.peak_bytes is None else f"{cost.peak_bytes / 1e6:11.1f} MB"
            time = f"{1e3 * cost.seconds:9.1f} ms{cost.ratio:7.2f} x"
            print(f"{length:6}  {cost.way:26}{time}{memory}", flush=True)
    for left in table.left_out:
        if left.length == length:
            print(f"{length:6}  {left.way:26}left out: {left.reason}", flush=True)


def held_in(file: str) -> dict[str, Any]:
    """What the file of results holds."""
    path = RESULTS / f"{file}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def merged(
    held: Mapping[str, Any], name: str, table: CostTable, lengths: set[int], run: Any
) -> dict[str, Any]:
    """Put a table into what a file holds, in place of what it holds of the same lengths.

    Args:
        held: What the file holds.
        name: Of the model.
        table: What was measured.
        lengths: Which of its lengths are new.
        run: What the lengths of the table were measured with, see `this_run`.
    """
    new = {cost.length for cost in table.costs} & lengths
    found: dict[str, Any] = {"device": table.device, "rounds": table.rounds}
    models, left, runs = (dict(held.get(part, {})) for part in ("models", "left_out", "runs"))
    old = [row for row in models.get(name, []) if row["length"] not in new]
    made = [vars(cost) for cost in table.costs if cost.length in new]
    models[name] = sorted([*old, *made], key=lambda row: row["length"])
    out = [row for row in left.get(name, []) if row["length"] not in new]
    left[name] = sorted([*out, *map(vars, table.left_out)], key=lambda row: row["length"])
    runs[name] = {**runs.get(name, {}), **{str(n): run for n in sorted(new)}}
    return {**found, "models": models, "left_out": left, "runs": runs}


def this_run(options: argparse.Namespace) -> dict[str, Any]:
    """What makes two runs the same."""
    facts = machine()
    return {
        "commit": facts["commit"],
        "torch": facts["versions"]["torch"],
        "threads": facts["torch_threads"],
        "hardware": facts["cpu"] if options.device == "cpu" else facts["gpu"],
        "dtype": options.dtype,
        "rounds": options.rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short length, no file")
    parser.add_argument("--resume", action="store_true", help="skip lengths that are measured")
    parser.add_argument("--device", default="cuda" if cuda_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--lengths", type=int, nargs="+", default=[128 << n for n in range(7)])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if not HAS_TRANSFORMERS:
        print("llama: left out, transformers is not installed")
    for name in options.models if HAS_TRANSFORMERS else ["gpt2"]:
        if not measure_model(name, options):
            sys.exit(130)


def measure_model(name: str, options: argparse.Namespace) -> bool:
    """Measure one model and write what was measured; False if somebody stopped it."""
    file = result_name("extraction", options.device)
    run = this_run(options)
    held = {} if options.quick else held_in(file)
    same = held.get("runs", {}).get(name, {}) if options.resume else {}
    lengths = [64] if options.quick else options.lengths
    todo = {n for n in lengths if same.get(str(n)) != run}
    if not todo:
        print(f"{name}: every length is measured")
        return True
    rows = held.get("models", {}).get(name, [])
    known = [Cost(**row) for row in rows if row["length"] < min(todo)]
    if not known and min(todo) > FIRST:
        todo.add(FIRST)

    def write(table: CostTable) -> None:
        if not options.quick:
            data = merged(held_in(file), name, table, todo, run)
            path = write_results(file, data)
            costs = [Cost(**row) for row in data["models"][name]]
            whole = CostTable(table.model, table.device, table.rounds, costs)
            plot_costs(whole, save_path=PICTURES / f"{file}_{name}.png")
            print(f"written to {path}", flush=True)

    return not measure(name, sorted(todo), options, known, write).interrupted


if __name__ == "__main__":
    main()
