"""Report attention where weights meet values, by whichever kind of product."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

import torch
from torch import Tensor

from attncheck.capture.call import Sink
from attncheck.capture.follow.axes import numbers_in
from attncheck.capture.follow.hiding import VisibleKeys
from attncheck.capture.follow.orders import Orders
from attncheck.capture.follow.origins import Origins
from attncheck.capture.follow.parts import Columns
from attncheck.capture.follow.products import Product
from attncheck.capture.follow.reports import call_of
from attncheck.capture.follow.stacks import is_own_key
from attncheck.capture.follow.steps import QUOTIENTS, Step
from attncheck.capture.follow.sums import sums_among
from attncheck.capture.follow.tiles import after_summed
from attncheck.capture.follow.traces import Part, Trace, Traces
from attncheck.capture.follow.values import Meeting, Rows, is_over_queries, meeting_of, rows_in
from attncheck.capture.follow.weighed import Weighed, weighed
from attncheck.capture.follow.weights import after_weights
from attncheck.capture.plain import require_numbers

__all__ = ["Meetings"]

FUSED: Final = ("addcmul", "addcmul_")
"""Functions that add a product to their first argument."""


class Meetings:
    """Reads products of weights and values, and reports each softmax once.

    Args:
        sink: Where to report.
        traces: Of the tensors that are followed.
        origins: What does not depend on the model's input.
        orders: Follows outputs whose heads are not told yet.
    """

    def __init__(self, sink: Sink, traces: Traces, origins: Origins, orders: Orders) -> None:
        self._orders = orders
        self._sink, self._traces, self._origins = sink, traces, origins
        self._columns = Columns()
        self._visible = VisibleKeys()
        self._reported: set[int] = set()
        self._shared_out: set[int] = set()

    def after_weights(self, step: Step) -> bool:
        """Follow weights through a function; whether anything that it returned is weights still."""
        if self.weigh(step):
            return False
        stays = False
        for tensor, trace in after_weights(step, self._traces, self._origins):
            self._traces[tensor], stays = trace, trace.stage == "weights"
            if trace.stage == "sums" and trace.keys != step.trace.keys:
                self._sum_over_queries(trace)
        return stays

    def weigh(self, step: Step) -> bool:
        """Follow weights or raised scores that multiply values element by element; if they do."""
        target = step.target()
        found = None if target is None else weighed(step, target, self._origins)
        if found is None or target is None:
            return False
        if found.single:
            self.meet(found.product, 0, found.trace, target)
            return True
        self._traces[target] = found.trace.but(stage="weighted", read=found.product)
        if found.trace.stage == "weights":
            self._begin_sum(found, target)
        return True

    def _sum_over_queries(self, trace: Trace) -> None:
        """Note sums over the other axis than that of the softmax: means are made by them.

        Soft k-means divides by such sums what weights and values gave, before or after.
        """
        self._shared_out.add(trace.softmax)
        if trace.softmax not in self._reported:
            self._sink.softmax_used(trace.product)

    def _begin_sum(self, found: Weighed, out: Tensor) -> None:
        """Weights that multiplied values element by element: what becomes of them is used."""
        trace, read = found.trace, found.product
        if trace.axes is None:
            return
        keys = [i for i, atoms in enumerate(trace.axes) if numbers_in(atoms) & trace.keys]
        letters = {read.letters[0][axis] for axis in keys}
        over_keys = replace(read, out=tuple(letter for letter in read.out if letter not in letters))
        meeting = meeting_of(over_keys, 0, trace, self._traces, self._origins)
        if meeting is None:
            return
        self._sink.values_met(trace.product)
        if trace.columns is not None:
            self._report_all(rows_in(meeting, self._columns), out, meeting)

    def after_weighted(self, step: Step) -> None:
        """Values times weights, element by element: summed over the keys, that was attention."""
        trace, read = step.trace, step.trace.read
        assert read is not None
        if step.name != "sum":
            if isinstance(step.out, Tensor) and step.out.shape == step.source.shape:
                self._traces[step.out] = trace
                if trace.softmax < 0 and sums_among(step, self._traces) is not None:
                    self._sink.values_met(trace.product)  # divided before they are summed
            return
        dims = step.reduced_dims()
        if dims is None:
            return
        gone = {read.out[dim] for dim in dims}
        read = replace(read, out=tuple(letter for letter in read.out if letter not in gone))
        stage = "raised" if trace.softmax < 0 else "weights"
        self.meet(read, 0, trace.but(stage=stage, read=None), step.out)

    def meet(self, product: Product, number: int, trace: Trace, out: Tensor) -> None:
        """Report weights that multiplied values, or follow raised scores that did."""
        require_numbers(product.operands[number])
        meeting = meeting_of(product, number, trace, self._traces, self._origins)
        if meeting is None:
            if is_over_queries(product, number, trace, self._traces, self._origins):
                if trace.softmax not in self._reported | self._shared_out:
                    self._sink.values_met(trace.product, over_queries=True)
            elif trace.stage == "weights" and not trace.over_last:
                # A softmax over the queries assigns each key to one of them: no row is weights.
                self._sink.softmax_used(trace.product)
            return
        if trace.stage == "weights":
            self._sink.values_met(trace.product)
        found = rows_in(meeting, self._columns)
        if found:
            self._report_all(found, out, meeting)
        elif trace.softmax in self._shared_out:
            # Keys are shared out among queries, and divided by more than their sums: GroupViT.
            self._sink.softmax_used(trace.product)
        elif trace.stage == "raised" and meeting.rows is not None:
            places = trace.place, meeting.place_of_values()
            own = trace.axes is not None and is_own_key(trace.axes, meeting.trace.keys)
            part = Part(meeting.rows, None, trace.product, places, trace.share, own, trace.factors)
            trace = meeting.trace.but(stage="summed", parts=(part,), meeting=meeting)
            self._traces[out] = trace
            if trace.share:
                self._sink.values_met(trace.product)
            elif trace.shifted:
                self._sink.part_seen(trace.product)

    def after_summed(self, step: Step) -> None:
        """Follow raised scores that multiplied values until they are divided by their own sums."""
        if step.name in FUSED:
            step = self._taken_apart(step)
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
                for number in numbers:
                    self._sink.softmax_used(number)
        if summed.weights is not None and summed.trace is not None:
            trace = summed.trace
            for part in trace.parts:
                self._sink.softmax_used(part.product)
            self._sink.parts_used(part.product for part in trace.parts)
            own_keys = all(part.own for part in trace.parts)
            rows = Rows(summed.weights, None, trace, summed.note, own_keys)
            if self._report(rows, step.out, trace.meeting, reported=True):
                return
        else:
            for number in summed.divided:
                self._sink.values_met(number)
        if summed.trace is not None and target is not None:
            self._traces[target] = summed.trace

    def _taken_apart(self, step: Step) -> Step:
        """Follow the product in a function of `FUSED`, and return the sum that is left."""
        if step.kwargs or len(step.args) != 3 or step.args[0] is not step.source:
            return step
        base, *factors = step.args
        for factor in factors:
            trace = self._traces[factor]
            if trace is not None and trace.stage == "raised":
                with torch.no_grad(), torch._C.DisableTorchFunction():
                    product = torch.mul(*factors)
                multiplied = replace(step, name="mul", args=tuple(factors), out=product)
                self.weigh(replace(multiplied, source=factor, trace=trace))
                return replace(step, name="add", args=(base, product))
        return step

    def _report_all(self, found: list[Rows], out: Tensor, meeting: Meeting) -> None:
        for rows in found:
            for trace in (rows.trace, *rows.trace.also):
                self._sink.softmax_used(trace.product)
        for rows in found:
            self._report(rows, out, meeting)

    def _report(
        self, rows: Rows, out: Tensor, meeting: Meeting | None, *, reported: bool = False
    ) -> bool:
        """Report attention; whether its batch and heads are still to be told.

        Args:
            rows: The weights.
            out: Of attention.
            meeting: Of weights and values.
            reported: See `Trace`.
        """
        place = self._sink.here()
        if place is None:
            return False
        trace = rows.trace
        if trace.softmax >= 0:
            if trace.softmax in self._reported:
                return False
            self._reported.add(trace.softmax)
            self._traces.settle(trace.softmax)
        module, name = place
        build = partial(call_of, module, name, rows, out, self._visible, meeting)
        waiting = self._sink.record(name, "softmax", build)
        self._orders.begin(out, waiting, reported)
        return waiting is not None
