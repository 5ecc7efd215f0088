"""`attncheck bench`: what each way of getting at a model's attention costs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from attncheck.benchmark import (
    Cost,
    CostTable,
    Inputs,
    LeftOut,
    machine,
    measure_ceilings,
    measure_costs,
    ways_of,
)
from attncheck.capture.memory import free_memory
from attncheck.checks.text import clip, safe
from attncheck.cli.arguments import ids_of
from attncheck.cli.names import asks_the_hub
from attncheck.cli.parsers.bench import ROUNDS
from attncheck.cli.problem import CommandError
from attncheck.cli.subject import Request, Subject, load_subject
from attncheck.progress import Progress

__all__ = ["run"]

LENGTHS: Final = (128, 256, 512, 1024)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if args.model is not None and args.behind is not None:
        raise CommandError(f"MODEL: both {args.behind!r} and {args.model!r}; expected one")
    model = args.model or args.behind
    if args.rounds < ROUNDS:
        raise CommandError(f"--rounds: {args.rounds}; a median needs at least {ROUNDS}")
    picture = _picture(args.plot)
    progress = Progress()
    try:
        with redirect_stdout(sys.stderr):  # what models print must not mix with the result
            if asks_the_hub(model):
                progress.note(f"{model} is no local folder: asking the Hugging Face hub")
            progress.say("loading the model")
            ids = ids_of(args.tokens)
            request = Request(model, ids=ids, device=args.device, any_prompt=True)
            table = _measured(load_subject(request), args, progress)
    finally:
        progress.done()
    if not table.costs and not table.interrupted:
        raise CommandError(_line(table.left_out[0]))
    if picture is not None and table.costs:
        _draw(table, picture)
    if args.json:
        print(json.dumps(to_json(table), indent=2, allow_nan=False))
    else:
        print(render(table))
    if table.interrupted:
        print("attncheck: interrupted; lengths that were done are shown", file=sys.stderr)
    return 130 if table.interrupted else 0


def _measured(subject: Subject, args: argparse.Namespace, progress: Progress) -> CostTable:
    device = torch.device(args.device)
    table = CostTable(subject.name, str(device), args.rounds, batch=_batch(subject))
    longest = _longest(subject)
    lengths = args.lengths or _default_lengths(longest)
    lengths = sorted(set(lengths))[: 2 if args.quick else None]
    for length in [one for one in lengths if longest is not None and one > longest]:
        table.left_out.append(LeftOut("", length, f"the model takes {longest} tokens"))
        lengths.remove(length)
    if lengths:
        progress.say("measuring what the device can do")
        table.ceilings = measure_ceilings(device, _dtype(subject))
    inputs_of = partial(_stretched, subject)
    ways, restore = ways_of(subject.model)
    try:
        return measure_costs(
            table,
            ways,
            inputs_of,
            lengths,
            free=partial(free_memory, device),
            say=progress.say,
        )
    finally:
        restore()


def _default_lengths(longest: int | None) -> Sequence[int]:
    if longest is None or longest >= 2 * LENGTHS[0]:
        return [length for length in LENGTHS if longest is None or length <= longest]
    return [max(1, longest // 4), max(1, longest // 2), longest]


def _longest(subject: Subject) -> int | None:
    """How many tokens the model takes, where it says so."""
    model = subject.model
    holders = (model, getattr(model, "config", None))
    for holder in holders:
        for name in ("max_length", "max_position_embeddings", "n_positions"):
            limit = getattr(holder, name, None)
            if isinstance(limit, int) and limit > 0 and (holder is model or name != "max_length"):
                return limit
    return None


def _batch(subject: Subject) -> int:
    """Sequences of the inputs."""
    tensors = [v for v in (*subject.args, *subject.kwargs.values()) if isinstance(v, Tensor)]
    return next((int(tensor.shape[0]) for tensor in tensors if tensor.ndim >= 2), 1)


def _dtype(subject: Subject) -> torch.dtype:
    """What the model computes in."""
    dtypes = [parameter.dtype for parameter in subject.model.parameters()]
    return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)


def _stretched(subject: Subject, length: int) -> Inputs:
    """Repeat, or cut, every input along its tokens; axis 1, as in ``(batch, token, ...)``."""
    values = (*subject.args, *subject.kwargs.values())
    first = next((v for v in values if isinstance(v, Tensor) and v.ndim >= 2), None)
    if first is None:
        raise CommandError(
            f"{subject.name}: no input is a tensor (batch, token, ...), so none can be made longer"
        )
    tokens = first.shape[1]

    def fitted(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[1] != tokens:
            return value
        return value[:, torch.arange(length, device=value.device) % tokens]

    args = tuple(fitted(value) for value in subject.args)
    return args, {name: fitted(value) for name, value in subject.kwargs.items()}


def _picture(name: str | None) -> Path | None:
    """The file to draw, whose folder and format are tried before the work."""
    if name is None:
        return None
    path = Path(name)
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise CommandError(f"--plot: {name}; expected a file that ends in .png, .svg or .pdf")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"--plot: cannot write {name}: {error.strerror}") from None
    return path


def _draw(table: CostTable, path: Path) -> None:
    from attncheck.plot import plot_costs

    try:
        plot_costs(table, save_path=path)
    except OSError as error:
        raise CommandError(f"--plot: cannot write {path}: {error.strerror}") from None
    print(f"written {path}", file=sys.stderr)


def render(table: CostTable) -> str:
    """Write the table as text, at most 80 columns wide."""
    lines = [
        f"model   {clip(safe(table.model), 72)}",
        f"device  {table.device}, {torch.get_num_threads()} threads; medians of {table.rounds} "
        "interleaved rounds",
    ]
    if table.ceilings is not None:
        reached = f"{table.ceilings.flops / 1e9:.4g} GFLOP/s of a large matrix product here"
        lines.append(f"peak    {reached}")
    lines += [
        "",
        f"{'tokens':>6}  {'way':<23}{'time':>11}{'x plain':>8}{'tokens/s':>10}{'of peak':>8}"
        f"{'memory':>12}",
    ]
    shown = None
    for cost in table.costs:
        tokens = "" if cost.length == shown else str(cost.length)
        shown = cost.length
        lines.append(f"{tokens:>6}  {cost.way:<23}{_numbers(cost)}")
    if table.left_out:
        lines += ["", "left out", *(f"  {clip(_line(each), 78)}" for each in table.left_out)]
    return "\n".join(lines)


def _numbers(cost: Cost) -> str:
    thousandths = 1e3 * cost.seconds
    clock = f"{thousandths:.0f}" if thousandths >= 100 else f"{thousandths:.3g}"
    rate = "" if cost.tokens_per_second is None else f"{cost.tokens_per_second:.0f}"
    share = "" if cost.flop_share is None else f"{cost.flop_share:.0%}"
    return f"{clock:>8} ms{cost.ratio:>8.2f}{rate:>10}{share:>8}{_size(cost.peak_bytes):>12}"


def _line(each: LeftOut) -> str:
    way = f", {each.way}" if each.way else ""
    return safe(f"n = {each.length}{way}: {each.reason}")


def _size(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e6:.3f} MB"


def to_json(table: CostTable) -> dict[str, Any]:
    """Describe the table as data, with the machine."""
    return {"schema": "attncheck.bench.1", "machine": machine(), **asdict(table)}
