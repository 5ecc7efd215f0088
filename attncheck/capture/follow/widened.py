"""Scores in wider tensors: beside sinks, behind padding, or picked and put back into a row.

Columns that are no scores of query and key are no keys either. Where a model cuts just these off
its weights, what they had is the share of a sink.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

from attncheck.attention.masks import HIDDEN_BELOW
from attncheck.capture.follow.axes import joined
from attncheck.capture.follow.stacks import is_own_key, put_beside, stacked
from attncheck.capture.follow.steps import Step
from attncheck.capture.follow.traces import Columns, Hiding, Trace, Traces

__all__ = ["SCATTERS", "after_join", "cuts_foreign", "padded", "put_back"]

SCATTERS: Final = ("scatter", "scatter_")
"""Functions that write numbers to places of a wider tensor."""

SOMEWHERE: Final = (0, 0)
"""Foreign columns that are not beside each other, or in another axis than the last."""


def after_join(step: Step, target: Tensor, traces: Traces) -> Trace:
    """Follow scores that are joined to others, or to what is none."""
    parts = [part for part in step.args[0] if isinstance(part, Tensor)]
    for part in parts:  # where some keys are each query's own, so are the numbers of all
        own = traces[part]
        if own is None or own.stage != step.trace.stage or own.axes is None:
            continue
        if is_own_key(own.axes) and not is_own_key(step.trace.axes or ()):
            step = replace(step, source=part, trace=own)
    trace = step.trace
    known = [traces[part] is not None for part in parts]
    foreign = trace.foreign
    if not all(known):
        foreign = SOMEWHERE if foreign else _unknown_columns(parts, known, target)
    return put_beside(trace.but(foreign=foreign), stacked(step, target), target)


def _unknown_columns(parts: list[Tensor], known: list[bool], target: Tensor) -> Columns:
    """Return which columns of joined tensors are those of unknown ones."""
    if any(part.ndim != target.ndim for part in parts):
        return SOMEWHERE
    if target.shape[-1] != sum(part.shape[-1] for part in parts):
        return SOMEWHERE
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + part.shape[-1])
    ranges = [place for place, own in zip(pairwise(starts), known, strict=True) if not own]
    whole = ranges[0][0], ranges[-1][1]
    return whole if whole[1] - whole[0] == sum(b - a for a, b in ranges) else SOMEWHERE


def padded(step: Step, target: Tensor) -> Trace:
    """Follow scores that got columns of one number, or anything else around them."""
    trace, pad = step.trace, step.args[1] if len(step.args) > 1 else step.kwargs.get("pad")
    mode = step.args[2] if len(step.args) > 2 else step.kwargs.get("mode", "constant")
    sizes = trace.sizes | set(target.shape)
    if mode != "constant" or not isinstance(pad, tuple | list) or min(pad) < 0 or any(pad[2:]):
        return trace.but(axes=None, sizes=sizes)
    before, n_column = pad[0], target.shape[-1]
    ranges = [(0, before), (n_column - pad[1], n_column)]
    found = [columns for columns in ranges if columns[0] < columns[1]]
    foreign = found[0] if len(found) == 1 and not trace.foreign else SOMEWHERE
    axes = joined("cat", trace.axes, step.source.shape, target)
    return trace.but(foreign=foreign, axes=axes, sizes=sizes)


def put_back(step: Step, target: Tensor) -> Trace | None:
    """Follow picked scores that are written into a row of as many; None: into another one."""
    trace = step.trace
    if trace.picked is None or len(step.args) < 4 or step.args[3] is not step.source:
        return None
    axes, shape = trace.picked
    if axes is None or target.shape != shape:
        return None
    base, dim, index = step.args[:3]
    with torch.no_grad():  # a base that was overwritten holds the scores now, which are seen
        seen = (base.detach() > HIDDEN_BELOW).scatter(dim, index, True)
    hiding = Hiding("visible", seen, tuple(shape), axes)
    sizes = trace.sizes | set(shape)
    return trace.but(axes=axes, picked=None, hiding=(*trace.hiding, hiding), sizes=sizes)


def cuts_foreign(columns: Columns, trace: Trace) -> bool:
    """Whether a range of columns is all but the foreign ones."""
    foreign, n_key = trace.foreign, trace.n_key
    if foreign is None or foreign == SOMEWHERE:
        return False
    return columns in ((0, foreign[0]), (foreign[1], n_key)) and (
        foreign[0] == 0 or foreign[1] == n_key
    )
