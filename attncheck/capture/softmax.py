"""Modules that compute ``softmax(query @ key) @ value`` by themselves.

Such attention is found by what it computes. A product of two activations may be scores; what a
model does to scores (scale, mask, bias, cast, reshape) is followed; a softmax over them gives what
may be weights; and when these multiply another activation along the axis of the softmax, that was
attention. Where the softmax is spelled out, ``exp`` takes its place, and its rows must sum to 1, or
the product be divided by their sums. A router's softmax comes from a linear layer, a pooling or
classifying softmax does too: none of them is a product of two activations, so none is mistaken for
attention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from attncheck.capture.axes import JOINS, Atom, Axes, numbers_in
from attncheck.capture.call import Sink
from attncheck.capture.following import after_scores, after_weights, mixed
from attncheck.capture.hiding import VisibleKeys
from attncheck.capture.origins import CREATIONS, DRAWS, Origins
from attncheck.capture.pairs import COMBINATIONS, REPEATS, Repeats, beside, paired
from attncheck.capture.parts import Columns
from attncheck.capture.plain import UnreadableError, require_numbers
from attncheck.capture.products import PRODUCTS, Product, as_product
from attncheck.capture.reports import call_of
from attncheck.capture.steps import QUOTIENTS, Step, works_in_place
from attncheck.capture.tiles import after_summed, begins_sum
from attncheck.capture.traces import Hiding, Part, Trace, Traces
from attncheck.capture.values import Rows, meeting_of, rows_in

__all__ = ["SoftmaxWatcher"]

SOFTMAXES: Final = (
    *("softmax", "_softmax", "special_softmax", "_masked_softmax", "softmin", "_safe_softmax"),
    "gumbel_softmax",
)


LEAVE_OUT: Final = "Pass strict=False to keep the other layers"


class SoftmaxWatcher:
    """Reports hand-written softmax attention.

    Args:
        sink: Where to report.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._traces = Traces()
        self._origins = Origins(sink)
        self._repeats = Repeats()
        self._columns = Columns()
        self._visible = VisibleKeys()
        self._count = 0
        self._reported: set[int] = set()
        self._left: dict[tuple[int, ...], int] = {}

    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """Names of the functions watched; the empty name is for all others."""
        return {
            **dict.fromkeys(CREATIONS | DRAWS, self._create),
            **dict.fromkeys(REPEATS, self._repeat),
            **dict.fromkeys(PRODUCTS, self._multiply),
            **dict.fromkeys(SOFTMAXES, self._normalise),
            **dict.fromkeys(COMBINATIONS, self._combine),
            **dict.fromkeys(JOINS, self._join),
            **dict.fromkeys(("numpy", "__array__", "tolist"), self._leave),
            "linear": self._linear,
            "": self._follow,
        }

    def follows(self) -> bool:
        """Whether tensors are on their way from query and key to value."""
        return bool(self._traces)

    def _create(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        out = function(*args, **kwargs)
        self._origins.after(_name(function), args, kwargs, out)
        return out

    def _linear(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        if len(args) > 1 and type(args[1]) is nn.Parameter:
            return self._follow(function, args, kwargs)
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        if isinstance(weight, Tensor) and self._origins.is_static(weight):
            return self._follow(function, args, kwargs)
        return self._multiply(function, args, kwargs)

    def _multiply(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        out = function(*args, **kwargs)
        if isinstance(out, Tensor):
            self._try(partial(self._read_product, function, args, kwargs, out))
        return out

    def _read_product(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        out: Tensor,
    ) -> None:
        product = as_product(_name(function), args, kwargs)
        if product is None:
            return
        self._note(function, args, kwargs, out)
        if self._traces:
            known = [self._traces[operand] for operand in product.operands]
            if any(known) and self._continues(product, known, out):
                return
        if self._left:
            self._compare_with_left(product)
        self._begin(product, out)

    def _continues(self, product: Product, known: list[Trace | None], out: Tensor) -> bool:
        """Follow a product of something traced; whether it is no new product of query and key."""
        sums = [trace for trace in known if trace is not None and trace.stage == "summed"]
        if sums:  # linear attention: a sum over keys that is multiplied once more
            self._sink.parts_used(part.product for trace in sums for part in trace.parts)
            return True
        for stages in (("weights",), ("raised",), ("scores", "pairs")):
            for number, trace in enumerate(known):
                if trace is None or trace.stage not in stages:
                    continue
                others = [t for i, t in enumerate(product.operands) if i != number]
                if all(self._origins.is_static(other) for other in others):
                    axes = mixed(product, number, trace, out)
                    if axes is not None:
                        self._traces[out] = self._mixed(trace, product.operands[number], axes)
                    return True
                if trace.stage in ("weights", "raised"):
                    self._try(partial(self._meet, product, number, trace, out), trace)
                    return True
        return False

    def _mixed(self, trace: Trace, operand: Tensor, axes: Axes) -> Trace:
        """Return the trace behind a linear map of heads or features."""
        if trace.stage == "weights":
            if trace.own is None:
                trace = replace(trace, own=operand.detach(), own_axes=trace.axes)
            return replace(trace, axes=axes, changed="scaled")
        stage = "scores" if trace.stage == "pairs" else trace.stage
        sizes = trace.sizes | {atom.size for atoms in axes for atom in atoms}
        return replace(trace, stage=stage, axes=axes, sizes=sizes)

    def _leave(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Remember the shape of scores that go to another library."""
        trace = self._traces[args[0]] if args and isinstance(args[0], Tensor) else None
        if trace is not None and trace.stage in ("scores", "raised"):
            self._left[tuple(args[0].shape)] = trace.product
        return function(*args, **kwargs)

    def _compare_with_left(self, product: Product) -> None:
        """What comes back in the same shape, and multiplies an activation, may be weights."""
        for operand in product.operands:
            number = self._left.get(tuple(operand.shape))
            if number is not None and not self._origins.is_static(operand):
                self._sink.values_met(number)

    def _begin(self, product: Product, out: Tensor, stage: Any = "scores") -> None:
        """Follow a product of two activations, which may be scores."""
        origins = self._origins
        free = [i for i, t in enumerate(product.operands) if not origins.is_parameter(t)]
        if origins and len(free) > 2:
            free = [i for i in free if not origins.computed(product.operands[i])]
        if len(free) != 2 or not out.ndim or not (out.is_floating_point() or out.is_complex()):
            return
        axes = _sided(product, free, out)
        fixed = frozenset[int]()
        if origins:
            computed = [origins.computed(product.operands[i]) for i in free]
            if computed[0] != computed[1]:
                side = "left" if computed[0] else "right"
                fixed = numbers_in([a for atoms in axes for a in atoms if a.side == side])
        hiding: tuple[Hiding, ...] = ()
        if product.added is not None:
            hiding = (Hiding("added", product.added, tuple(out.shape), axes),)
        self._count += 1
        key = product.operands[free[1]]
        has_place = type(key) is Tensor and key.layout == torch.strided
        has_place = has_place and not is_functorch_wrapped_tensor(key)
        self._traces[out] = Trace(
            stage,
            axes,
            frozenset(out.shape),
            hiding,
            product=self._count,
            fixed=fixed,
            storage=key.untyped_storage().data_ptr() if has_place else 0,
            offset=int(key.storage_offset()) if has_place else 0,
        )

    def _combine(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        out = self._follow(function, args, kwargs)
        if len(args) < 2 or not isinstance(args[0], Tensor) or not isinstance(args[1], Tensor):
            return out
        left, right = args[:2]
        if left.shape == right.shape or not isinstance(out, Tensor) or out.ndim == 0:
            return out
        if self._traces and (self._traces[out] or self._traces[left] or self._traces[right]):
            return out
        self._try(partial(self._pair, _name(function), left, right, out))
        return out

    def _pair(self, name: str, left: Tensor, right: Tensor, out: Tensor) -> None:
        product = paired(name, left, right, out)
        if product is not None and not any(map(self._origins.is_static, (left, right))):
            self._begin(product, out, "pairs")

    def _join(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        out = self._follow(function, args, kwargs)
        if self._repeats and isinstance(out, Tensor) and args:
            dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
            self._try(partial(self._put_beside, args[0], dim, out))
        return out

    def _put_beside(self, tensors: Any, dim: Any, out: Tensor) -> None:
        product = beside(tensors, dim, out, self._repeats.of)
        if product is not None:
            self._begin(product, out, "pairs")

    def _repeat(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        out = self._follow(function, args, kwargs)
        if args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
            self._repeats.add(args[0], out)
        return out

    def _normalise(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        out = function(*args, **kwargs)
        self._try(partial(self._read_softmax, function, args, kwargs, out))
        return out

    def _read_softmax(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any
    ) -> None:
        scores = args[0] if args else kwargs.get("input")
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        if _name(function) == "gumbel_softmax":
            dim = kwargs.get("dim", args[4] if len(args) > 4 else -1)
        if not isinstance(scores, Tensor) or not isinstance(dim, int):
            return
        self._note(function, args, kwargs, out)
        trace = self._traces[scores] if self._traces else None
        if trace is None or trace.stage not in ("scores", "pairs"):
            return
        keys = frozenset[int]()
        if trace.axes is not None:
            atoms = trace.axes[dim]
            keys = numbers_in(atoms)
            if atoms and {atom.side for atom in atoms} not in ({"left"}, {"right"}):
                return  # over heads or features, or over queries and keys at once: a heat map
        if trace.stage == "pairs" and trace.axes is None:
            return
        if keys & trace.fixed:  # over what does not depend on the input: a router, a codebook
            return
        self._count += 1
        self._traces[out] = replace(
            trace,
            stage="weights",
            softmax=self._count,
            keys=keys,
            n_key=out.shape[dim],
            over_last=dim in (-1, out.ndim - 1),
        )
        self._sink.softmax_seen(trace.product)

    def _follow(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        if not self._traces:
            out = function(*args, **kwargs)
            self._note(function, args, kwargs, out)
            return out
        name = _name(function)
        given = args[0] if name in JOINS and args else (*args, *kwargs.values())
        found = self._traces.find(given)
        if found is None:
            out = function(*args, **kwargs)
            self._note(function, args, kwargs, out)
            return out
        source, trace = found
        begins = trace.stage == "summed" and begins_sum(name, args, source)
        before = None
        if trace.stage == "weights" and trace.own is None and works_in_place(name, args, kwargs):
            before = source.detach().clone()
        out = function(*args, **kwargs)
        custom = getattr(function, "custom", False)
        inside = self._traces[out] if custom and isinstance(out, Tensor) else None
        if begins:
            self._traces[args[0]] = trace
        elif inside is None or inside.stage == trace.stage:  # else it was followed inside
            step = Step(function, name, args, kwargs, source, trace, out, before, custom)
            self._try(partial(self._after, step), trace)
        return out

    def _note(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any
    ) -> None:
        """Note what does not depend on the input; nearly all else is told by its first argument."""
        first = args[0] if args else None
        if type(first) is Tensor and not self._origins.may_be_static(first):
            return
        self._origins.after(_name(function), args, kwargs, out)

    def _after(self, step: Step) -> None:
        stage = step.trace.stage
        if stage == "summed":
            self._after_summed(step)
        elif stage == "weighted":
            self._after_weighted(step)
        elif stage == "weights":
            for tensor, trace in after_weights(step, self._traces, self._origins):
                self._traces[tensor] = trace
                if trace.stage == "weighted":
                    self._after_times(trace, step.out)
        elif stage == "sums":
            target = step.target()
            if target is not None and not step.ends() and not step.reduces():
                self._traces[target] = step.trace
        else:
            for tensor, trace in after_scores(step, self._traces):
                if trace.stage == "weights" and trace.softmax < 0:
                    self._count += 1
                    trace = replace(trace, softmax=self._count)
                    self._sink.softmax_seen(trace.product)
                self._traces[tensor] = trace

    def _try(self, read: Callable[[], None], trace: Trace | None = None) -> None:
        """Read a call; tensors that cannot be read are the capture's trouble, not the model's."""
        try:
            read()
        except UnreadableError as error:
            self._give_up(trace, str(error), error.way_out)
        except Exception as error:
            self._give_up(trace, f"what it computes could not be followed ({error!r})", LEAVE_OUT)

    def _give_up(self, trace: Trace | None, what: str, way_out: str) -> None:
        place = self._sink.here()
        if place is not None:
            if trace is not None:
                self._sink.softmax_used(trace.product)
            self._sink.unreadable(place[1], what, way_out)

    def _after_times(self, trace: Trace, out: Tensor) -> None:
        """Weights that multiplied values element by element: one key at a time needs no sum."""
        assert trace.read is not None
        read, number = trace.read
        if trace.axes is None:
            return
        axes = [i for i, atoms in enumerate(trace.axes) if numbers_in(atoms) & trace.keys]
        letters = {read.letters[number][axis] for axis in axes}
        over_keys = replace(read, out=tuple(letter for letter in read.out if letter not in letters))
        weights = replace(trace, stage="weights", read=None)
        meeting = meeting_of(over_keys, number, weights, self._traces, self._origins)
        if meeting is None:
            return
        self._sink.values_met(trace.product)
        if trace.columns is not None:
            self._report_all(rows_in(meeting, self._columns), out)

    def _after_weighted(self, step: Step) -> None:
        """Values times weights, element by element: summed over the keys, that was attention."""
        trace = step.trace
        assert trace.read is not None
        if step.name != "sum":
            if isinstance(step.out, Tensor) and step.out.shape == step.source.shape:
                self._traces[step.out] = trace
            return
        dims = step.reduced_dims()
        if dims is None:
            return
        read, number = trace.read
        gone = {read.out[dim] for dim in dims}
        read = replace(read, out=tuple(letter for letter in read.out if letter not in gone))
        weights = replace(trace, stage="weights", read=None)
        self._meet(read, number, weights, step.out)

    def _meet(self, product: Product, number: int, trace: Trace, out: Tensor) -> None:
        require_numbers(product.operands[number])
        meeting = meeting_of(product, number, trace, self._traces, self._origins)
        if meeting is None:
            if trace.stage == "weights" and not trace.over_last:
                # A softmax over the queries assigns each key to one of them: no row is weights.
                self._sink.softmax_used(trace.product)
            return
        if trace.stage == "weights":
            self._sink.values_met(trace.product)
        found = rows_in(meeting, self._columns)
        if found:
            self._report_all(found, out)
        elif trace.stage == "raised" and meeting.rows is not None:
            part = Part(meeting.rows, None, trace.product, trace.storage, trace.offset)
            self._traces[out] = replace(meeting.trace, stage="summed", parts=(part,))
            if trace.shifted:
                self._sink.part_seen(trace.product)

    def _after_summed(self, step: Step) -> None:
        """Follow raised scores that multiplied values until they are divided by their own sums."""
        trace, target = step.trace, step.target()
        numbers = [part.product for part in trace.parts]
        if step.name in QUOTIENTS and step.args[0] is not step.source:  # it divides something else
            self._sink.parts_used(numbers)
            return
        with torch.no_grad():
            summed = after_summed(step, self._traces)
        if summed.trouble is not None:
            place = self._sink.here()
            if place is not None:
                self._sink.unreadable(place[1], *summed.trouble)
        if summed.weights is not None:
            self._sink.parts_used(numbers)
            self._report(Rows(summed.weights, None, trace), step.out)
        if summed.trace is not None and target is not None:
            self._traces[target] = summed.trace

    def _report_all(self, found: list[Rows], out: Tensor) -> None:
        for rows in found:
            for trace in (rows.trace, *rows.trace.also):
                self._sink.softmax_used(trace.product)
        for rows in found:
            self._report(rows, out)

    def _report(self, rows: Rows, out: Tensor) -> None:
        place = self._sink.here()
        if place is None:
            return
        trace = rows.trace
        if trace.softmax >= 0:
            if trace.softmax in self._reported:
                return
            self._reported.add(trace.softmax)
        module, name = place
        build = partial(call_of, module, name, rows, out, self._visible)
        self._sink.record(name, "softmax", build)


def _name(function: Callable[..., Any]) -> str:
    """Name of a function, without the overload that ``torch.ops`` writes behind it."""
    return str(getattr(function, "__name__", "")).partition(".")[0]


def _sided(product: Product, free: list[int], out: Tensor) -> Axes:
    """Number the axes of a product of query and key, in the order in which those have them."""
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
