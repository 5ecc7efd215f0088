"""From weights as a module computed them to a call of attention: ``(batch, head, query, key)``."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn

from attncheck.capture.call import AS_READ, AttentionCall, Kind
from attncheck.capture.copies import compact_copy, worth_copying
from attncheck.capture.follow.arrangements import Arrangement
from attncheck.capture.follow.axes import FEATURES, Axes
from attncheck.capture.follow.hiding import VisibleKeys
from attncheck.capture.follow.values import Meeting, Rows
from attncheck.capture.recorders.shapes import Layout
from attncheck.capture.whereabouts import kind_of

__all__ = ["call_of"]

OWN_KEYS: Final = "every query has keys of its own: numbers of keys are no positions"


def call_of(
    module: nn.Module,
    name: str,
    rows: Rows,
    output: Tensor,
    visible: VisibleKeys,
    meeting: Meeting | None = None,
    told: Layout | None = None,
    arrangement: Arrangement | None = None,
    kind: Kind | None = None,
) -> AttentionCall:
    """Describe attention that a module computed by itself.

    Args:
        module: That computed it.
        name: Its path.
        rows: The weights, as they lie in the module.
        output: Of attention.
        visible: Reads masks.
        meeting: Of weights and values, if batch and heads may be told by their output.
        told: Where its heads are; None: still to be found.
        arrangement: Of the weights; None: still to be found.
        kind: Of it; None: still to be found.
    """
    trace = rows.trace
    axes = None if meeting is None else meeting.axes_of_output(rows, output)
    size = _size_of(output, axes)
    with torch.no_grad():
        if arrangement is None:
            used = None if meeting is None else meeting.trace.axes
            arrangement = Arrangement.of(module, rows, size, used)
        as_used = arrangement.apply(rows.tensor.detach(), rows.axes)
        layout = told or arrangement.layout(module, as_used.shape[:-1], size)
        weights = layout.apply(as_used)
        hidings = [arrangement.laid_out(h) for h in trace.hiding]
        mask = visible.of(hidings, as_used.shape)
        if mask is not None:
            mask = layout.apply(mask)
        elif hidings:  # they may be laid out so already
            mask = visible.of(hidings, weights.shape)
        n_query, n_key = weights.shape[-2:]
        own_keys = arrangement.own_keys or (rows.own_keys and n_query > 1)
        causal = mask is None and n_query == n_key > 1 and not own_keys and _sees_no_later(weights)
    if kind is None:
        kind = "unknown" if own_keys else kind_of(module, name, n_query, n_key, causal=causal)
    axes = arrangement.of_output(axes, layout.axes) if axes and not layout.told else None
    waits = axes is not None
    if waits:
        output = output.detach().clone()
        if worth_copying(rows.tensor):
            rows = replace(rows, tensor=rows.tensor.detach().clone())
            weights = layout.apply(arrangement.apply(rows.tensor, rows.axes))
        kept = (replace(h, mask=compact_copy(h.mask)) for h in rows.trace.hiding)
        rows = replace(rows, trace=rows.trace.but(hiding=tuple(kept)))
    return AttentionCall(
        name=name,
        backend="softmax",
        kind=kind,
        output=output,
        weights=weights,
        mask=mask,
        causal=causal,
        sink_is_rest=bool(trace.sliced),
        note="; ".join(
            [OWN_KEYS] * own_keys
            + [AS_READ] * (not layout.told and not waits)
            + [rows.note] * bool(rows.note)
        ),
        layout=layout if waits else None,
        axes=axes,
        again=lambda told: call_of(
            module, name, rows, output, visible, None, told, arrangement, kind
        ),
    )


def _size_of(output: Tensor, axes: Axes | None) -> int:
    """How many features there are for each query."""
    atoms = [] if axes is None else [atom for held in axes for atom in held]
    return next((atom.size for atom in atoms if atom.number == FEATURES), output.shape[-1])


def _sees_no_later(weights: Tensor) -> bool:
    """Whether no query has weight on a key behind it; few rows tell most that do."""
    if bool(weights[:, :, 0, 1:].any()):
        return False
    return not bool(weights.triu(1).any())
