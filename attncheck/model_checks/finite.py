"""What is not finite can't be compared: NaN is told as NaN, once, before anything is judged."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn

from attncheck.attention import LayerAttention
from attncheck.checks.finding import Finding
from attncheck.errors import CaptureError
from attncheck.model_checks.altering import real_positions
from attncheck.model_checks.blame import THE_MODEL, first_spoiled
from attncheck.model_checks.captured import attention_of
from attncheck.model_checks.running import call, output
from attncheck.model_checks.subject import ModelSubject
from attncheck.model_checks.trial import Replay, Trial

__all__ = ["unfinite_output", "unfinite_trial"]

RULE: Final = "what is compared is finite wherever it counts: NaN equals nothing"

HINT: Final = (
    "look for a query that sees no key (softmax of -inf alone is NaN), for scores that overflow, "
    "and for NaN in parameters and inputs"
)

Fact = tuple[str, str]


def unfinite_output(subject: ModelSubject, check: str) -> Finding | None:
    """Find NaN in the output for the inputs as given, at positions that count; None: there is none.

    An output of -inf is meant where others beside it are finite: models rule tokens out by it.

    Args:
        subject: The model and its inputs.
        check: Name of the check that would compare the output.
    """
    held = subject.measured
    if "unfinite" not in held:
        found = output(subject)
        spoiled = (~(found < torch.inf)).any(-1) | (found == -torch.inf).all(-1)
        held["unfinite"] = _of_output(subject, found, spoiled) if bool(spoiled.any()) else None
    finding: Finding | None = held["unfinite"]
    return None if finding is None else replace(finding, check=check)


def unfinite_trial(subject: ModelSubject, check: str, trial: Trial) -> Finding:
    """Tell a trial in which NaN leaves nothing to compare.

    Args:
        subject: The model and its inputs.
        check: Name of the check.
        trial: It moved nothing that can be told, and holds NaN.
    """
    row, column = _first(trial.moved.isnan())
    count = int(trial.moved.isnan().sum())
    noun = "gradient" if trial.method == "gradient" else "output"
    where = f"{trial.axis} {column + trial.offset} of sequence {row}"
    facts = [(trial.method, f"NaN at {where}: {trial.what}")]
    if trial.replay is not None:
        facts += _module(subject.model, _in_replay(subject.model, trial.replay) or THE_MODEL)
    return _finding(subject, check, f"{noun} is not finite", count, trial.judged, facts)


def _of_output(subject: ModelSubject, found: Tensor, spoiled: Tensor) -> Finding:
    row, position = _first(spoiled)
    value = "NaN" if bool(found[row, position].isnan().any()) else "inf"
    facts = [("first", f"{value} at output {position} of sequence {row}")]
    real = real_positions(subject, subject.stream)

    def counting(held: Tensor) -> Tensor:
        return held[real.to(held.device)] if held.shape[:2] == real.shape else held

    wrong = [
        name
        for name, held in subject.inputs.items()
        if isinstance(held, Tensor) and held.is_floating_point() and bool(held.isnan().any())
    ]
    facts += [("inputs", f"{name} holds NaN") for name in wrong[:1]]
    name = first_spoiled(subject.model, lambda: call(subject), counting)
    facts += _module(subject.model, name or THE_MODEL)
    facts += _maps(subject, row, position)
    judged = int(real.sum()) if found.shape[:2] == real.shape else spoiled.numel()
    return _finding(subject, "", "output is not finite", int(spoiled.sum()), judged, facts)


def _finding(
    subject: ModelSubject, check: str, said: str, count: int, judged: int, facts: list[Fact]
) -> Finding:
    return Finding(
        check=check,
        passed=False,
        verdict=f"{said}: {count} of {judged} positions",
        name=subject.name,
        subject=subject.describe(),
        rule=RULE,
        facts=tuple(facts),
        n_passed=max(judged - count, 0),
        n_total=judged,
        unit="positions",
        hints=(HINT,),
    )


def _in_replay(model: nn.Module, replay: Replay) -> str | None:
    """Name the module in which either run starts to be NaN, the second first."""
    if replay.between is not None:
        replay.between()
    name = first_spoiled(model, replay.two, replay.align_two)
    return name or first_spoiled(model, replay.one, replay.align_one)


def _module(model: nn.Module, name: str) -> list[Fact]:
    """Say in which module it starts, and what it holds that is not finite itself."""
    module = model if name == THE_MODEL else model.get_submodule(name)
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    wrong = [held for held, values in own if bool(values.isnan().any())]
    why = f", its {wrong[0]} holds NaN" if wrong else ""
    return [("layer", f"{name} returns it first{why}")]


def _maps(subject: ModelSubject, row: int, position: int) -> list[Fact]:
    """Name the first layer whose weights are NaN, or in which the query sees nothing."""
    try:
        layers = attention_of(subject)
    except (CaptureError, RuntimeError, ValueError, TypeError):
        return []
    for layer in layers:
        told = _of_layer(layer, row, position)
        if told:
            return [("maps", f"{layer.name} {told}")]
    return [("maps", f"weights of {len(layers)} layers are finite")] if layers else []


def _of_layer(layer: LayerAttention, row: int, position: int) -> str:
    shape = layer.weights.shape[:3]
    if position < layer.n_query and row < layer.batch and layer.kind != "cross":
        seen = layer.visible().any(-1).expand(shape)[row, :, position]
        if not bool(seen.all()):
            return f"lets query {position} of sequence {row} see no key"
    spoiled = layer.weights.isnan().any(-1) & layer.sighted_rows()
    if not bool(spoiled.any()):
        return ""
    batch, head, query = (int(place) for place in spoiled.nonzero()[0])
    return f"has NaN weights first: sequence {batch}, head {head}, query {query}"


def _first(spoiled: Tensor) -> tuple[int, int]:
    row, column = spoiled.nonzero()[0].tolist()
    return row, column
