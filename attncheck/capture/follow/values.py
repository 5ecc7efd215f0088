"""Weights meet values: whether a product with weights is attention, and what its rows are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attncheck.capture.follow.axes import FEATURES, Atom, Axes, numbers_in
from attncheck.capture.follow.origins import Origins
from attncheck.capture.follow.parts import Columns, is_one_hot, keys_last, sums_to_one
from attncheck.capture.follow.products import LACKS, Letters, Product, place_of
from attncheck.capture.follow.stacks import may_be_keys
from attncheck.capture.follow.traces import Place, Trace, Traces
from attncheck.capture.plain import require_numbers

__all__ = ["Meeting", "Rows", "is_over_queries", "meeting_of", "rows_in"]


@dataclass(frozen=True, eq=False)
class Rows:
    """Weights as they lie in some tensor.

    Attributes:
        tensor: That holds them.
        axes: Of it; None: it is ``(..., query, key)``.
        trace: Of them, with the numbers of the keys.
        note: What else is to be known of them.
        own_keys: Every query has keys of its own.
    """

    tensor: Tensor
    axes: Axes | None
    trace: Trace
    note: str = ""
    own_keys: bool = False


@dataclass(frozen=True, eq=False)
class Meeting:
    """A product of weights and values.

    Attributes:
        trace: Of the weights; raised scores have keys now.
        as_used: The weights, as they lie in the product.
        rows: ``(..., key)``: the weights that were multiplied, keys last; None: not known.
        keys: Axes of the operand that were summed.
        product: Of weights and values.
        number: Which factor the weights are.
        letters: Of the axes of the rows but for the keys.
    """

    trace: Trace
    as_used: Tensor | None
    rows: Tensor | None
    keys: tuple[int, ...]
    product: Product
    number: int
    letters: tuple[int, ...] = ()

    def place_of_values(self) -> Place:
        """Return where the values are in memory; zeros: not known."""
        others = [t for i, t in enumerate(self.product.operands) if i != self.number]
        return place_of(others[0]) if len(others) == 1 else (0, 0)

    def axes_of_output(self, rows: Rows, output: Tensor) -> Axes | None:
        """Return the axes of what weights and values gave; None: not known.

        Those that the weights have are as in the axes of the weights, where these are known, else
        they are numbered like the weights' own; another one is that of `FEATURES`.

        Args:
            rows: The weights.
            output: What was made of the product since, in the same order.
        """
        own, out = self.product.letters[self.number], self.product.out
        known: dict[int, tuple[Atom, ...]] = {}
        if rows.axes is not None and self.trace.axes is not None:
            known = dict(zip(own, self.trace.axes, strict=True))
        elif rows.axes is None and len(self.letters) == rows.tensor.ndim - 1:
            sizes = zip(self.letters, rows.tensor.shape, strict=False)
            known = {n: (Atom((i,), size, "shared"),) for i, (n, size) in enumerate(sizes)}
        if sum(n not in own for n in out) != 1 or len(out) != output.ndim:
            return None
        if any(n in own and n not in known for n in out):
            return None
        return tuple(
            known[n] if n in own else (Atom((FEATURES,), size, "shared"),)
            for n, size in zip(out, output.shape, strict=True)
        )


def meeting_of(
    product: Product, number: int, trace: Trace, traces: Traces, origins: Origins
) -> Meeting | None:
    """Read a product with weights; None: it is not summed over keys, or not with values.

    Args:
        product: The product.
        number: Which factor the weights are.
        trace: Of the weights.
        traces: Of other tensors.
        origins: Of other tensors.
    """
    operand, letters = product.operands[number], product.letters[number]
    summed = product.summed(number)
    factors = [i for i in range(len(product.operands)) if i != number]
    values = _values(product, number, trace, traces, origins)
    if not values:
        return None
    axes = trace.axes
    keys = summed
    if axes is not None:
        if trace.stage == "raised":
            keys = [axis for axis in summed if may_be_keys(trace, axes[axis])]
            numbers = numbers_in([atom for axis in keys for atom in axes[axis]])
            if not keys and all(operand.shape[axis] > 1 for axis in summed):
                return None
            if numbers & trace.fixed:
                return None
            size = math.prod(operand.shape[axis] for axis in keys)
            trace = trace.but(keys=numbers, n_key=size + trace.sliced)
        elif trace.keys:
            keys = [axis for axis in summed if numbers_in(axes[axis]) & trace.keys]
            if not keys:
                return None
    as_used = rows = _effective(product, number, factors, values)
    if rows is None:
        return Meeting(trace, None, None, tuple(keys), product, number)
    rows, left = _with_keys_last(rows, trace, keys, letters, product.letters[values[0]])
    return Meeting(trace, as_used, rows, tuple(keys), product, number, left)


def _with_keys_last(
    rows: Tensor, trace: Trace, keys: Sequence[int], letters: Letters, others: Letters
) -> tuple[Tensor, Letters]:
    """Lay weights out as ``(..., key)``.

    Args:
        rows: The weights, as they lie in a product with values.
        trace: Of them.
        keys: Their axes of keys.
        letters: Of their axes.
        others: Of those of the values.

    Returns:
        The weights, and the letters of their axes but for the keys.
    """
    axes = trace.axes
    order = [axis for axis in range(rows.ndim) if axis not in keys]
    if trace.stage == "raised" and axes is not None and not axes[-1] and rows.shape[-1] == 1:
        rows, order = rows.squeeze(-1), order[:-1]  # written for the features to broadcast
    if axes is None and len(keys) == 1:
        order.sort(key=lambda axis: letters[axis] not in others)  # what values lack is the query
    rows = rows.permute(*order, *keys)
    if len(keys) > 1:
        rows = rows.flatten(-len(keys))
    elif not keys:
        rows = rows.unsqueeze(-1)
    return rows, tuple(letters[axis] for axis in order)


def is_over_queries(
    product: Product, number: int, trace: Trace, traces: Traces, origins: Origins
) -> bool:
    """Whether values are multiplied by what a softmax over the queries returned: no row of weights.

    What a model scaled since may be rows, as in slot attention, which divides by their sums. The
    arguments are those of `meeting_of`.
    """
    axes, summed = trace.axes, product.summed(number)
    if trace.stage != "weights" or axes is None or not trace.keys or not summed:
        return False
    if trace.changed in ("scaled", "lost"):
        return False
    sides = {atom.side for atoms in axes for atom in atoms if atom.number in trace.keys}
    others = {atom.side for axis in summed for atom in axes[axis]}
    if "shared" in others or len(others) != 1 or others == sides:
        return False
    return bool(_values(product, number, trace, traces, origins))


def _values(
    product: Product, number: int, trace: Trace, traces: Traces, origins: Origins
) -> list[int]:
    """Which factors share an axis that is summed with the weights, if one of them holds values."""
    letters = product.letters[number]
    gone = {letters[axis] for axis in product.summed(number)}
    found = [i for i in range(len(product.letters)) if i != number]
    found = [i for i in found if gone & set(product.letters[i])]
    some = any(_is_value(product, i, letters, trace, traces, origins) for i in found)
    return found if some else []


def _is_value(
    product: Product,
    number: int,
    letters: Sequence[int],
    trace: Trace,
    traces: Traces,
    origins: Origins,
) -> bool:
    """Whether a factor has features of its own, and depends on the model's input."""
    own = set(product.letters[number])
    if not any(letter != LACKS and letter not in letters for letter in own):
        return False
    value = product.operands[number]
    if origins.is_parameter(value) or (origins.computed(value) and not trace.fixed):
        return False
    known = traces[value]
    return known is None or known.product != trace.product


def _effective(
    product: Product, number: int, factors: Sequence[int], values: Sequence[int]
) -> Tensor | None:
    """Multiply weights by the factors that only scale them."""
    rows = require_numbers(product.operands[number]).detach()
    if rows.is_complex():
        if bool(rows.imag.any()):
            return None
        rows = rows.real
    letters = product.letters[number]
    for i in factors:
        its = product.letters[i]
        if i in values or not set(its) - {LACKS} <= set(letters):
            continue
        with torch.no_grad():
            factor = product.operands[i].detach()
            order = sorted(range(factor.ndim), key=lambda axis: letters.index(its[axis]))
            factor = factor.permute(order)
            shape = [
                size if letter in its else 1
                for letter, size in zip(letters, rows.shape, strict=True)
            ]
            rows = rows * factor.reshape(shape)
    return rows


def rows_in(meeting: Meeting, columns: Columns) -> list[Rows]:
    """Return the weights to report, if it was attention: those whose rows sum to 1.

    Args:
        meeting: Of weights and values.
        columns: Of all softmaxes so far.
    """
    trace, rows = meeting.trace, meeting.rows
    if trace.picked:
        return []
    if trace.columns is not None:
        return _own(trace) if columns.completed_by(trace) else []
    if trace.part:
        return _own(trace)
    if trace.axes is not None and trace.keys and trace.stage != "raised":
        sizes = [
            atom.size
            for axis in meeting.keys
            for atom in trace.axes[axis]
            if atom.place[0] in trace.keys
        ]
        if math.prod(sizes) not in (trace.n_key, trace.n_key - trace.sliced):
            return []
    elif trace.axes is None and not _fits(trace, rows):
        return []
    if rows is None:
        return []
    whole = _whole(rows, trace)
    if whole is not None:
        if trace.axes is None:
            return [Rows(rows, None, whole)]
        assert meeting.as_used is not None
        return [Rows(meeting.as_used, trace.axes, whole)]
    if trace.stage == "raised" or trace.changed == "lost":
        return []
    return _own(trace)


def _whole(rows: Tensor, trace: Trace) -> Trace | None:
    """Return what is known of weights that sum to 1, or leave a rest where one may be; or None."""
    if trace.changed == "random":
        return None
    exact = sums_to_one(rows)
    single = trace.shifted or rows.shape[-1] == 1
    if exact and trace.stage == "raised" and single and is_one_hot(rows):
        return None  # of these keys alone: a single one is raised to 1 where it is the largest
    room = (trace.sliced > 0 or trace.rest or trace.changed == "hidden") and not trace.share
    if not exact and not (room and sums_to_one(rows, sliced=True)):
        return None
    return trace.but(sliced=trace.sliced or int(trace.rest and not exact))


def _fits(trace: Trace, rows: Tensor | None) -> bool:
    """Whether the sum can be over keys, by sizes alone."""
    if rows is None:
        return False
    n_key = rows.shape[-1] if trace.stage == "raised" else trace.n_key
    if n_key not in trace.sizes and trace.stage != "raised":
        return False
    return rows.shape[-1] in (n_key, n_key - trace.sliced)


def _own(trace: Trace) -> list[Rows]:
    """Return what the softmax returned, and other softmaxes that were combined with it."""
    found = []
    for one in (trace, *trace.also):
        if one.own is None:
            continue
        if one.own_axes is not None and one.keys:
            found.append(Rows(one.own, one.own_axes, one))
        else:
            weights = keys_last(one.own, one.n_key)
            if weights is not None:
                found.append(Rows(weights, None, one))
    return found
