"""Follow a tensor through the functions that a model applies to it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from torch import Tensor

from attncheck.capture.follow.axes import Atom, Axes
from attncheck.capture.follow.noted import Noted
from attncheck.capture.follow.products import Product
from attncheck.capture.recorders.shapes import Layout

if TYPE_CHECKING:
    from attncheck.capture.follow.values import Meeting

__all__ = ["Changed", "Columns", "Hiding", "How", "Part", "Place", "Trace", "Traces"]


How: TypeAlias = Literal["visible", "hidden", "added", "subtracted"]


@dataclass(frozen=True, eq=False)
class Hiding:
    """A mask that a model applied to its scores.

    Attributes:
        how: In which way.
        mask: That it applied.
        shape: Of the scores.
        axes: Of the scores.
    """

    how: How
    mask: Tensor
    shape: tuple[int, ...]
    axes: Axes | None = None


Columns: TypeAlias = tuple[int, int]
"""Where a range of columns begins, and ends."""

Place: TypeAlias = tuple[int, int]
"""Address of the memory that a tensor is a view of, and where in it the tensor begins."""

Factors: TypeAlias = tuple[tuple[weakref.ref[Tensor], Place], ...]
"""Whose memory each factor of a product lies in, and where."""


@dataclass(frozen=True, eq=False)
class Part:
    """Raised scores of some keys that multiplied their values.

    Attributes:
        raised: ``(..., query, key)``, as they were then.
        factor: What the product was multiplied with since; None: nothing.
        product: Number of their product of query and key.
        places: Of their keys, and of their values.
        divided: They, or the product with the values, were divided by sums over keys.
        own: Each query has a key of its own.
        factors: What was multiplied element by element to score those; see `Trace`.
    """

    raised: Tensor
    factor: Tensor | None = None
    product: int = -1
    places: tuple[Place, ...] = ()
    divided: bool = False
    own: bool = False
    factors: Factors = ()

    def times(self, factor: Tensor, divides: bool = False) -> Part:
        """Return the part of a product that was multiplied once more, row by row."""
        factor = factor if self.factor is None else self.factor * factor
        return replace(self, factor=factor, divided=self.divided or divides)

    def scaled(self) -> Tensor:
        """Return ``(..., query, key)`` with its factor."""
        return self.raised if self.factor is None else self.raised * self.factor


Changed: TypeAlias = Literal["", "hidden", "random", "scaled", "lost"]


@dataclass(frozen=True, eq=False)
class Trace:
    """What is known about a tensor on its way from query and key to value.

    Attributes:
        stage: Before softmax, after it, or on the way there by hand: ``"pairs"`` of query and key
            whose features are not yet one number, ``"raised"`` by `exp` and not known to be
            divided by its sum, its ``"sums"`` over the keys, ``"weighted"`` values that are not yet
            summed, ``"summed"`` with the values and not yet divided; ``"attended"`` is the output
            of a call of which batch and heads are not told apart yet, with axes of its own.
        axes: Which axes of query and key its axes are; None: not known.
        sizes: Lengths of axes that may be the keys, where `axes` are not known.
        hiding: Masks applied to the scores.
        product: Number of the product of query and key in the capture.
        fixed: Numbers of the axes that come from what does not depend on the model's input.
        softmax: Number of the softmax over it.
        keys: Numbers of the axes that softmax ran over; scores have them behind a `log_softmax`.
        n_key: Size of the dimension that softmax ran over; of scores likewise, else 0.
        over_last: Whether that was the last one.
        own: What the softmax returned, where the model has changed it since.
        own_axes: Axes of `own`.
        changed: In which way it was changed: numbers hidden, at random, anything else, or moved so
            that positions are no longer known.
        also: Other weights that were added.
        rest: Rows may sum to less than 1: the rest is nobody's.
        sliced: How many columns of weights were cut off, as models with a sink do.
        foreign: Columns that are no product of query and key, beside those of scores.
        picked: Its keys are others for every query: axes and shape of the scores before that.
        part: It is some queries, heads or keys of `own`.
        columns: Range of the keys that this part of the weights is for; None: all keys.
        read: How ``"weighted"`` weights, its first factor, were multiplied.
        parts: What a ``"summed"`` tensor is the sum of.
        reported: It was found to be the output of attention.
        shifted: A number for each row was subtracted from the scores, such as their largest.
        place: Of the keys.
        joint: Numbers of other products whose sums, or raised scores, were added to these.
        share: Raised scores were divided by the sums of more keys than their own.
        steps: How many functions pairs went through, see `after_scores`; 0 for scores.
        edges: It has a number for each edge of a graph, see `Edges`.
        call: Number of the call that an ``"attended"`` tensor is the output of, see `Orders`.
        layout: As which that call is read if nothing tells.
        expected: How that call is read unless something tells more surely.
        projected: A layer was applied to the features of that output, heads by heads.
        meeting: Of raised scores and values, that gave a ``"summed"`` tensor.
        cut: The axis that an ``"attended"`` piece was cut out of, and how long the piece is.
        gone: Parts of axes that were cut or summed, as long as they were.
        joined: Parts of axes that are longer than those of the call: outputs were joined there.
        combined: Several parts of one softmax were added or subtracted.
        apart: Axis along which the parts of a ``"summed"`` tensor stand that are still to be added.
        astray: How many functions ago something was added to a ``"summed"`` tensor that is not
            known, 0: nothing.
        stacked: Numbers of the axes along which scores of several products are beside each other.
        factors: What was multiplied element by element, query and key of one shape, as long as it
            lives; empty: they met in another way.
    """

    stage: Literal["pairs", "scores", "raised", "sums", "weighted", "summed", "weights", "attended"]
    axes: Axes | None = None
    sizes: frozenset[int] = frozenset()
    hiding: tuple[Hiding, ...] = ()
    product: int = -1
    fixed: frozenset[int] = frozenset()
    softmax: int = -1
    keys: frozenset[int] = frozenset()
    n_key: int = 0
    over_last: bool = True
    own: Tensor | None = field(default=None, repr=False)
    own_axes: Axes | None = None
    changed: Changed = ""
    also: tuple[Trace, ...] = ()
    rest: bool = False
    sliced: int = 0
    foreign: Columns | None = None
    picked: tuple[Axes | None, tuple[int, ...]] | None = None
    part: bool = False
    columns: Columns | None = None
    read: Product | None = None
    parts: tuple[Part, ...] = ()
    reported: bool = False
    shifted: bool = False
    place: Place = (0, 0)
    joint: frozenset[int] = frozenset()
    share: bool = False
    steps: int = 0
    edges: bool = False
    call: int = -1
    layout: Layout | None = None
    expected: Layout | None = None
    projected: bool = False
    meeting: Meeting | None = None
    cut: tuple[Atom, int] | None = None
    gone: tuple[Atom, ...] = ()
    joined: tuple[tuple[int, ...], ...] = ()
    combined: bool = False
    apart: int | None = None
    astray: int = 0
    stacked: frozenset[int] = frozenset()
    factors: Factors = ()

    def but(self, **changes: Any) -> Trace:
        """Return the trace with other fields: `dataclasses.replace` takes ten times as long."""
        other = object.__new__(Trace)
        vars(other).update(vars(self), **changes)
        return other


class Traces:
    """Traces by tensor; a tensor's trace ends with the tensor."""

    def __init__(self) -> None:
        self.under_way: set[int] = set()
        """Ids of tensors that may still become attention."""
        self._held: Noted[Trace] = Noted(self.under_way.discard)
        self._settled: set[int] = set()
        self._until_aged = GENERATION
        self._aged: set[Trace] = set()
        """Of pairs that nothing was made of for a generation."""

    def __bool__(self) -> bool:
        return bool(self._held)

    def __getitem__(self, tensor: Tensor) -> Trace | None:
        return self._held.get(tensor)

    def __setitem__(self, tensor: Tensor, trace: Trace) -> None:
        self._held[tensor] = trace
        if trace.softmax in self._settled:
            self.under_way.discard(id(tensor))
        else:
            self.under_way.add(id(tensor))

    def settle(self, softmax: int) -> None:
        """Follow what a softmax gave no further: it was reported. What is known stays known."""
        self._settled.add(softmax)
        for tensor, trace in self._held.items():
            if trace.softmax == softmax:
                self.under_way.discard(id(tensor))

    def _age(self) -> None:
        """End pairs that are old: whoever compares query and key does so at once."""
        self._until_aged = GENERATION
        old, self._aged = self._aged, set()
        for tensor, trace in self._held.items():
            if trace.stage != "pairs" and not trace.steps:
                continue
            if trace in old:
                self._held.forget(tensor)
                self.under_way.discard(id(tensor))
            else:
                self._aged.add(trace)

    def end(self, call: int) -> None:
        """Follow the output of a call no further: its heads are told."""
        for tensor, trace in self._held.items():
            if trace.call == call:
                self._held.forget(tensor)
                self.under_way.discard(id(tensor))

    def find(self, values: Iterable[Any]) -> tuple[Tensor, Trace] | None:
        """Return the traced tensor among some arguments that is farthest on its way."""
        self._until_aged -= 1
        if not self._until_aged:
            self._age()
        found: tuple[Tensor, Trace] | None = None
        for value in values:
            if self._held.has_id(id(value)) and isinstance(value, Tensor):
                trace = self[value]
                if trace is not None and (found is None or _before(found[1], trace)):
                    found = value, trace
        return found


GENERATION: Final = 128
"""After how many functions pairs are looked at: those that were there before end then."""

ORDER: Final = ("attended", "pairs", "sums", "scores", "raised", "weights", "weighted", "summed")


def _before(one: Trace, other: Trace) -> bool:
    """Whether a trace tells less than another."""
    ranks = [
        (ORDER.index(trace.stage), not trace.joint, trace.axes is not None, not trace.fixed)
        for trace in (one, other)
    ]
    return ranks[0] < ranks[1]
