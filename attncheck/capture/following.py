"""Follow scores to their softmax, and weights on to the values: what each function makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from attncheck.capture.axes import JOINS, Atom, Axes, joined, numbers_in, reduced
from attncheck.capture.hiding import hiding_in
from attncheck.capture.origins import Origins
from attncheck.capture.pairs import NORMS
from attncheck.capture.parts import CUTS, cut
from attncheck.capture.products import Product, elementwise
from attncheck.capture.steps import DIFFERENCES, LAYERS, PICKS, QUOTIENTS, SHUFFLES, TIMES, Step
from attncheck.capture.traces import Trace, Traces

__all__ = ["Followed", "after_scores", "after_weights", "mixed", "through_layer"]

Followed: TypeAlias = Iterator[tuple[Tensor, Trace]]
"""Tensors that a function returned, with what is known about them."""

NEW: Final = 1000
"""Axes that neither query nor key had are numbered from here on."""


def after_scores(step: Step, traces: Traces) -> Followed:
    """Follow pairs, scores or raised scores through a function."""
    trace, target = step.trace, step.target()
    if step.ends() or (trace.stage == "pairs" and step.name in NORMS):
        return
    if step.name in CUTS:
        yield from _cut_scores(step)
        return
    if step.name in PICKS:
        yield from _picked(step)
        return
    if target is None:
        return
    if step.name in LAYERS:
        axes = through_layer(step, target)
        if axes is not None:
            yield target, replace(trace, axes=axes, sizes=trace.sizes | set(target.shape))
        return
    if step.reduces():
        left = _reduced(step)
        if left is not None:
            yield target, left
        return
    if step.name in JOINS:
        yield target, _joined(step, target, traces)
        return
    if target.numel() < step.source.numel() and step.name != "__setitem__":
        return
    axes = trace.axes if target is step.source else step.axes_of(target)
    if step.name in SHUFFLES:
        axes = None
    sums = _sums_among(step, trace, traces)
    if trace.stage == "raised":
        if sums is not None and step.name in (*QUOTIENTS, *TIMES):
            trace = replace(trace, stage="weights", keys=sums.keys, n_key=sums.n_key, rest=True)
        yield target, replace(trace, axes=axes)
        return
    hiding = hiding_in(step.name, step.source, step.args, step.kwargs, trace.axes)
    if hiding:
        trace = trace.with_hiding(*hiding)
    if step.name in DIFFERENCES and any(t.shape[-1:] == (1,) for t in step.others()):
        trace = replace(trace, shifted=True)
    if step.raises():
        trace = replace(trace, stage="raised")
    yield target, replace(trace, axes=axes, sizes=trace.sizes | set(target.shape))


def _cut_scores(step: Step) -> Followed:
    held = step.out if isinstance(step.out, tuple | list) else (step.out,)
    for part in held:
        if isinstance(part, Tensor) and part.is_floating_point():
            smaller = part.numel() < step.source.numel()
            sliced = step.trace.sliced or (smaller and step.trace.stage == "raised")
            yield part, replace(step.trace, axes=step.axes_of(part), sliced=sliced)


def _picked(step: Step) -> Followed:
    held = step.out if isinstance(step.out, tuple | list) else (step.out,)
    for part in held:
        if isinstance(part, Tensor) and part.is_floating_point():
            sizes = step.trace.sizes | set(part.shape)
            yield part, replace(step.trace, axes=None, picked=True, sizes=sizes)


def _sums_among(step: Step, trace: Trace, traces: Traces) -> Trace | None:
    """Return the trace of the sums of these very numbers, if they are another argument."""
    for other in step.others():
        found = traces[other]
        if found is not None and found.stage == "sums" and found.product == trace.product:
            return found
    return None


def _reduced(step: Step) -> Trace | None:
    """Follow what is summed over features or heads, and sums over keys; None: it ends here."""
    trace, dims = step.trace, step.reduced_dims()
    if trace.axes is None:
        by_last = step.out.numel() * step.source.shape[-1] == step.source.numel()
        return replace(trace, stage="scores") if trace.stage == "pairs" and by_last else None
    if dims is None:
        last_only = step.out.numel() * step.source.shape[-1] == step.source.numel()
        if not (last_only and step.name in ("norm", "linalg_vector_norm")):
            return None
        dims = (-1,)
    gone = [atom for dim in dims for atom in trace.axes[dim]]
    axes = reduced(trace.axes, dims, kept=step.out.ndim == step.source.ndim)
    if all(atom.side == "shared" for atom in gone):
        stage = "scores" if trace.stage == "pairs" else trace.stage
        return replace(trace, stage=stage, axes=axes, sizes=trace.sizes | set(step.out.shape))
    if step.name in ("sum", "logsumexp") and trace.stage != "pairs":
        n_key = step.source.numel() // step.out.numel()
        return replace(trace, stage="sums", axes=axes, keys=numbers_in(gone), n_key=n_key)
    return None


def _joined(step: Step, target: Tensor, traces: Traces) -> Trace:
    known = [traces[part] is not None for part in step.args[0] if isinstance(part, Tensor)]
    trace = replace(step.trace, foreign=step.trace.foreign or not all(known))
    axes = trace.axes
    if step.name == "stack" and axes is not None:
        dim = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim", 0)
        dim %= target.ndim
        number = -step.trace.product if dim == 0 else NEW + step.trace.product
        new = Atom((number,), target.shape[dim], "shared")
        axes = (*axes[:dim], (new,), *axes[dim:])
    else:
        axes = joined(step.name, axes, step.source.shape, target)
    return replace(trace, axes=axes, sizes=trace.sizes | set(target.shape))


def through_layer(step: Step, target: Tensor) -> Axes | None:
    """Return the axes behind a linear layer that mixes heads or features; None: it mixes keys."""
    source, axes = step.source, step.trace.axes
    axis = source.ndim - 1 if step.name == "linear" else 1
    if axes is None or source.ndim != target.ndim or source.ndim < 2:
        return None
    kept = [i for i in range(source.ndim) if i != axis]
    if any(source.shape[i] != target.shape[i] for i in kept):
        return None
    if any(atom.side != "shared" for atom in axes[axis]):
        return None
    new = _new(step.trace.product, 0, target.shape[axis])
    return tuple(new if i == axis else atoms for i, atoms in enumerate(axes))


def _new(product: int, axis: int, size: int) -> tuple[Atom, ...]:
    return () if size == 1 else (Atom((NEW + product, axis), size, "shared"),)


def mixed(product: Product, number: int, trace: Trace, out: Tensor) -> Axes | None:
    """Return the axes of a product with a parameter; None: it sums over query or key."""
    axes = trace.axes
    if axes is None:
        return None
    if any(atom.side != "shared" for axis in product.summed(number) for atom in axes[axis]):
        return None
    own = dict(zip(product.letters[number], axes, strict=True))
    return tuple(
        own[letter] if letter in own else _new(trace.product, axis, size)
        for axis, (letter, size) in enumerate(zip(product.out, out.shape, strict=True))
    )


def after_weights(step: Step, traces: Traces, origins: Origins) -> Followed:
    """Follow weights through a function."""
    trace, source, name = step.trace, step.source, step.name
    if step.ends() or name in NORMS:
        return
    if name in CUTS:
        yield from cut(step)
        return
    target = step.target()
    if target is None:
        held: Any = step.out if isinstance(step.out, tuple | list) else ()
        for part in held:
            if isinstance(part, Tensor) and part.is_floating_point() and name in SHUFFLES:
                yield part, replace(trace, axes=None, changed="lost")
        return
    if name in LAYERS:
        axes = through_layer(step, target)
        if axes is not None:
            yield target, replace(_owning(step), axes=axes, changed="scaled")
        return
    if step.reduces():
        left = _reduced(step)
        if left is not None:
            yield target, replace(left, own=None, changed="scaled")
        elif name == "mean":
            yield target, replace(trace, own=None, axes=None, changed="lost")
        return
    if name in TIMES and target.numel() > source.numel() and step.others():
        read = elementwise((source, step.others()[0]), target)
        yield target, replace(trace, stage="weighted", read=(read, 0))
        return
    if target.numel() < source.numel() and name != "__setitem__":
        if name in SHUFFLES:
            yield target, replace(trace, axes=None, changed="lost")
        return
    axes = trace.axes if target is source else step.axes_of(target)
    if name in SHUFFLES or (axes is None and target.shape == source.shape):
        yield target, replace(trace, axes=axes, own=None, changed="lost")
        return
    sums = _sums_among(step, trace, traces)
    if sums is not None and name in (*QUOTIENTS, *TIMES):
        trace = replace(trace, keys=sums.keys, n_key=sums.n_key)
    if step.function_only_moves():
        yield target, replace(trace, axes=axes)
        return
    if name in JOINS:
        yield target, replace(trace, axes=None, own=None, changed="lost")
        return
    owning = _owning(step)
    also = _also(step, traces)
    yield target, replace(owning, axes=axes, also=also, changed=_changed(step, trace, origins))


def _owning(step: Step) -> Trace:
    """Keep what the softmax returned, before the model changes it."""
    trace = step.trace
    if trace.own is not None:
        return trace
    own = step.source.detach() if step.before is None else step.before
    return replace(trace, own=own, own_axes=trace.axes)


def _also(step: Step, traces: Traces) -> tuple[Trace, ...]:
    """Other weights that are combined with these."""
    found = list(step.trace.also)
    for other in step.others():
        trace = traces[other]
        if trace is not None and trace.stage == "weights" and trace.softmax != step.trace.softmax:
            if trace.own is None:
                trace = replace(trace, own=other.detach(), own_axes=trace.axes)
            found += [trace, *trace.also]
    return tuple(found)


def _changed(step: Step, trace: Trace, origins: Origins) -> Any:
    """Say how a function changed weights."""
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
