"""What every recorder reports, whatever the way in which a model computes attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from attncheck.capture.modules import ModuleTable

if TYPE_CHECKING:
    from attncheck.capture.follow.axes import Axes
    from attncheck.capture.recorders.shapes import Layout

__all__ = ["AS_READ", "AttentionCall", "Kind", "Recorder", "Sink", "Waiting"]

Kind: TypeAlias = Literal["self", "cross", "unknown"]

AS_READ: Final = "nothing tells batch from heads: read as (batch, head), or batch-major in one axis"
"""Note of a layer whose batch and heads are a guess."""


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of attention, as its backend received and answered it.

    Attributes:
        name: Module path of the module that called.
        backend: What computed it.
        kind: Where keys come from, as far as the recorder can tell.
        output: ``(batch, head, query, value size)``, what the backend returned.
        query: ``(batch, head, query, size)``; None where `weights` says everything.
        key: ``(batch, key-value head, key, size)``; None where `weights` says everything.
        value: ``(batch, key-value head, key, value size)``; None where `output` was not computed
            from a value that the recorder sees.
        weights: ``(batch, head, query, key)`` where the model made them itself, before dropout.
        mask: Bool (True = visible) or additive, broadcastable to the weights, as it was passed.
        bias: Added to the scores, hides nothing.
        causal: The kernel hides keys behind the query, counted from the first key (top-left).
        decoding: Queries are known to be the last positions of a causal sequence.
        scale: Factor on the scores; None: ``1 / sqrt(size)``.
        softcap: Scores become ``tanh(score / softcap) * softcap``, before mask and bias.
        sinks: ``(head,)`` or ``(batch, head, query, 1)``: a score that is no key.
        dropout: Share of weights that the backend dropped from its output.
        without_dropout: Calls the backend again without dropout, for the fidelity gate, which puts
            back whatever random numbers it draws.
        redone: ``(batch, ..., size)``: what a second, weights-returning call returned; compared
            with `output` where there is no value to multiply.
        note: What else is to be known of it.
        sink_is_rest: The model cut a sink's column off its own weights: the rest of a row is its.
        first_head: The model's number of the first head, where other ranks have those before it.
        layout: How batch and heads were read, where something else is possible; None: they are
            told apart.
        axes: Of what the model got, by number of those of the weights: batch and heads, queries,
            then features; None: as they are numbered.
        again: Describes the same call in another layout, if there is one.
    """

    name: str
    backend: str
    output: Tensor
    kind: Kind = "unknown"
    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    weights: Tensor | None = None
    mask: Tensor | None = None
    bias: Tensor | None = None
    causal: bool = False
    decoding: bool = False
    scale: float | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    dropout: float = 0.0
    without_dropout: Callable[[], Tensor] | None = None
    redone: Tensor | None = None
    sink_is_rest: bool = False
    first_head: int = 0
    note: str = ""
    layout: Layout | None = None
    axes: Axes | None = None
    again: Callable[[Layout], AttentionCall] | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(batch, head, query, key)`` of the weights."""
        if self.weights is not None:
            batch, heads, n_query, n_key = self.weights.shape
            return batch, heads, n_query, n_key
        assert self.query is not None
        assert self.key is not None
        batch = max(self.query.shape[0], self.key.shape[0])
        return batch, self.query.shape[1], self.query.shape[2], self.key.shape[2]

    @property
    def hides_by_truth(self) -> bool:
        """Whether its mask is True and False."""
        return self.mask is not None and self.mask.dtype == torch.bool

    @property
    def n_key_value_heads(self) -> int:
        """Heads of key and value."""
        held = self.key if self.key is not None else self.value
        return self.shape[1] if held is None else held.shape[1]


@dataclass(frozen=True)
class Waiting:
    """A call that waits until batch and heads are told apart.

    Attributes:
        number: Of the call.
        layout: As which it is read if nothing tells.
        axes: Of its output, see `AttentionCall.axes`.
    """

    number: int
    layout: Layout
    axes: Axes | None = None


class Sink(Protocol):
    """Where recorders report to; one for each running capture."""

    @property
    def busy(self) -> bool:
        """Whether a recorder is inside a call of this thread that it reports itself."""
        ...

    @property
    def modules(self) -> ModuleTable:
        """Of the captured model."""
        ...

    @property
    def model_calls(self) -> int:
        """How often the model was called so far."""
        ...

    @property
    def records(self) -> int:
        """How many calls of attention were reported so far."""
        ...

    def inside(self) -> AbstractContextManager[None]:
        """Keep other recorders of this thread silent: what runs inside belongs to one call."""
        ...

    def name_of(self, module: object) -> str | None:
        """Module path in the captured model, or None for a module of something else."""
        ...

    def here(self) -> tuple[nn.Module, str] | None:
        """Innermost module of the captured model whose code is running, with its path."""
        ...

    def elsewhere(self, place: tuple[nn.Module, str]) -> AbstractContextManager[None]:
        """Take what runs in this thread for what a module does that started it.

        Args:
            place: The module, with its path.
        """
        ...

    def record(self, name: str, backend: str, build: Callable[[], AttentionCall]) -> Waiting | None:
        """Take a call; whatever goes wrong in building it becomes an unreadable call.

        Returns:
            What waits to be settled; None: nothing does.
        """
        ...

    def settle(self, number: int, layout: Layout | None) -> None:
        """Say how batch and heads lie in a call that waits.

        Args:
            number: Of the call.
            layout: How; None: it stays as it was read.
        """
        ...

    def expect(self, number: int, layout: Layout) -> None:
        """Say how batch and heads of a call that waits lie, unless something settles it yet."""
        ...

    def softmax_seen(self, number: int) -> None:
        """Note a softmax over a product of activations, by the number of the product."""
        ...

    def softmax_left(self, number: int) -> None:
        """Note that something was made of what a softmax gave: it was not thrown away."""
        ...

    def softmax_used(self, number: int) -> None:
        """Note that a softmax over this product multiplied values and was understood."""
        ...

    def values_met(self, number: int, *, over_queries: bool = False) -> None:
        """Note that what became of a softmax over this product multiplied another activation.

        Args:
            number: Of the product.
            over_queries: The softmax ran over the queries, and no row sums to 1 over the keys.
        """
        ...

    def part_seen(self, number: int) -> None:
        """Note raised scores of some keys that multiplied values, by the number of the product."""
        ...

    def parts_used(self, numbers: Iterable[int]) -> None:
        """Note that such parts made attention that was understood, or something else."""
        ...

    def unreadable(self, name: str, what: str, way_out: str) -> None:
        """Note attention that ran but cannot be captured."""
        ...


class Recorder(Protocol):
    """One way in which models compute attention, and how to watch it."""

    def installed(self, sink: Sink) -> AbstractContextManager[None]:
        """Report every such call to ``sink`` until the context ends."""
        ...
