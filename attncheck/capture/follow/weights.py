"""Follow weights on to the values: what each function that a model calls makes of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attncheck.capture.follow.axes import JOINS
from attncheck.capture.follow.origins import Origins
from attncheck.capture.follow.pairs import NORMS
from attncheck.capture.follow.parts import CUTS, cut
from attncheck.capture.follow.scores import Followed, summed_weights, through_layer
from attncheck.capture.follow.steps import LAYERS, QUOTIENTS, SHUFFLES, TIMES, Step
from attncheck.capture.follow.sums import sums_among
from attncheck.capture.follow.traces import Changed, Trace, Traces

__all__ = ["after_weights"]


def after_weights(step: Step, traces: Traces, origins: Origins) -> Followed:
    """Follow weights through a function."""
    target = step.target()
    if step.ends() or step.name in NORMS:
        return
    if step.name in CUTS:
        yield from cut(step)
    elif target is not None:
        left = _one_after_weights(step, target, traces, origins)
        if left is not None:
            yield target, left
    elif step.name in SHUFFLES and isinstance(step.out, tuple):
        yield step.out[0], step.trace.but(axes=None, changed="lost")


def _one_after_weights(
    step: Step, target: Tensor, traces: Traces, origins: Origins
) -> Trace | None:
    trace, source, name = step.trace, step.source, step.name
    if step.custom and target.shape != source.shape:
        return None
    if name in LAYERS:
        axes = through_layer(step, target)
        return None if axes is None else _owning(step).but(axes=axes, changed="scaled")
    if step.reduces():
        return summed_weights(step)
    if target.numel() < source.numel() and name != "__setitem__":
        return trace.but(axes=None, changed="lost") if name in SHUFFLES else None
    axes = trace.axes if target is source else step.axes_of(target)
    trace = trace.but(axes=axes)
    if name in (*SHUFFLES, *JOINS) or (axes is None and target.shape == source.shape):
        return trace.but(own=None, changed="lost")
    if step.function_only_moves():
        return trace
    combined = trace.combined or _combines(step, traces)
    owning = _owning(step).but(axes=axes, also=_also(step, traces), combined=combined)
    sums = sums_among(step, traces)
    if sums is not None and name in (*QUOTIENTS, *TIMES):
        if sums.keys != trace.keys:  # rows are made of a softmax over something else
            owning = owning.but(own=None, own_axes=None)
        owning = owning.but(keys=sums.keys, n_key=sums.n_key)
    return owning.but(changed=_changed(step, origins))


def _owning(step: Step) -> Trace:
    """Keep what the softmax returned, before the model changes it."""
    trace = step.trace
    if trace.own is not None:
        return trace
    own = step.source.detach() if step.before is None else step.before
    return trace.but(own=own, own_axes=trace.axes)


def _also(step: Step, traces: Traces) -> tuple[Trace, ...]:
    """Other weights that are combined with these."""
    found = list(step.trace.also)
    for other in step.others():
        trace = traces[other]
        if trace is not None and trace.stage == "weights" and trace.softmax != step.trace.softmax:
            if trace.own is None:
                trace = trace.but(own=other.detach(), own_axes=trace.axes)
            found += [trace, *trace.also]
    return tuple(found)


def _combines(step: Step, traces: Traces) -> bool:
    """Whether parts of one softmax meet: each is rows of weights of its own."""
    if not step.trace.part:
        return False
    others = (traces[other] for other in step.others())
    return any(t is not None and t.part and t.softmax == step.trace.softmax for t in others)


def _changed(step: Step, origins: Origins) -> Changed:
    """Say how a function changed weights."""
    trace = step.trace
    if trace.changed in ("lost", "random"):
        return trace.changed
    others = step.others()
    if step.drops() or any(origins.drawn(other) for other in others):
        return "random"
    if trace.changed == "scaled":
        return "scaled"
    if step.name in ("masked_fill", "masked_fill_") or (step.name in TIMES and _is_mask(others)):
        return "hidden"
    if step.name == "where" and any(_is_zero(arg) for arg in step.args[1:]):
        return "hidden"
    return trace.changed if step.only_casts() else "scaled"


def _is_mask(others: list[Tensor]) -> bool:
    if len(others) != 1 or others[0].ndim < 2:
        return False
    other = others[0].detach()
    if other.dtype == torch.bool:
        return True
    with torch.no_grad():
        return bool(((other == 0) | (other == 1)).all())


def _is_zero(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and float(value) == 0
    return isinstance(value, int | float) and value == 0
