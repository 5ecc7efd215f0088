"""Tell batch, heads and queries apart by what becomes of the output of attention.

Whoever folds heads into the batch or the queries, or has them in front of them, ends by laying the
features of all heads of a position beside each other, or by summing over the heads. The axis that
is merged with the features is that of the heads; so is one that is summed, if there may be so many
heads and no other is merged later.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final

from torch import Tensor

from attncheck.capture.call import Sink, Waiting
from attncheck.capture.follow.axes import JOINS, Atom, Axes, joined, reduced
from attncheck.capture.follow.merges import Parts, Place, layout_of, numbers_of, parts_of, tells
from attncheck.capture.follow.parts import CUTS
from attncheck.capture.follow.products import Product
from attncheck.capture.follow.steps import LAYERS, Step
from attncheck.capture.follow.traces import Trace, Traces
from attncheck.capture.recorders.shapes import Layout

__all__ = ["Orders"]

STACKED: Final = -1
"""Number of an axis along which several outputs were stacked."""


class Orders:
    """Follows the output of calls that wait to be settled.

    Args:
        sink: That they wait in.
        traces: Of the tensors that are followed.
    """

    def __init__(self, sink: Sink, traces: Traces) -> None:
        self._sink, self._traces = sink, traces

    def begin(self, output: Tensor, waiting: Waiting | None, reported: bool = False) -> None:
        """Follow the output of a call.

        Args:
            output: ``(..., query, size)``, or in the order that the call tells.
            waiting: The call; None: it does not wait.
            reported: See `Trace`.
        """
        if waiting is None:
            return
        axes = waiting.axes
        if axes is None:
            axes = tuple((Atom((i,), size, "shared"),) for i, size in enumerate(output.shape))
        self._traces[output] = Trace(
            "attended", axes=axes, call=waiting.number, layout=waiting.layout, reported=reported
        )

    def after(self, step: Step) -> None:
        """See what a function made of such an output; what cannot be read tells nothing."""
        with suppress(Exception):
            self._after(step)

    def multiplied(self, product: Product, number: int, trace: Trace, out: Tensor) -> None:
        """See a product with a parameter: one that sums over features and heads tells them.

        Args:
            product: The product.
            number: Which factor the output is.
            trace: Of the output.
            out: What the product gave.
        """
        if trace.axes is None:
            return
        query, feature = _last_two(trace)
        gone = [atom for axis in product.summed(number) for atom in trace.axes[axis]]
        heads = [atom.place for atom in gone if 0 <= atom.number <= query]
        if heads and len(heads) < len(gone):
            self._settle(trace, heads)
        elif gone and not heads:
            own = dict(zip(product.letters[number], trace.axes, strict=True))
            new = [letter for letter in product.out if letter not in own]
            if len(new) != 1:
                return
            own[new[0]] = (Atom((feature,), out.shape[product.out.index(new[0])], "shared"),)
            axes = tuple(own[letter] for letter in product.out)
            others = {n for i, its in enumerate(product.letters) if i != number for n in its}
            shared = [atom for n in others if n in own for atom in own[n]]
            if any(0 <= atom.number <= query for atom in shared):  # each head has its own
                self._follow(trace.but(axes=axes), out)
            else:
                self._project(trace, axes, out)

    def _after(self, step: Step) -> None:
        trace, out = step.trace, step.out
        if step.name in JOINS:
            self._joined(step)
        elif step.name in CUTS:
            self._cut(step)
        elif step.reduces():
            self._reduced(step)
        elif not isinstance(out, Tensor):
            return
        elif trace.axes is None:  # a piece, changed one number at a time
            if out.shape == step.source.shape:
                self._traces[out] = trace
        elif step.name in LAYERS:
            axis = out.ndim - 1 - (0 if step.name == "linear" else int(step.name[4]))
            _, feature = _last_two(trace)
            if numbers_of(trace.axes[axis]) - {STACKED} == {feature}:
                made = (Atom((feature,), out.shape[axis], "shared"),)
                axes = (*trace.axes[:axis], made, *trace.axes[axis + 1 :])
                self._project(trace, axes, out)
        elif out.numel() == step.source.numel():
            others = [self._traces[other] for other in step.others()]
            alike = [t for t in others if t is not None and t.axes == trace.axes]
            self._follow(_with(trace, alike).but(axes=step.axes_of(out)), out)

    def _follow(self, trace: Trace, tensor: Tensor) -> None:
        if trace.axes is None:
            return
        query, feature = _last_two(trace)
        for atoms in trace.axes:
            numbers = numbers_of(atoms)
            if len(numbers) < 2 or feature not in numbers:
                continue
            merged = [a.place for a in atoms if 0 <= a.number <= query and a.size > 1]
            heads = [place for place in merged if place[0] < query]
            alone = STACKED not in numbers
            if query in numbers and alone and self._settle(trace, merged):
                return
            if (query,) in merged:
                every = sum(0 <= n < query for axis in trace.axes for n in _parts(axis))
                if trace.projected or len(heads) in (0, every):
                    break  # positions and features in one, or all: nothing is told
            elif query in numbers and not heads:  # positions that are laid beside each other
                self._end(trace, alone=True)
                return
            if heads and self._settle(trace, heads):
                return
            if STACKED in numbers:
                self._beside(trace, atoms)
        self._traces[tensor] = trace

    def _project(self, trace: Trace, axes: Axes, out: Tensor) -> None:
        """See a layer on features that no head is merged with: who has several merges them first.

        Args:
            trace: Of what it got.
            axes: Of what it gave.
            out: What it gave.
        """
        assert trace.layout is not None
        query, _ = _last_two(trace)
        ahead = [atoms for atoms in axes if any(0 <= n < query for n in numbers_of(atoms))]
        sizes = [a.size for atoms in ahead for a in atoms if 0 <= a.number < query]
        leading = trace.layout.leading
        if len(ahead) < 2 and trace.expected is not None:
            self._end(trace, trace.expected)
        elif math.prod(sizes) == math.prod(leading):
            if len(leading) == 1 and len(ahead) < 2:
                self._end(trace, alone=True)
                return
            if not set(leading) & (trace.layout.possible - {1}):
                self._expect_one_head(trace)
            self._follow(trace.but(axes=axes, projected=True), out)

    def _settle(
        self, trace: Trace, heads: Sequence[Place], times: int = 1, parts: Parts | None = None
    ) -> bool:
        """Settle by what was merged with the features; whether these can be heads.

        Args:
            trace: Of what was merged.
            heads: The parts of axes that were merged.
            times: How many outputs were laid beside each other then.
            parts: Of the axes of the output, if they are not those of the trace.
        """
        assert trace.layout is not None
        parts = parts_of(trace) if parts is None else parts
        layout = layout_of(trace.layout, parts, heads, trace.joined)
        if layout is None or not tells(trace, layout, parts, heads, times):
            return False
        for one in (trace, *trace.also):
            assert one.layout is not None
            told = layout_of(one.layout, parts, heads, trace.joined)
            self._end(one.but(also=()), told)
        return True

    def _end(self, trace: Trace, layout: Layout | None = None, alone: bool = False) -> None:
        """Settle the calls of a trace: in a layout, or with one head each."""
        for one in (trace, *trace.also):
            assert one.layout is not None
            self._sink.settle(one.call, one.layout.of_one_head() if alone else layout)
            self._traces.end(one.call)

    def _expect_one_head(self, trace: Trace) -> None:
        for one in (trace, *trace.also):
            assert one.layout is not None
            self._sink.expect(one.call, one.layout.of_one_head())

    def _beside(self, trace: Trace, atoms: Iterable[Atom]) -> None:
        """See outputs laid beside each other: there may be as many heads, or all of theirs.

        Args:
            trace: Of all.
            atoms: Of the axis of the features, with whatever was merged with them before.
        """
        assert trace.layout is not None
        assert trace.axes is not None
        count = 1 + len(trace.also)
        query, _ = _last_two(trace)
        heads = [a.place for a in atoms if 0 <= a.number < query and a.size > 1]
        if heads:
            self._settle(trace, heads, count)
        elif len(trace.layout.leading) < 2 and any(map(trace.layout.allows, (1, count))):
            self._expect_one_head(trace)

    def _reduced(self, step: Step) -> None:
        """What is summed may be heads; of positions, and of whatever is averaged, none is told."""
        trace, dims = step.trace, step.reduced_dims()
        if trace.axes is None or dims is None or trace.layout is None:
            return
        query, feature = _last_two(trace)
        gone = [atom for dim in dims for atom in trace.axes[dim]]
        if any(atom.number == feature for atom in gone):
            return
        heads = [atom.place for atom in gone if 0 <= atom.number < query]
        several = len(trace.axes) > 3 or len(trace.layout.leading) > 1
        if step.name == "sum" and heads and len(heads) == len(gone) and several:
            layout = layout_of(trace.layout, parts_of(trace), heads, trace.joined)
            if (
                layout is not None
                and layout.n_heads in trace.layout.possible
                and not trace.projected
            ):
                for one in (trace, *trace.also):
                    self._sink.expect(one.call, layout)
                trace = trace.but(expected=layout)
        assert trace.axes is not None
        axes = reduced(trace.axes, dims, kept=step.out.ndim == step.source.ndim)
        self._follow(trace.but(axes=axes, gone=(*trace.gone, *gone)), step.out)

    def _cut(self, step: Step) -> None:
        """Follow the pieces of an axis: laid beside each other, they were the heads."""
        trace, axes = step.trace, step.trace.axes
        pieces = step.out if isinstance(step.out, tuple | list) else (step.out,)
        axis = _cut_axis(step)
        if axes is None or axis is None or len(axes[axis]) > 1:
            return
        query, feature = _last_two(trace)
        (cut,) = axes[axis] or (Atom((STACKED,), 1, "shared"),)  # nobody's, of length 1
        for piece in pieces:
            made = trace.but(axes=step.axes_of(piece))
            if cut.number not in (STACKED, feature):
                length = piece.shape[axis] if piece.ndim == step.source.ndim else 1
                made = made.but(cut=(cut, length), gone=(*trace.gone, cut))
            if cut.number in (STACKED, query):
                self._follow(made, piece)
            elif cut.number != feature:
                self._traces[piece] = made

    def _joined(self, step: Step) -> None:
        trace, out = step.trace, step.out
        dim = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim", 0)
        if not isinstance(out, Tensor) or not isinstance(dim, int):
            return
        known = [self._traces[part] for part in step.args[0]]
        query, feature = _last_two(trace)
        if trace.cut is not None:
            told = self._pieces_joined(trace, known, dim % out.ndim == _beside_features(step))
            if told or trace.cut[0].number != query:
                return
        if trace.axes is None:
            return
        dim %= out.ndim
        others = [t for t in known if t is not None and _places(t.axes) == _places(trace.axes)]
        axes: Axes | None
        if step.name == "stack":
            new = Atom((STACKED,), len(known), "shared")
            axes = (*trace.axes[:dim], (new,), *trace.axes[dim:])
        elif feature in numbers_of(trace.axes[dim]):
            size = out.shape[dim] // step.source.shape[dim]
            grown = (a._replace(size=a.size * size) for a in trace.axes[dim] if a.number == feature)
            heads = (a for a in trace.axes[dim] if a.number != feature)
            axes = (*trace.axes[:dim], (*heads, *grown), *trace.axes[dim + 1 :])
            if len(others) == len(known) > 1:
                self._beside(_with(trace, others), axes[dim])
        else:
            axes = joined(step.name, trace.axes, step.source.shape, out)
            places = (atom.place for atom in trace.axes[dim])
            trace = trace.but(joined=(*trace.joined, *places))
        self._follow(_with(trace, others).but(axes=axes), out)

    def _pieces_joined(self, trace: Trace, known: Sequence[Trace | None], beside: bool) -> bool:
        """See pieces of one axis joined; whether they were the heads.

        Args:
            trace: Of one of them.
            known: Of all, where they have one.
            beside: They were joined along the features.
        """
        assert trace.cut is not None
        assert trace.layout is not None
        own = [t for t in known if t is not None and t.call == trace.call and t.cut is not None]
        atom, length = trace.cut
        count = len(known)
        if not beside or len(own) != count or length * count != atom.size:
            return False
        if length == 1:
            whole = trace.but(axes=(*(trace.axes or ()), (atom,)))
            return self._settle(whole, [atom.place])
        first = (*atom.place, 0)
        parts = parts_of(trace)
        del parts[atom.number][atom.place]
        parts[atom.number] |= {first: count, (*atom.place, 1): length}
        if atom.number < _last_two(trace)[0]:
            fits = trace.layout.n_heads in (1, count) and trace.layout.allows(count)
            if len(trace.layout.leading) > 1 or not fits:
                return False
        return self._settle(trace, [first], parts=parts)


def _last_two(trace: Trace) -> tuple[int, int]:
    """Numbers of the axes of queries and features."""
    assert trace.layout is not None
    query = len(trace.layout.axes) - 1
    return query, query + 1


def _parts(atoms: Iterable[Atom]) -> list[int]:
    """Numbers of the axes that some parts belong to, without those of length 1."""
    return [atom.number for atom in atoms if atom.size > 1]


def _places(axes: Axes | None) -> list[list[Place]] | None:
    return None if axes is None else [[atom.place for atom in atoms] for atoms in axes]


def _with(trace: Trace, others: Iterable[Trace]) -> Trace:
    """Follow the outputs of other calls together with that of one."""
    also = {one.call: one for other in others for one in (other, *other.also)}
    also |= {one.call: one for one in trace.also}
    also.pop(trace.call, None)
    return trace.but(also=tuple(one.but(also=()) for one in also.values()))


def _beside_features(step: Step) -> int:
    """Which axis of what was joined lies before the features, or is theirs."""
    out: Tensor = step.out
    return out.ndim - (2 if step.name == "stack" else 1)


def _cut_axis(step: Step) -> int | None:
    """Return along which axis pieces were cut; None: along none, or several."""
    if step.name == "__getitem__":
        index = step.args[1] if isinstance(step.args[1], tuple) else (step.args[1],)
        if not all(isinstance(i, int | slice) for i in index):
            return None
        cut = [axis for axis, i in enumerate(index) if i != slice(None)]
        return cut[0] if len(cut) == 1 else None
    given = step.args[1 if step.name in ("select", "unbind", "narrow") else 2 :]
    axis = given[0] if given else step.kwargs.get("dim", 0)
    return axis % step.source.ndim if isinstance(axis, int) else None
