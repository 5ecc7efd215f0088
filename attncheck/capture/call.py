"""What every recorder reports, whatever the way in which a model computes attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from attncheck.capture.modules import ModuleTable

__all__ = ["AttentionCall", "Kind", "Order", "Recorder", "Sink"]

Kind: TypeAlias = Literal["self", "cross", "unknown"]
Order: TypeAlias = Literal["told", "folded", "square"]


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
        without_dropout: Calls the backend again without dropout, for the fidelity gate.
        redone: ``(batch, ..., size)``: what a second, weights-returning call returned; compared
            with `output` where there is no value to multiply.
        note: What else is to be known of it.
        sink_is_rest: The model cut a sink's column off its own weights: the rest of a row is its.
        first_head: The model's number of the first head, where other ranks have those before it.
        order: Whether batch and heads are ``"told"`` apart. They may be the other way round where
            they were ``"folded"`` into one axis, which is read as batch-major, or where there are
            as many sequences as heads, ``"square"``: what is made of the output tells.
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
    order: Order = "told"

    def swapped(self) -> AttentionCall:
        """Return the call with batch and heads the other way round, where they are not told."""
        batch, heads = self.shape[:2]

        def swap(tensor: Tensor) -> Tensor:
            if self.order == "square":
                return tensor.transpose(0, 1)
            if tensor.shape[:2] != (batch, heads):
                return tensor
            return tensor.reshape(heads, batch, *tensor.shape[2:]).transpose(0, 1)

        def swap_any(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else swap(tensor)

        again = self.without_dropout
        return replace(
            self,
            output=swap(self.output),
            query=swap_any(self.query),
            key=swap_any(self.key),
            value=swap_any(self.value),
            weights=swap_any(self.weights),
            mask=swap_any(self.mask),
            bias=swap_any(self.bias),
            without_dropout=None if again is None else lambda: swap(again()),
            order="told",
        )

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


class Sink(Protocol):
    """Where recorders report to; one for each running capture."""

    @property
    def busy(self) -> bool:
        """Whether a recorder is inside a call that it reports itself."""
        ...

    @property
    def modules(self) -> ModuleTable:
        """Of the captured model."""
        ...

    @property
    def model_calls(self) -> int:
        """How often the model was called so far."""
        ...

    def inside(self) -> AbstractContextManager[None]:
        """Keep other recorders silent: what runs inside belongs to one call."""
        ...

    def name_of(self, module: object) -> str | None:
        """Module path in the captured model, or None for a module of something else."""
        ...

    def here(self) -> tuple[nn.Module, str] | None:
        """Innermost module of the captured model whose code is running, with its path."""
        ...

    def record(self, name: str, backend: str, build: Callable[[], AttentionCall]) -> int | None:
        """Take a call; whatever goes wrong in building it becomes an unreadable call.

        Returns:
            The number of a call that waits to be settled; None: it does not wait.
        """
        ...

    def settle(self, number: int, *, swapped: bool) -> None:
        """Say in which order batch and heads are in a call that waits.

        Args:
            number: That `record` returned.
            swapped: They are the other way round than it has them.
        """
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

    def values_met(self, number: int) -> None:
        """Note that what became of a softmax over this product multiplied another activation."""
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
