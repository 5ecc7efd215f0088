"""Sums of raised scores over the keys, by which a softmax that is spelled out is divided.

One sum may be of several products of query and key, or of several parts of one: local and global
keys, tiles, a memory and the sequence. What is divided by it is then a share of a row, and no row.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from attncheck.capture.follow.axes import JOINS, reduced
from attncheck.capture.follow.stacks import NEW, is_one_key, stacked
from attncheck.capture.follow.steps import ADDITIONS, Step
from attncheck.capture.follow.traces import Trace, Traces

__all__ = ["added_to", "after_sums", "is_share", "sums_among"]


def after_sums(step: Step, traces: Traces) -> Iterator[tuple[Tensor, Trace]]:
    """Follow sums through a function, together with those that it adds to them."""
    trace, target = step.trace, step.target()
    if target is None or step.ends():
        return
    if step.reduces():
        left = _over_summands(step)
        if left is not None:
            yield target, left
        return
    beside = step.args[0] if step.name in JOINS else step.others()
    known = [traces[t] for t in beside if isinstance(t, Tensor) and t is not step.source]
    others = [one for one in known if one is not None and one.stage == "sums"]
    if step.name in JOINS:
        axes = stacked(step, target)
    else:
        axes = trace.axes if target is step.source else step.axes_of(target)
    if others and step.name in (*ADDITIONS, *JOINS, "logaddexp"):
        products = frozenset(number for one in others for number in (one.product, *one.joint))
        n_key = trace.n_key + sum(one.n_key for one in others)
        trace = trace.but(joint=trace.joint | products, n_key=n_key)
    yield target, trace.but(axes=axes)


def _over_summands(step: Step) -> Trace | None:
    """Follow a sum over sums that were stacked; None: over queries, heads or keys."""
    axes, dims = step.trace.axes, step.reduced_dims()
    if axes is None or dims is None or step.name not in ("sum", "logsumexp"):
        return None
    if not all(atom.number < 0 or atom.number >= NEW for d in dims for atom in axes[d]):
        return None
    return step.trace.but(axes=reduced(axes, dims, kept=step.out.ndim == step.source.ndim))


def added_to(step: Step, traces: Traces) -> frozenset[int]:
    """Return the numbers of the products whose raised scores, or sums, are added to raised scores.

    Where these are of a single key, that is the sum over several of them.
    """
    if step.name not in ADDITIONS or step.trace.axes is None or not is_one_key(step.trace.axes):
        return frozenset()
    known = (traces[other] for other in step.others())
    beside = [one for one in known if one is not None and one.stage in ("raised", "sums")]
    return frozenset(number for one in beside for number in (one.product, *one.joint))


def sums_among(step: Step, traces: Traces) -> Trace | None:
    """Return the trace of the sums of these very numbers, if they are another argument."""
    for other in step.others():
        found = traces[other]
        if found is None or not _has(found, step.trace.product):
            continue
        if found.stage == "sums" or (found.stage == "raised" and found.joint):
            return found
    return None


def _has(sums: Trace, product: int) -> bool:
    return sums.product == product or product in sums.joint


def is_share(raised: Trace, sums: Trace) -> bool:
    """Whether raised scores are divided by the sums of more keys than their own.

    Args:
        raised: Of the scores.
        sums: Of the sums. A column that is no key may be among them, as models with a sink do.
    """
    if sums.stage == "raised":  # added up, one key after another
        return True
    if raised.axes is None or raised.foreign:
        return bool(sums.joint - {raised.product})
    held = 1
    for atoms in raised.axes:
        for atom in atoms:
            if atom.number in sums.keys:
                held *= atom.size
    return held < sums.n_key
