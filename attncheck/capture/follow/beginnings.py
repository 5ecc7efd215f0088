"""Where attention may begin: a product of two activations, or pairs of them, and its softmax."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from attncheck.capture.call import Sink
from attncheck.capture.follow.alike import Alike
from attncheck.capture.follow.axes import Atom, Axes, numbers_in
from attncheck.capture.follow.edges import Edges
from attncheck.capture.follow.hiding import hidden_by, hidden_inside
from attncheck.capture.follow.origins import Origins, tensors_in
from attncheck.capture.follow.pairs import Repeats, beside, paired, put_behind, taken_apart
from attncheck.capture.follow.parts import sums_to_one
from attncheck.capture.follow.products import Product, place_of
from attncheck.capture.follow.scores import after_scores
from attncheck.capture.follow.stacks import NO_AXIS, over_keys
from attncheck.capture.follow.steps import Step, name_of
from attncheck.capture.follow.traces import Hiding, Trace, Traces
from attncheck.capture.plain import numbers_of
from attncheck.capture.recorders.fused_kernels import floats_in

__all__ = ["Beginnings"]


class Beginnings:
    """Finds scores and weights, and begins to follow them.

    Args:
        sink: Where to tell of a softmax.
        traces: Of the tensors that are followed.
        origins: What does not depend on the model's input.
    """

    def __init__(self, sink: Sink, traces: Traces, origins: Origins) -> None:
        self._sink, self._traces, self._origins = sink, traces, origins
        self.repeats, self.alike = Repeats(), Alike(origins)
        self.edge = Edges(sink, traces)
        self._count = 0

    def number(self) -> int:
        """Return the next number of a product or a softmax."""
        self._count += 1
        return self._count

    def scores(
        self,
        product: Product,
        out: Tensor,
        stage: Literal["scores", "pairs"] = "scores",
        steps: int = 0,
        folded: int | None = None,
    ) -> None:
        """Follow a product of two activations, which may be scores."""
        origins = self._origins
        free = [i for i, t in enumerate(product.operands) if not origins.is_parameter(t)]
        if origins and len(free) > 2:
            free = [i for i in free if not origins.computed(product.operands[i])]
        if len(free) != 2 or out.dtype == torch.bool:
            return
        axes = _sided(product, free, out, folded)
        fixed = frozenset[int]()
        if origins:
            computed = [origins.computed(product.operands[i]) for i in free]
            if computed[0] != computed[1]:
                side = "left" if computed[0] else "right"
                fixed = numbers_in([a for atoms in axes for a in atoms if a.side == side])
                fixed = fixed or NO_AXIS
        hiding: tuple[Hiding, ...] = ()
        if product.added is not None:
            hiding = (Hiding("added", product.added, tuple(out.shape), axes),)
        self._traces[out] = Trace(
            stage,
            axes,
            frozenset(out.shape),
            hiding,
            product=self.number(),
            fixed=fixed,
            steps=steps,
            place=place_of(product.operands[free[1]]),
        )

    def pairs(self, name: str, left: Tensor, right: Tensor, out: Tensor) -> None:
        """Follow two activations that broadcast against each other."""
        found = paired(name, left, right, out)
        if found is not None and not any(map(self._origins.is_static, (left, right))):
            self.scores(found[0], out, "pairs", found[1])

    def pairs_beside(self, tensors: Any, dim: Any, out: Tensor) -> None:
        """Follow two activations of which one was put behind the other."""
        if put_behind(tensors, dim, out):
            self.pairs_repeated(tensors[0], tensors[1], out)

    def pairs_repeated(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        """Follow two activations of one shape, if they are repeated to meet each other."""
        found = beside(left, right, out, self.repeats.of)
        if found is None:
            return
        product, axis = found
        self.scores(product, out, "pairs", folded=axis)

    def summed(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        out: Any,
    ) -> None:
        """Follow a product of two activations of one shape that was summed over its features."""
        source = args[0]
        if not isinstance(out, Tensor) or self._traces[source] is not None:
            return
        if source.ndim == 1:
            args, kwargs = (source, 0), {}
        nothing = Trace("pairs")
        step = Step(function, name_of(function), args, kwargs, source, nothing, out)
        trace = self.alike.pairs(step, self.number())
        if trace is not None:
            for tensor, left in after_scores(replace(step, trace=trace), self._traces):
                self._traces[tensor] = left

    def edges(self, tensors: Sequence[Any], out: Any) -> None:
        """Follow query and key of each edge of a graph, where two of some tensors are that."""
        if isinstance(out, Tensor) and out.ndim and self.edge.pairs(tensors):
            self._traces[out] = Trace("pairs", product=self.number(), edges=True)

    def softmax(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any
    ) -> None:
        """Follow a softmax over scores."""
        scores = args[0] if args else kwargs.get("input")
        place = 2 if name == "_masked_softmax" else 1
        dim = args[place] if len(args) > place else kwargs.get("dim")
        if name == "gumbel_softmax":
            dim = kwargs.get("dim", args[4] if len(args) > 4 else -1)
        if not isinstance(scores, Tensor) or not isinstance(dim, int):
            return
        trace = self._traces[scores] if self._traces else None
        if trace is None or trace.edges or trace.stage not in ("scores", "pairs"):
            return
        if name == "_masked_softmax":
            trace = trace.but(hiding=(*trace.hiding, *hidden_by(scores, trace.axes, args, kwargs)))
        self._weights(trace, dim, out, logged="log" in name)

    def softmax_inside(self, step: Step) -> bool:
        """Follow what a kernel made of scores, if it is a softmax by its numbers.

        Returns:
            Whether it is.
        """
        trace = step.trace
        if trace.stage != "scores" or trace.edges:
            return False
        found = False
        several = isinstance(step.out, tuple | list)
        sources = self._scores_beside(step)
        results = (*floats_in((step.out,)), *step.written)
        alike = (made for made in results if made.shape == step.source.shape)
        for number, made in enumerate(alike):
            trace = sources[min(number, len(sources) - 1)]
            dim, rest = _dim_of_softmax(made, trace.axes, str(step.function.__name__))
            if dim is not None:
                hiding = (*trace.hiding, *hidden_inside(step, made))
                self._weights(trace.but(hiding=hiding, rest=rest), dim, made)
            elif several:
                self._traces[made] = trace
            found |= dim is not None or several
        return found

    def _scores_beside(self, step: Step) -> list[Trace]:
        """List what is known of all scores of one shape that a kernel got, in their order."""
        given = tensors_in((*step.args, *step.kwargs.values()))
        known = [self._traces[t] for t in given if t.shape == step.source.shape]
        return [trace for trace in known if trace is not None and trace.stage == "scores"]

    def _weights(self, trace: Trace, dim: int, out: Tensor, logged: bool = False) -> None:
        keys = frozenset[int]()
        if trace.axes is not None:
            atoms = trace.axes[dim]
            keys = numbers_in(atoms)
            if atoms and not over_keys(trace, atoms):
                return  # over heads or features, or over queries and keys at once: a heat map
        if trace.stage == "pairs" and trace.axes is None:
            return
        if keys & trace.fixed:  # over what does not depend on the input: a router, a codebook
            return
        trace = trace.but(keys=keys, n_key=out.shape[dim], over_last=dim in (-1, out.ndim - 1))
        if logged:
            self._traces[out] = trace
            return
        self._traces[out] = trace.but(stage="weights", softmax=self.number())
        self._sink.softmax_seen(trace.product)


def _dim_of_softmax(made: Tensor, axes: Axes | None, name: str) -> tuple[int | None, bool]:
    """Along which dimension numbers are weights, and whether a sink has a share of them."""
    made = numbers_of(made)
    if not bool(made.any()) or bool(made.isnan().all()):
        return None, False
    dims = [made.ndim - 1]
    if axes is not None:
        sides = [{atom.side for atom in atoms} for atoms in axes]
        dims += [dim for dim in range(made.ndim - 1) if sides[dim] in ({"left"}, {"right"})]
    for dim in dims:
        if sums_to_one(made.movedim(dim, -1)):
            return dim, False
    sums = made.sum(-1, dtype=torch.float64)
    shares = "softmax" in name and bool((made >= 0).all() & (sums <= 1.001).all() & sums.any())
    return (made.ndim - 1, True) if shares else (None, False)


def _sided(product: Product, free: list[int], out: Tensor, folded: int | None) -> Axes:
    """Number the axes of a product of query and key, in the order in which those have them.

    Args:
        product: Of query and key.
        free: Which of its operands they are.
        out: The result.
        folded: Which axis of the result is two of the product, see `beside`.
    """
    if folded is not None:
        axes = _sided(product, free, taken_apart(out, folded), None)
        place = folded % out.ndim
        return (*axes[:place], axes[place] + axes[place + 1], *axes[place + 2 :])
    left, right = (product.letters[i] for i in free)
    order: dict[int, int] = {}
    for letter in (*left, *right, *product.out):
        order.setdefault(letter, len(order))
    return tuple(
        (
            Atom(
                (order[letter],),
                size,
                "left"
                if letter in left and letter not in right
                else "right"
                if letter in right and letter not in left
                else "shared",
            ),
        )
        for letter, size in zip(product.out, out.shape, strict=True)
    )
