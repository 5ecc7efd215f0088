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
from functools import partial
from typing import Any, Final

from torch import Tensor, nn

from attncheck.capture.call import Sink
from attncheck.capture.copies import Watched
from attncheck.capture.follow.alike import SUMS
from attncheck.capture.follow.axes import JOINS
from attncheck.capture.follow.beginnings import Beginnings
from attncheck.capture.follow.edges import BY_INDEX
from attncheck.capture.follow.meetings import Meetings
from attncheck.capture.follow.orders import Orders
from attncheck.capture.follow.origins import CREATIONS, DRAWS, Origins, tensors_in
from attncheck.capture.follow.outside import Outside
from attncheck.capture.follow.pairs import COMBINATIONS, MULTIPLICATIONS, REPEATS
from attncheck.capture.follow.products import PAIRED, PRODUCTS, Product, as_product
from attncheck.capture.follow.scores import after_scores, mixed
from attncheck.capture.follow.steps import Step, first_ahead, name_of, works_in_place
from attncheck.capture.follow.sums import after_sums
from attncheck.capture.follow.tiles import begins_sum
from attncheck.capture.follow.traces import Trace, Traces
from attncheck.capture.plain import UnreadableError
from attncheck.capture.recorders.fused_kernels import floats_in
from attncheck.capture.recorders.kernels import FOREIGN

__all__ = ["SoftmaxWatcher"]

SOFTMAXES: Final = (
    *("softmax", "_softmax", "special_softmax", "_masked_softmax", "softmin", "_safe_softmax"),
    *("gumbel_softmax", "log_softmax", "_log_softmax", "special_log_softmax"),
)


LEAVE_OUT: Final = "Pass strict=False to keep the other layers"


class SoftmaxWatcher:
    """Reports hand-written softmax attention.

    Args:
        sink: Where to report.
        traces: Of the tensors that are followed.
        orders: Follows outputs whose heads are not told yet.
    """

    def __init__(self, sink: Sink, traces: Traces, orders: Orders) -> None:
        self._sink, self._traces, self._orders = sink, traces, orders
        self._origins = Origins(sink)
        self._beginnings = Beginnings(sink, self._traces, self._origins)
        self._meetings = Meetings(sink, self._traces, self._origins, orders)
        self._outside = Outside(sink, self._traces, self._origins)

    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """Names of the functions watched; the empty name is for all others."""
        return {
            **dict.fromkeys(CREATIONS | DRAWS, self._create),
            **dict.fromkeys(REPEATS, self._repeat),
            **dict.fromkeys(PRODUCTS, self._multiply),
            **dict.fromkeys(SOFTMAXES, self._normalise),
            **dict.fromkeys(COMBINATIONS, self._combine),
            **dict.fromkeys(JOINS, self._join),
            **dict.fromkeys(BY_INDEX, self._pick),
            "bilinear": self._meet,
            **dict.fromkeys(("numpy", "__array__", "__dlpack__", "tolist"), self._outside.leave),
            **dict.fromkeys(SUMS, self._sum),
            "linear": self._linear,
            "_sparse_softmax": self._outside.normalise_sparse,
            FOREIGN: self._call_kernel,
            "": self._follow,
        }

    def follows(self, first: Tensor | None = None, /) -> bool:
        """Whether tensors are on their way from query and key to value, or may be constant."""
        if self._traces.under_way:
            return True
        return first is not None and self._origins.may_be_static(first)

    def _create(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        out = function(*args, **kwargs)
        self._origins.after(name_of(function), args, kwargs, out)
        return out

    def _linear(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        if len(args) > 1 and type(args[1]) is nn.Parameter:
            return self._see(function, args, kwargs)
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        if isinstance(weight, Tensor) and self._origins.is_static(weight):
            return self._follow(function, args, kwargs)
        return self._multiply(function, args, kwargs)

    def _multiply(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        if not (kwargs or self._traces.under_way or self._outside) and self._is_map(
            name_of(function), args
        ):
            return function(*args)
        out = function(*args, **kwargs)
        if isinstance(out, Tensor):
            self._try(partial(self._read_product, function, args, kwargs, out))
        return out

    def _is_map(self, name: str, args: tuple[Any, ...]) -> bool:
        """Whether a parameter multiplies what depends on the input: neither scores nor constant."""
        if name not in PAIRED or not 1 < len(args) < 4:
            return False
        for factor, other in (args[-2:], args[:-3:-1]):
            if type(factor) is nn.Parameter and type(other) is Tensor:
                return not self._origins.may_be_static(other)
        return False

    def _read_product(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        out: Tensor,
    ) -> None:
        product = as_product(name_of(function), args, kwargs)
        if product is None:
            return
        self._note(function, args, kwargs, out)
        if self._traces:
            known = [self._traces[operand] for operand in product.operands]
            if any(known) and self._continues(product, known, out):
                return
        if self._outside:
            self._outside.compare(product)
        self._beginnings.scores(product, out)

    def _continues(self, product: Product, known: list[Trace | None], out: Tensor) -> bool:
        """Follow a product of something traced; whether it is no new product of query and key."""
        sums = [trace for trace in known if trace is not None and trace.stage == "summed"]
        if sums:  # linear attention: a sum over keys that is multiplied once more
            self._sink.parts_used(part.product for trace in sums for part in trace.parts)
            return True
        for number, trace in enumerate(known):
            if trace is not None and trace.stage == "attended":
                self._attended(product, number, trace, out)
            if trace is not None and trace.edges:
                self._beginnings.edge.multiplied(product.operands[number], trace, out)
                return True
        for stages in (("weights",), ("raised",), ("scores", "pairs")):
            for number, trace in enumerate(known):
                if trace is None or trace.stage not in stages:
                    continue
                others = [t for i, t in enumerate(product.operands) if i != number]
                if all(self._origins.is_static(other) for other in others):
                    self._mix(product, number, trace, out)
                    return True
                if trace.stage in ("weights", "raised"):
                    self._sink.softmax_left(trace.product)
                    self._try(partial(self._meetings.meet, product, number, trace, out), trace)
                    return True
        return False

    def _mix(self, product: Product, number: int, trace: Trace, out: Tensor) -> None:
        """Follow what a linear map, of heads or features, makes of something traced."""
        mixture = mixed(product, number, trace, out)
        if mixture is not None:
            self._traces[out] = mixture
        elif trace.stage == "weights":
            self._sink.softmax_left(trace.product)

    def _attended(self, product: Product, number: int, trace: Trace, out: Tensor) -> None:
        others = [t for i, t in enumerate(product.operands) if i != number]
        if all(map(self._origins.is_static, others)):
            self._orders.multiplied(product, number, trace, out)

    def _combine(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        out = self._see(function, args, kwargs)
        if len(args) < 2 or not isinstance(args[0], Tensor) or not isinstance(args[1], Tensor):
            if args:
                self._beginnings.alike.scaled(args[0], out)
            return out
        left, right = args[:2]
        if name_of(function) in MULTIPLICATIONS and left.shape == right.shape:
            self._beginnings.alike.remember(left, right, out)
        if self._beginnings.edge and not (self._traces and self._traces[out]):
            self._beginnings.edges(args[:2], out)
        if not isinstance(out, Tensor) or out.ndim == 0:
            return out
        if left.shape == right.shape and not self._beginnings.repeats:
            return out
        if self._traces and (self._traces[out] or self._traces[left] or self._traces[right]):
            return out
        if left.shape == right.shape:
            if not any(map(self._origins.is_static, (left, right))):
                self._try(partial(self._beginnings.pairs_repeated, left, right, out))
        else:
            self._try(partial(self._beginnings.pairs, name_of(function), left, right, out))
        return out

    def _sum(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        out = self._see(function, args, kwargs)
        args, kwargs = first_ahead(args, kwargs, "input")
        if args and self._beginnings.alike.has(args[0]):
            self._try(partial(self._beginnings.summed, function, args, kwargs, out))
        return out

    def _join(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        args, kwargs = first_ahead(args, kwargs, "tensors")
        out = self._see(function, args, kwargs)
        if self._beginnings.edge and args and isinstance(args[0], tuple | list):
            self._beginnings.edges(args[0], out)
        if self._beginnings.repeats and isinstance(out, Tensor) and args:
            dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
            self._try(partial(self._beginnings.pairs_beside, args[0], dim, out))
        return out

    def _meet(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Let query and key of each pair meet in a bilinear form."""
        out = self._see(function, args, kwargs)
        if self._beginnings.repeats and isinstance(out, Tensor):
            self._try(partial(self._beginnings.pairs_beside, args[:2], -1, out))
        return out

    def _repeat(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        out = self._see(function, args, kwargs)
        if args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
            self._beginnings.repeats.add(name_of(function), args[0], out)
        return out

    def _pick(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        out = self._see(function, args, kwargs)
        if args and isinstance(args[0], Tensor) and not self._origins.is_static(args[0]):
            self._beginnings.edge.pick(args, kwargs, out)
        return out

    def _normalise(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        out = function(*args, **kwargs)
        self._try(partial(self._beginnings.softmax, name_of(function), args, kwargs, out))
        self._note(function, args, kwargs, out)
        return out

    def _call_kernel(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Follow a kernel of somebody's, and tell of one that computes attention as a whole."""
        recorded = self._sink.records
        given = (*args, *kwargs.values())
        held = [tensor for tensor in tensors_in(given) if self._origins.computed(tensor)]
        watched = Watched(held)
        out = self._follow(function, args, kwargs, custom=True)
        if held and not all(map(self._origins.is_static, tensors_in(given))):
            self._try(lambda: self._origins.forget(watched.overwritten()))
        if self._sink.records == recorded and not getattr(function, "scripted", False):
            self._try(partial(self._outside.look_into, function, given, out))
        return out

    def _see(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Do what is done for all other functions."""
        first = args[0] if args else None
        if type(first) is Tensor and "out" not in kwargs and not self.follows(first):
            return function(*args, **kwargs)
        return self._follow(function, args, kwargs)

    def _follow(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        custom: bool = False,
    ) -> Any:
        name = "" if custom else name_of(function)
        if not self._traces.under_way:
            out = function(*args, **kwargs)
            self._origins.after(name, args, kwargs, out)
            return out
        given = args[0] if name in JOINS and args else (*args, *kwargs.values())
        if custom:
            given = tensors_in(given)
        found = self._traces.find(given)
        if found is None:
            out = function(*args, **kwargs)
            self._note(function, args, kwargs, out)
            return out
        source, trace = found
        begins = trace.stage == "summed" and begins_sum(name, args, source)
        before = None
        overwrites = custom or works_in_place(name, args, kwargs)
        if overwrites and trace.stage == "weights" and trace.own is None:
            before = source.detach().clone()
        watched = Watched(floats_in(given)) if custom else None
        out = function(*args, **kwargs)
        if not custom:
            self._note(function, args, kwargs, out)
        inside = self._traces[out] if custom and isinstance(out, Tensor) else None
        if begins:
            self._traces[args[0]] = trace
        elif inside is None or inside.stage == trace.stage:  # else it was followed inside
            named = first_ahead(args, kwargs, "condition" if name == "where" else "input")
            step = Step(function, name, *named, source, trace, out, before, custom)
            self._try(partial(self._after_kernel, step, watched), trace)
        return out

    def _note(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        out: Any,
    ) -> None:
        """Note what does not depend on the input; nearly all else is told by its first argument."""
        first = args[0] if args and "out" not in kwargs else None
        if type(first) is Tensor and not self._origins.may_be_static(first):
            return
        self._origins.after(name_of(function), args, kwargs, out)

    def _after_kernel(self, step: Step, watched: Watched | None) -> None:
        self._after(step if watched is None else step.having_written(watched.overwritten()))

    def _after(self, step: Step) -> None:
        stage = step.trace.stage
        if stage == "attended":
            self._orders.after(step)
        elif step.trace.edges:
            self._beginnings.edge.after(step)
        elif stage == "summed":
            self._meetings.after_summed(step)
        elif stage == "weighted":
            self._meetings.after_weighted(step)
        elif stage == "weights":
            if not self._meetings.after_weights(step):
                self._sink.softmax_left(step.trace.product)
                if step.custom:
                    self._outside.weigh(step.trace, (*step.args, *step.kwargs.values()))
        elif stage == "sums":
            for tensor, trace in after_sums(step, self._traces):
                self._traces[tensor] = trace
        else:
            self._after_scores(step)

    def _after_scores(self, step: Step) -> None:
        if step.custom and self._beginnings.softmax_inside(step):
            return
        if step.trace.stage == "raised" and self._meetings.weigh(step):
            return
        for tensor, trace in after_scores(step, self._traces):
            if trace.stage == "weights" and trace.softmax < 0:
                trace = trace.but(softmax=self._beginnings.number())
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
