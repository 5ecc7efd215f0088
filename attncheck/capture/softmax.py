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
from typing import Any, Final

import torch
from torch import Tensor, nn

from attncheck.attention.masks import HIDDEN_BELOW
from attncheck.capture.call import AttentionCall, Sink
from attncheck.capture.plain import UnreadableError, require_numbers
from attncheck.capture.products import Product, as_product
from attncheck.capture.shapes import Layout
from attncheck.capture.traces import Hiding, Trace, Traces
from attncheck.capture.whereabouts import kind_of
from attncheck.tolerances import tolerance_for

__all__ = ["SoftmaxWatcher"]

PRODUCTS: Final = ("matmul", "__matmul__", "__rmatmul__", "bmm", "einsum", "baddbmm")
SOFTMAXES: Final = ("softmax", "_softmax", "special_softmax", "_masked_softmax")
ENDS: Final = frozenset(
    {
        *("linear", "addmm", "mm", "conv1d", "conv2d", "cumsum", "sort", "topk"),
        *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"),
        *("new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"),
    }
)
"""Functions behind which a tensor is no longer scores or weights, or only has their shape."""

REDUCTIONS: Final = frozenset(
    {"sum", "mean", "max", "min", "amax", "amin", "norm", "logsumexp", "std", "var", "any", "all"}
)
"""Functions that end it too, where they return fewer numbers than they got."""

EXPONENTIALS: Final = ("exp", "exp_")
QUOTIENTS: Final = ("div", "div_", "true_divide", "__truediv__", "__itruediv__")
"""Ways to divide by the sum of the raised scores after they multiplied the values."""

RESHAPES: Final = ("view", "reshape", "flatten", "unflatten", "ravel")
"""Functions that merge or split axes."""

JOINS: Final = ("cat", "concat", "concatenate")
"""Functions that take their tensors as one list."""

ROWS: Final = 8


class SoftmaxWatcher:
    """Reports hand-written softmax attention.

    Args:
        sink: Where to report.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._traces = Traces()
        self._count = 0
        self._reported: set[int] = set()

    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """Names of the functions watched; the empty name is for all others."""
        return {
            **dict.fromkeys(PRODUCTS, self._multiply),
            **dict.fromkeys(SOFTMAXES, self._normalise),
            "": self._follow,
        }

    def _multiply(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        out = function(*args, **kwargs)
        product = as_product(function.__name__, args, kwargs)
        if product is None or not isinstance(out, Tensor):
            return out
        for operand, is_left in ((product.left, True), (product.right, False)):
            trace = self._traces[operand]
            if trace is not None and trace.stage in ("weights", "raised"):
                other = product.right if is_left else product.left
                if not _is_parameter(other):
                    self._try_link(product, operand, trace, out, is_left=is_left)
                return out
        if out.ndim >= 2 and not _is_parameter(product.left) and not _is_parameter(product.right):
            added: tuple[Hiding, ...] = ()
            if product.added is not None:
                added = (("added", product.added),)
            self._count += 1
            self._traces[out] = Trace("scores", frozenset(out.shape), added, product=self._count)
        return out

    def _normalise(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        out = function(*args, **kwargs)
        scores = args[0] if args else kwargs.get("input")
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        if not isinstance(scores, Tensor) or not isinstance(dim, int) or not self._traces:
            return out
        trace = self._traces[scores]
        if trace is not None and trace.stage == "scores":
            self._count += 1
            self._traces[out] = replace(
                trace,
                stage="weights",
                softmax=self._count,
                n_key=out.shape[dim],
                over_last=dim in (-1, out.ndim - 1),
            )
            self._sink.softmax_seen(trace.product)
        return out

    def _follow(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        if not self._traces:
            return function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        given = args[0] if name in JOINS and args else (*args, *kwargs.values())
        found = self._traces.first(given)
        out = function(*args, **kwargs)
        if found is None or name in ENDS:
            return out
        source, trace = found
        if trace.stage == "summed":
            self._divide(name, trace, args, out)
            return out
        target = args[0] if name == "__setitem__" else out
        if not isinstance(target, Tensor) or not target.is_floating_point():
            return out
        if name in REDUCTIONS and target.numel() < source.numel():
            return out
        if trace.stage == "scores":
            trace = trace.with_hiding(*_hiding(name, source, args, kwargs))
            if name not in RESHAPES:
                trace = replace(trace, sizes=trace.sizes | set(target.shape))
            if name in EXPONENTIALS:
                trace = replace(trace, stage="raised")
        elif name == "__getitem__":
            trace = replace(trace, sliced=True)
        elif target.numel() < source.numel():
            return out
        elif "dropout" in name and _drops(args, kwargs):
            trace = replace(trace, clean=source.detach())
        self._traces[target] = trace
        return out

    def _try_link(
        self, product: Product, operand: Tensor, trace: Trace, out: Tensor, *, is_left: bool
    ) -> None:
        """Link weights and values, if they hold numbers."""
        try:
            require_numbers(operand)
            self._link(product, operand, trace, out, is_left=is_left)
        except UnreadableError as error:
            place = self._sink.here()
            if place is not None:
                self._sink.softmax_used(trace.product)
                self._sink.unreadable(place[1], str(error), error.way_out)

    def _link(
        self, product: Product, operand: Tensor, trace: Trace, out: Tensor, *, is_left: bool
    ) -> None:
        weights = product.rows_of(operand, is_left=is_left)
        if weights is None:
            return
        if trace.stage == "raised":
            trace = replace(trace, n_key=weights.shape[-1] + trace.sliced)
        if trace.n_key not in trace.sizes:  # a softmax over several axes at once: a heat map
            return
        if weights.shape[-1] not in (trace.n_key, trace.n_key - trace.sliced):
            if weights.shape[-2] == trace.n_key and not trace.over_last:
                # A softmax over the queries assigns each key to one of them: no row is weights.
                self._sink.softmax_used(trace.product)
            return
        if trace.clean is not None:
            if trace.clean.shape != operand.shape:
                return
            weights = product.rows_of(trace.clean, is_left=is_left)
            assert weights is not None
        if not _sums_to_one(weights, sliced=trace.sliced):
            if trace.stage == "raised":
                self._traces[out] = replace(trace, stage="summed", clean=weights)
            return
        self._report(weights, trace, out)

    def _divide(self, name: str, trace: Trace, args: tuple[Any, ...], out: Any) -> None:
        """Report raised scores that multiplied values, now divided by their own sums."""
        raised = trace.clean
        divisor = args[1] if name in QUOTIENTS and len(args) > 1 else None
        if raised is None or not isinstance(divisor, Tensor):
            return
        with torch.no_grad():
            sums = raised.sum(-1, keepdim=True)
            if divisor.numel() != sums.numel():
                return
            if torch.allclose(divisor.flatten(), sums.flatten()):
                self._report(raised / sums, trace, out)

    def _report(self, weights: Tensor, trace: Trace, out: Tensor) -> None:
        place = self._sink.here()
        if place is None:
            return
        if trace.stage == "weights":
            self._sink.softmax_used(trace.product)
            if trace.softmax in self._reported:
                return
            self._reported.add(trace.softmax)
        module, name = place
        self._sink.record(name, "softmax", lambda: _as_call(module, name, weights, trace, out))


def _as_call(
    module: nn.Module, name: str, weights: Tensor, trace: Trace, out: Tensor
) -> AttentionCall:
    layout = Layout.of(module, weights)
    seen = _visible(trace, weights)
    mask = None if seen is None else layout.apply(seen)
    weights = layout.apply(weights.detach())
    n_query, n_key = weights.shape[-2:]
    causal = mask is None and n_query == n_key > 1 and not bool(weights.triu(1).any())
    return AttentionCall(
        name=name,
        backend="softmax",
        kind=kind_of(module, name, n_query, n_key, causal=causal),
        output=out,
        weights=weights,
        mask=mask,
        causal=causal,
        sink_is_rest=trace.sliced,
    )


def _visible(trace: Trace, weights: Tensor) -> Tensor | None:
    """Merge the masks that the model applied, as far as they fit the weights as they lie."""
    seen: Tensor | None = None
    for how, mask in trace.hiding:
        if how == "added":
            shown = mask > HIDDEN_BELOW
            if bool(shown.all()):
                continue
        else:
            shown = mask.bool() if how == "visible" else ~mask.bool()
        try:
            shown = shown.broadcast_to(weights.shape)
        except RuntimeError:
            return None
        seen = shown if seen is None else seen & shown
    return seen


def _hiding(
    name: str, source: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Hiding]:
    """Read the mask out of a call that masks scores."""
    plain = name.strip("_").removeprefix("i")
    values = (*args, *kwargs.values())
    if plain == "masked_fill" and len(values) > 2 and _is_low(values[2]):
        return [("hidden", values[1])]
    if plain == "where" and len(values) > 2 and isinstance(values[0], Tensor):
        condition, yes, no = values[:3]
        if yes is source and _is_low(no):
            return [("visible", condition)]
        if no is source and _is_low(yes):
            return [("hidden", condition)]
        if condition is source and _is_low(no):  # Tensor.where(condition, other)
            return [("visible", yes)]
    if plain in ("add", "radd"):
        others = [value for value in values if isinstance(value, Tensor) and value is not source]
        return [("added", other.detach()) for other in others if other.is_floating_point()]
    return []


def _is_low(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and float(value) <= HIDDEN_BELOW
    return isinstance(value, int | float) and value <= HIDDEN_BELOW


def _drops(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of dropout changes anything."""
    share = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
    training = args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", True))
    return bool(training) and float(share) > 0


def _sums_to_one(weights: Tensor, *, sliced: bool) -> bool:
    """Whether a few rows are weights: the axis that is summed is the axis of the softmax."""
    with torch.no_grad():
        count = min(weights.shape[-2], ROWS)
        rows = torch.linspace(0, weights.shape[-2] - 1, count, device=weights.device).long()
        sums = weights[..., rows, :].sum(-1, dtype=torch.float64)
        allowed = tolerance_for(weights.dtype).row_sum
        fine = (sums - 1).abs() <= allowed
        if sliced:
            fine = sums <= 1 + allowed
        return bool((fine | (sums == 0) | sums.isnan()).all())


def _is_parameter(tensor: Tensor) -> bool:
    """Whether a tensor is a parameter or a view of one: then a product with it is a linear map."""
    return isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)
