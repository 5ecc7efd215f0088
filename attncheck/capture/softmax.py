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

from attncheck.capture.call import AttentionCall, Sink
from attncheck.capture.hiding import VisibleKeys, hiding_in
from attncheck.capture.pairs import COMBINATIONS, lengths_of_pairs, rows_of_sum, scores_from_pairs
from attncheck.capture.parts import CUTS, Columns, after_mixing, cut, keys_last, sums_to_one
from attncheck.capture.plain import UnreadableError, require_numbers
from attncheck.capture.products import Product, as_product, is_parameter, place_of
from attncheck.capture.shapes import Layout
from attncheck.capture.steps import (
    DIFFERENCES,
    EXPONENTIALS,
    JOINS,
    QUOTIENTS,
    RESHAPES,
    TIMES,
    Step,
    mixes_heads,
)
from attncheck.capture.tiles import after_summed, begins_sum
from attncheck.capture.traces import Hiding, Part, Trace, Traces
from attncheck.capture.whereabouts import kind_of

__all__ = ["SoftmaxWatcher"]

PRODUCTS: Final = ("matmul", "__matmul__", "__rmatmul__", "bmm", "mm", "einsum", "baddbmm", "cdist")
SOFTMAXES: Final = ("softmax", "_softmax", "special_softmax", "_masked_softmax")


class SoftmaxWatcher:
    """Reports hand-written softmax attention.

    Args:
        sink: Where to report.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._traces = Traces()
        self._columns = Columns()
        self._visible = VisibleKeys()
        self._count = 0
        self._reported: set[int] = set()
        self._next: Mapping[str, Callable[[Step], None]] = {
            "pairs": self._after_pairs,
            "scores": self._after_scores,
            "raised": self._after_scores,
            "weights": self._after_weights,
            "weighted": self._after_weighted,
            "summed": self._after_summed,
        }

    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """Names of the functions watched; the empty name is for all others."""
        return {
            **dict.fromkeys(PRODUCTS, self._multiply),
            **dict.fromkeys(SOFTMAXES, self._normalise),
            **dict.fromkeys(COMBINATIONS, self._combine),
            "": self._follow,
        }

    def follows(self) -> bool:
        """Whether tensors are on their way from query and key to value."""
        return bool(self._traces)

    def _multiply(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        out = function(*args, **kwargs)
        product = as_product(function.__name__, args, kwargs)
        if product is None or not isinstance(out, Tensor):
            return out
        known = self._traces[product.left], self._traces[product.right]
        sums = [trace for trace in known if trace is not None and trace.stage == "summed"]
        if sums:  # linear attention: a sum over keys that is multiplied once more
            self._sink.parts_used(part.product for trace in sums for part in trace.parts)
            return out
        for operand, trace, is_left in zip(
            (product.left, product.right), known, (True, False), strict=True
        ):
            if trace is None:
                continue
            other = product.right if is_left else product.left
            if is_parameter(other) and mixes_heads(operand, out):
                self._traces[out] = after_mixing(trace, operand)
                return out
            if trace.stage in ("weights", "raised"):
                if not is_parameter(other):
                    self._try(partial(self._link, product, operand, trace, out, is_left), trace)
                return out
            if trace.stage == "pairs" and scores_from_pairs("matmul", operand, out):
                self._traces[out] = replace(trace, stage="scores")
                return out
        if out.ndim >= 2 and not is_parameter(product.left) and not is_parameter(product.right):
            added: tuple[Hiding, ...] = ()
            if product.added is not None:
                added = (("added", product.added),)
            self._count += 1
            storage, offset = place_of(product.right)
            self._traces[out] = Trace(
                "scores",
                frozenset(out.shape),
                added,
                product=self._count,
                storage=storage,
                offset=offset,
            )
        return out

    def _combine(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        if self._traces and self._traces.first(args) is not None:
            return self._follow(function, args, kwargs)
        out = function(*args, **kwargs)
        lengths = lengths_of_pairs(args)
        if lengths and isinstance(out, Tensor):
            self._count += 1
            self._traces[out] = Trace("pairs", lengths, product=self._count)
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
        if found is None:
            return function(*args, **kwargs)
        source, trace = found
        begins = trace.stage == "summed" and begins_sum(name, args, source)
        out = function(*args, **kwargs)
        custom = getattr(function, "custom", False)
        inside = self._traces[out] if custom and isinstance(out, Tensor) else None
        if begins:
            self._traces[args[0]] = trace
        elif inside is None or inside.stage == trace.stage:  # else it was followed inside
            step = Step(name, args, kwargs, source, trace, out, custom)
            self._try(partial(self._next[trace.stage], step), trace)
        return out

    def _try(self, read: Callable[[], None], trace: Trace) -> None:
        """Read a call; tensors that cannot be read are the capture's trouble, not the model's."""
        try:
            read()
        except UnreadableError as error:
            place = self._sink.here()
            if place is not None:
                self._sink.softmax_used(trace.product)
                self._sink.unreadable(place[1], str(error), error.way_out)

    def _after_pairs(self, step: Step) -> None:
        made = scores_from_pairs(step.name, step.source, step.out)
        if made is not None:
            self._traces[step.out] = replace(step.trace, stage="scores" if made else "pairs")

    def _after_scores(self, step: Step) -> None:
        trace, target = step.trace, step.target()
        if target is None or (step.ends() and not step.mixes()):
            return
        if trace.stage == "raised":
            if step.name == "__getitem__" and target.numel() < step.source.numel():
                trace = replace(trace, sliced=True)
            elif target.numel() < step.source.numel():
                return
            self._traces[target] = trace
            return
        trace = trace.with_hiding(*hiding_in(step.name, step.source, step.args, step.kwargs))
        if step.name not in RESHAPES:
            trace = replace(trace, sizes=trace.sizes | set(target.shape))
        if step.name in DIFFERENCES and any(t.shape[-1:] == (1,) for t in step.others()):
            trace = replace(trace, shifted=True)
        if step.name in JOINS:
            known = [self._traces[part] is not None for part in step.args[0]]
            trace = replace(trace, foreign=trace.foreign or not all(known))
        elif step.name in EXPONENTIALS:
            trace = replace(trace, stage="raised")
        self._traces[target] = trace

    def _after_weights(self, step: Step) -> None:
        trace, source = step.trace, step.source
        if step.name in CUTS:
            for part, cut_trace in cut(source, step.out, trace):
                self._traces[part] = cut_trace
            return
        target = step.target()
        if target is not None and step.mixes():
            last = step.name == "linear"
            self._traces[target] = after_mixing(trace, source, heads_last=last)
            return
        if target is None or step.ends() or target.numel() < source.numel():
            return
        if step.name in TIMES and target.numel() > source.numel():
            others = step.others()
            if trace.columns is None and trace.whole is None and not is_parameter(others[0]):
                rows = source if trace.clean is None else trace.clean.reshape(source.shape)
                weighted = replace(trace, stage="weighted", clean=rows.detach(), value=others[0])
                self._traces[target] = weighted
            return
        if step.drops():
            trace = replace(trace, clean=source.detach())
        elif trace.clean is not None:
            trace = replace(trace, clean=step.alike(trace.clean))
        self._traces[target] = trace

    def _after_weighted(self, step: Step) -> None:
        """Values times weights, element by element: summed over the keys, that was attention."""
        if step.name != "sum":
            if isinstance(step.out, Tensor) and step.out.numel() == step.source.numel():
                self._traces[step.out] = step.trace
            return
        dim = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim")
        dim = dim[0] if isinstance(dim, tuple | list) and len(dim) == 1 else dim
        if isinstance(dim, int):
            rows = rows_of_sum(step.trace, step.source, dim)
            if rows is not None and sums_to_one(require_numbers(rows)):
                self._report(rows, step.trace, step.out)

    def _link(
        self, product: Product, operand: Tensor, trace: Trace, out: Tensor, is_left: bool
    ) -> None:
        require_numbers(operand)
        if trace.columns is not None:
            if self._columns.completed_by(trace):
                self._report_whole(trace, out)
            return
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
            same = trace.clean.shape == operand.shape
            weights = product.rows_of(trace.clean, is_left=is_left) if same else None
        self._judge(weights, trace, out)

    def _judge(self, weights: Tensor | None, trace: Trace, out: Tensor) -> None:
        """Report what multiplied values, if its rows are weights or can become them."""
        if weights is None:
            return
        if trace.whole is not None:
            self._report_whole(trace, out)
        elif sums_to_one(weights, sliced=trace.sliced):
            self._report(weights, trace, out)
        elif trace.stage == "raised":
            part = Part(weights, None, trace.product, trace.storage, trace.offset)
            self._traces[out] = replace(trace, stage="summed", clean=None, parts=(part,))
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
            self._report(summed.weights, trace, step.out)
        if summed.trace is not None and target is not None:
            self._traces[target] = summed.trace

    def _report_whole(self, trace: Trace, out: Tensor) -> None:
        assert trace.whole is not None
        weights = keys_last(trace.whole, trace.n_key)
        if weights is not None:
            self._report(weights, trace, out)

    def _report(self, weights: Tensor, trace: Trace, out: Tensor) -> None:
        place = self._sink.here()
        if place is None:
            return
        if trace.stage in ("weights", "weighted"):
            self._sink.softmax_used(trace.product)
            if trace.softmax in self._reported:
                return
            self._reported.add(trace.softmax)
        module, name = place
        build = partial(_as_call, module, name, weights, trace, out, self._visible)
        self._sink.record(name, "softmax", build)


def _as_call(
    module: nn.Module,
    name: str,
    weights: Tensor,
    trace: Trace,
    out: Tensor,
    visible: VisibleKeys,
) -> AttentionCall:
    layout = Layout.of(module, weights)
    with torch.no_grad():
        as_used, weights = weights, layout.apply(weights.detach())
        seen = visible.of(trace, as_used, weights)
        mask = None if seen is None else seen if seen.ndim == 4 else layout.apply(seen)
        n_query, n_key = weights.shape[-2:]
        causal = mask is None and n_query == n_key > 1 and _sees_no_later(weights)
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


def _sees_no_later(weights: Tensor) -> bool:
    """Whether no query has weight on a key behind it; few rows tell most that do."""
    if bool(weights[:, :, 0, 1:].any()):
        return False
    return not bool(weights.triu(1).any())
