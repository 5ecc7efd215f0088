"""Tell batch from heads by what becomes of the output of attention.

Whoever folds heads into the batch, or has them in front of it, ends by laying the features of all
heads of a position beside each other. The axis that is merged with the features is that of heads.
"""

from __future__ import annotations

from torch import Tensor

from attncheck.capture.call import Sink
from attncheck.capture.follow.axes import JOINS, Atom, Axes
from attncheck.capture.follow.parts import CUTS
from attncheck.capture.follow.steps import Step
from attncheck.capture.follow.traces import Trace, Traces

__all__ = ["Orders"]


class Orders:
    """Follows the output of calls that wait to be settled.

    Args:
        sink: That they wait in.
        traces: Of the tensors that are followed.
    """

    def __init__(self, sink: Sink, traces: Traces) -> None:
        self._sink, self._traces = sink, traces

    def begin(self, output: Tensor, number: int | None) -> None:
        """Follow the output of a call.

        Args:
            output: ``(batch and heads, query, size)``, or with an axis for each of the first two.
            number: Of the call; None: it does not wait.
        """
        if number is None:
            return
        axes = tuple(
            () if size == 1 else (Atom((axis,), size, "shared"),)
            for axis, size in enumerate(output.shape)
        )
        self._traces[output] = Trace("attended", axes=axes, product=number, n_axes=output.ndim)

    def after(self, step: Step) -> None:
        """See what a function made of such an output."""
        trace = step.trace
        if step.name in CUTS:
            self._cut(step)
        elif step.name in JOINS:
            self._joined(step)
        elif isinstance(step.out, Tensor) and step.out.numel() == step.source.numel():
            self._follow(trace.but(axes=step.axes_of(step.out)), step.out)

    def _follow(self, trace: Trace, tensor: Tensor) -> None:
        if trace.axes is None:
            return
        swapped = _merged_first(trace.axes, trace.n_axes)
        if swapped is None:
            self._traces[tensor] = trace
        else:
            self._sink.settle(trace.product, swapped=swapped)

    def _cut(self, step: Step) -> None:
        """Follow the pieces of an axis: laid beside each other, they were the heads."""
        trace, axes = step.trace, step.trace.axes
        pieces = step.out if isinstance(step.out, tuple | list) else (step.out,)
        axis = _cut_axis(step)
        if axes is None or axis is None or len(axes[axis]) != 1:
            return
        (cut,) = axes[axis]
        if cut.number < trace.n_axes - 2:
            for piece in pieces:
                if isinstance(piece, Tensor):
                    self._traces[piece] = trace.but(axes=None, cut=cut.place)

    def _joined(self, step: Step) -> None:
        trace, out = step.trace, step.out
        dim = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim", 0)
        if trace.axes is not None or not isinstance(out, Tensor) or dim not in (-1, out.ndim - 1):
            return
        self._sink.settle(trace.product, swapped=_is_first(trace.cut, trace.n_axes))


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
    return axis if isinstance(axis, int) else None


def _merged_first(axes: Axes, n_axes: int) -> bool | None:
    """Whether features were merged with the first of batch and heads; None: with neither yet."""
    for atoms in axes:
        numbers = [atom.number for atom in atoms]
        if len(atoms) == 2 and numbers[1] == n_axes - 1 and numbers[0] < n_axes - 2:
            return _is_first(atoms[0].place, n_axes)
    return None


def _is_first(place: tuple[int, ...], n_axes: int) -> bool:
    """Whether an axis of batch or heads is the outer one: of two axes, or of two parts of one."""
    return place == (0,) if n_axes == 4 else place in ((0,), (0, 0))
