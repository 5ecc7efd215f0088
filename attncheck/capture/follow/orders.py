"""Tell batch from heads by what becomes of the output of attention.

Whoever folds heads into the batch, or has them in front of it, ends by laying the features of all
heads of a position beside each other, or by summing over the heads. The axis that is merged with
the features, or summed, is that of the heads.
"""

from __future__ import annotations

import math
from contextlib import suppress

from torch import Tensor

from attncheck.capture.call import Sink, Waiting
from attncheck.capture.follow.axes import JOINS, Atom, Axes, reduced
from attncheck.capture.follow.parts import CUTS
from attncheck.capture.follow.products import Product
from attncheck.capture.follow.steps import LAYERS, Step
from attncheck.capture.follow.traces import Trace, Traces
from attncheck.capture.recorders.shapes import Layout

__all__ = ["Orders"]

Place = tuple[int, ...]


class Orders:
    """Follows the output of calls that wait to be settled.

    Args:
        sink: That they wait in.
        traces: Of the tensors that are followed.
    """

    def __init__(self, sink: Sink, traces: Traces) -> None:
        self._sink, self._traces = sink, traces

    def begin(self, output: Tensor, waiting: Waiting | None) -> None:
        """Follow the output of a call.

        Args:
            output: ``(..., query, size)``.
            waiting: The call; None: it does not wait.
        """
        if waiting is None:
            return
        layout, shape = waiting.layout, tuple(output.shape)
        axes = tuple((Atom((axis,), size, "shared"),) for axis, size in enumerate(shape))
        self._traces[output] = Trace(
            "attended",
            axes=axes,
            call=waiting.number,
            shape=shape,
            guess=layout.n_heads,
            counted=layout.counted,
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
        gone = [atom for axis in product.summed(number) for atom in trace.axes[axis]]
        feature = len(trace.shape) - 1
        heads = [atom.place for atom in gone if atom.number < feature - 1]
        if any(atom.number != feature and atom.number >= feature - 1 for atom in gone):
            return
        if heads and len(heads) < len(gone):
            self._settle(trace, _parts_of(trace.axes), heads)
        elif gone and not heads:
            own = dict(zip(product.letters[number], trace.axes, strict=True))
            new = [letter for letter in product.out if letter not in own]
            if len(new) == 1:
                own[new[0]] = (Atom((feature,), out.shape[product.out.index(new[0])], "shared"),)
                self._follow(trace.but(axes=tuple(own[n] for n in product.out)), out)

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
        elif out.numel() == step.source.numel():
            others = [self._traces[other] for other in step.others()]
            also = tuple(t for t in others if t is not None and t.axes == trace.axes)
            self._follow(trace.but(axes=step.axes_of(out), also=(*trace.also, *also)), out)
        elif step.name in LAYERS and len(trace.shape) == 3 and len(trace.axes) == 3:
            self._end(trace.call, None)

    def _follow(self, trace: Trace, tensor: Tensor) -> None:
        if trace.axes is None:
            return
        feature = len(trace.shape) - 1
        for atoms in trace.axes:
            numbers = [atom.number for atom in atoms if atom.size > 1]
            if len(numbers) < 2 or feature not in numbers:
                continue
            heads = [atom.place for atom in atoms if atom.number < feature - 1]
            whole = any(atom.place == (feature - 1,) for atom in atoms)
            if whole and len(heads) in (0, _count_ahead(trace.axes, feature - 1)):
                break  # positions and features in one, or all: nothing is told
            self._settle(trace, _parts_of(trace.axes), heads)
            return
        self._traces[tensor] = trace

    def _settle(self, trace: Trace, parts: dict[int, dict[Place, int]], heads: list[Place]) -> None:
        """Make a layout of the parts of the axes that came before the queries."""
        split: list[tuple[int, ...]] = []
        places: list[Place] = []
        for axis, size in enumerate(trace.shape[:-2]):
            known = parts.get(axis, {})
            if math.prod(known.values()) != size:  # some of it was cut off
                heads = list(dict.fromkeys((axis,) if p[0] == axis else p for p in heads))
                known = {(axis,): size}
            order = sorted(known)
            split.append(tuple(known[place] for place in order))
            places += order
        layout = Layout(tuple(split), tuple(places.index(place) for place in heads))
        if trace.counted not in (None, layout.n_heads):
            return  # something else than heads was merged
        for settled in (trace, *trace.also):
            if settled.shape[:-2] == trace.shape[:-2]:
                self._end(settled.call, layout)

    def _end(self, call: int, layout: Layout | None) -> None:
        self._sink.settle(call, layout)
        self._traces.end(call)

    def _reduced(self, step: Step) -> None:
        """What is summed are heads; of positions, and of whatever is averaged, nothing is told."""
        trace, dims = step.trace, step.reduced_dims()
        if trace.axes is None or dims is None:
            return
        gone = [atom for dim in dims for atom in trace.axes[dim]]
        feature = len(trace.shape) - 1
        if all(atom.number == feature - 1 for atom in gone):
            axes = reduced(trace.axes, dims, kept=step.out.ndim == step.source.ndim)
            self._follow(trace.but(axes=axes), step.out)
        elif (
            all(atom.number < feature - 1 for atom in gone)
            and len(trace.shape) > 3
            and step.name == "sum"
        ):
            self._settle(trace, _parts_of(trace.axes), [atom.place for atom in gone])

    def _cut(self, step: Step) -> None:
        """Follow the pieces of an axis: laid beside each other, they were the heads."""
        trace, axes = step.trace, step.trace.axes
        pieces = step.out if isinstance(step.out, tuple | list) else (step.out,)
        axis = _cut_axis(step)
        if axes is None or axis is None or len(axes[axis]) != 1:
            return
        (cut,) = axes[axis]
        feature = len(trace.shape) - 1
        if cut.number == feature - 1:
            for piece in pieces:
                self._follow(trace.but(axes=step.axes_of(piece)), piece)
        elif cut.number < feature - 1:
            for piece in pieces:
                length = piece.shape[axis] if piece.ndim == step.source.ndim else 1
                cuts = (cut, length, _parts_of(axes))
                self._traces[piece] = trace.but(axes=step.axes_of(piece), cut=cuts)

    def _joined(self, step: Step) -> None:
        trace, out = step.trace, step.out
        dim = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim", 0)
        if not isinstance(out, Tensor) or not isinstance(dim, int):
            return
        known = [self._traces[part] for part in step.args[0]]
        if trace.cut is None:
            whole = trace.axes is not None and len(trace.axes) == len(trace.shape) == 3
            whole = whole and len(known) > 1
            if whole and (step.name == "stack" or dim % 3 == 2) and trace.counted in (1, None):
                for other in known:
                    if other is not None and other.stage == "attended" and other.axes is not None:
                        # several outputs, each of one head
                        self._end(other.call, Layout(((other.shape[0],),), ()))
            return
        own = [t for t in known if t is not None and t.call == trace.call and t.cut is not None]
        atom, length, parts = trace.cut
        beside = dim % out.ndim == out.ndim - (2 if step.name == "stack" else 1)
        if not beside or len(own) != len(known) or length * len(known) != atom.size:
            return
        if length == 1:
            self._settle(trace, parts, [atom.place])
        elif len(trace.shape) == 3 and trace.guess in (1, len(known)):
            layout = Layout(((len(known), length),), (0,))
            self._end(trace.call, layout)


def _count_ahead(axes: Axes, query: int) -> int:
    """Count the parts of axes before that of the queries."""
    return sum(atom.number < query and atom.size > 1 for atoms in axes for atom in atoms)


def _parts_of(axes: Axes) -> dict[int, dict[Place, int]]:
    """Lengths of the parts of each original axis, by their places."""
    parts: dict[int, dict[Place, int]] = {}
    for atoms in axes:
        for atom in atoms:
            parts.setdefault(atom.number, {})[atom.place] = atom.size
    return parts


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
