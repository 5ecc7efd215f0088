"""Follow scores to their softmax: what each function that a model calls makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from torch import Tensor

from attncheck.capture.follow.axes import JOINS, Atom, Axes, numbers_in, reduced
from attncheck.capture.follow.hiding import hiding_in
from attncheck.capture.follow.pairs import LAYER_STEPS, MOST_STEPS, NORMS
from attncheck.capture.follow.parts import CUTS
from attncheck.capture.follow.products import Product
from attncheck.capture.follow.stacks import NEW, over_keys, put_beside, written
from attncheck.capture.follow.steps import (
    DIFFERENCES,
    LAYERS,
    PICKS,
    QUOTIENTS,
    SHUFFLES,
    TIMES,
    Step,
)
from attncheck.capture.follow.sums import added_to, is_share, sums_among
from attncheck.capture.follow.traces import Trace, Traces
from attncheck.capture.follow.widened import SCATTERS, after_join, padded, put_back

__all__ = ["Followed", "after_scores", "mixed", "summed_weights", "through_layer"]

Followed: TypeAlias = Iterator[tuple[Tensor, Trace]]
"""Tensors that a function returned, with what is known about them."""


def after_scores(step: Step, traces: Traces) -> Followed:
    """Follow pairs, scores or raised scores through a function.

    Pairs are what a model makes of a sequence and its mean as well, and then of that, layer by
    layer; so they end at a norm, after `MOST_STEPS`, and where no axis of queries or keys is left.
    """
    if step.ends():
        return
    pairs = step.trace.stage == "pairs" or step.trace.steps > 0
    steps = step.trace.steps + (LAYER_STEPS if step.name in LAYERS else 1)
    if pairs and (step.name in NORMS or steps > MOST_STEPS):
        return
    for tensor, trace in _after_numbers(step, traces):
        if not pairs:
            yield tensor, trace
        elif trace.stage != step.trace.stage:  # one number for each pair now
            yield tensor, trace.but(steps=0)
        elif trace.axes is None or any(a.side != "shared" for atoms in trace.axes for a in atoms):
            yield tensor, trace.but(steps=steps)


def _after_numbers(step: Step, traces: Traces) -> Followed:
    target = step.target()
    if step.name in CUTS:
        yield from _cut_scores(step)
    elif step.name in PICKS:
        yield from _picked(step)
    elif target is not None:
        left = _one_after_scores(step, target, traces)
        if left is not None:
            yield target, left


def _one_after_scores(step: Step, target: Tensor, traces: Traces) -> Trace | None:
    trace = step.trace
    if step.name in LAYERS:
        axes = through_layer(step, target)
        if axes is None:
            return None
        return trace.but(axes=axes, sizes=trace.sizes | set(target.shape))
    if step.reduces():
        return _reduced(step)
    if step.name in JOINS:
        return after_join(step, target, traces)
    if step.name == "pad":
        return padded(step, target)
    back = put_back(step, target) if trace.picked and step.name in SCATTERS else None
    if back is not None:
        return back
    if target.numel() < step.source.numel() and step.name != "__setitem__":
        return None
    trace = _laid_out(step, target)
    sums = sums_among(step, traces)
    if trace.stage == "raised":
        if sums is not None and step.name in (*QUOTIENTS, *TIMES):
            if is_share(trace, sums):
                return trace.but(share=True)
            return trace.but(stage="weights", keys=sums.keys, n_key=sums.n_key, rest=True)
        return trace.but(joint=trace.joint | added_to(step, traces))
    if trace.n_key and step.name in ("exp", "exp_"):  # of a log_softmax
        return trace.but(stage="weights")
    same = step.function_only_moves() or step.only_casts()
    hiding = hiding_in(step.name, step.source, step.args, step.kwargs, step.trace.axes)
    columns = (t for t in step.others() if t.shape[-1:] == (1,))
    shifted = sums is None and step.name in DIFFERENCES and next(columns, None) is not None
    divided = step.name in DIFFERENCES  # by a sum, in the logarithm
    return trace.but(
        stage="raised" if step.raises() else trace.stage,
        hiding=(*trace.hiding, *hiding),
        shifted=trace.shifted or shifted,
        share=trace.share or (sums is not None and divided and is_share(trace, sums)),
        sizes=trace.sizes | set(target.shape),
        keys=trace.keys if same else frozenset(),
        n_key=trace.n_key if same else 0,
    )


def _laid_out(step: Step, target: Tensor) -> Trace:
    """Return the trace of scores whose axes are those of the result."""
    trace = step.trace
    if step.name == "__setitem__" and target is not step.source:
        return put_beside(trace, written(step, target), target)
    axes = trace.axes if target is step.source else step.axes_of(target)
    return trace.but(axes=None if step.name in SHUFFLES else axes)


def _cut_scores(step: Step) -> Followed:
    held = step.out if isinstance(step.out, tuple | list) else (step.out,)
    for part in held:
        if step.keeps(part):
            smaller = part.numel() < step.source.numel()
            sliced = step.trace.sliced
            if smaller and step.trace.stage == "raised" and step.trace.foreign:
                sliced = sliced or step.source.shape[-1] - part.shape[-1]
            yield part, step.trace.but(axes=step.axes_of(part), sliced=sliced)


def _picked(step: Step) -> Followed:
    held = step.out if isinstance(step.out, tuple | list) else (step.out,)
    for part in held:
        if step.keeps(part):
            sizes = step.trace.sizes | set(part.shape)
            picked = step.trace.picked or (step.trace.axes, tuple(step.source.shape))
            yield part, step.trace.but(axes=None, picked=picked, sizes=sizes)


def _reduced(step: Step) -> Trace | None:
    """Follow what is summed over features or heads, and sums over keys; None: it ends here."""
    trace, dims = step.trace, step.reduced_dims()
    if trace.axes is None:
        by_last = step.out.numel() * step.source.shape[-1] == step.source.numel()
        return trace.but(stage="scores") if trace.stage == "pairs" and by_last else None
    if dims is None:
        last_only = step.out.numel() * step.source.shape[-1] == step.source.numel()
        if not (last_only and step.name in ("norm", "linalg_vector_norm")):
            return None
        dims = (-1,)
    gone = [atom for dim in dims for atom in trace.axes[dim]]
    axes = reduced(trace.axes, dims, kept=step.out.ndim == step.source.ndim)
    if all(atom.side == "shared" for atom in gone) and not _over_stacked_keys(step, gone):
        stage = "scores" if trace.stage == "pairs" else trace.stage
        return trace.but(stage=stage, axes=axes, sizes=trace.sizes | set(step.out.shape))
    if step.name in ("sum", "logsumexp") and trace.stage != "pairs":
        n_key = step.source.numel() // step.out.numel()
        return trace.but(stage="sums", axes=axes, keys=numbers_in(gone), n_key=n_key)
    return None


def _over_stacked_keys(step: Step, gone: list[Atom]) -> bool:
    """Whether a sum is over keys whose scores were made one by one."""
    trace = step.trace
    if trace.keys:
        return bool(numbers_in(gone) & trace.keys)
    return (trace.stage == "raised" or step.name == "logsumexp") and over_keys(trace, gone)


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


def mixed(product: Product, number: int, trace: Trace, out: Tensor) -> Trace | None:
    """Follow a product with a parameter; None: it sums over query or key, or pairs end there."""
    axes = trace.axes
    if axes is None:
        return None
    if any(atom.side != "shared" for axis in product.summed(number) for atom in axes[axis]):
        return None
    own = dict(zip(product.letters[number], axes, strict=True))
    axes = tuple(
        own[letter] if letter in own else _new(trace.product, axis, size)
        for axis, (letter, size) in enumerate(zip(product.out, out.shape, strict=True))
    )
    if trace.stage == "weights":
        if trace.own is None:
            trace = trace.but(own=product.operands[number].detach(), own_axes=trace.axes)
        return trace.but(axes=axes, changed="scaled")
    pairs = trace.stage == "pairs" or trace.steps > 0
    steps = trace.steps + LAYER_STEPS if pairs else 0
    if steps > MOST_STEPS:
        return None
    stage = "scores" if trace.stage == "pairs" else trace.stage
    return trace.but(stage=stage, axes=axes, sizes=trace.sizes | set(out.shape), steps=steps)


def summed_weights(step: Step) -> Trace | None:
    """Follow weights that were summed: over heads they are weights still, over keys their sums."""
    left = _reduced(step)
    if left is not None:
        return left.but(own=None, changed="scaled")
    if step.name == "mean":
        return step.trace.but(own=None, axes=None, changed="lost")
    return None
