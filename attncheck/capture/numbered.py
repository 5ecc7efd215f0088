"""`Numbered`: a call on its way into the record, that may wait until batch and heads are told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from attncheck.capture.call import AS_READ, AttentionCall
from attncheck.capture.copies import compact_copy, version_of, worth_copying

if TYPE_CHECKING:
    from attncheck.capture.recorders.shapes import Layout

__all__ = ["Numbered", "as_read"]


@dataclass(eq=False)
class Numbered:
    """A call, its place among the others, and what it holds while it waits.

    Attributes:
        call: The call.
        index: Number of its layer.
        repeat: How often its module had been called before.
        to_come: Layers like it that are still expected.
        versions: Tensors that must not be overwritten while it waits, and their versions.
        expected: Batch and heads, unless something else settles them.
    """

    call: AttentionCall
    index: int
    repeat: int
    to_come: int
    versions: tuple[tuple[Tensor, int], ...] = ()
    expected: Layout | None = None

    def secured(self) -> Numbered:
        """Copy what a model may overwrite while the call waits, and watch what is too large."""
        call = self.call
        held = {name: getattr(call, name) for name in ("query", "key", "value", "output", "mask")}
        weights = call.weights
        if weights is not None and worth_copying(weights):
            held["weights"] = weights
        if call.layout is None:
            copies: dict[str, Any] = {n: compact_copy(t) for n, t in held.items() if t is not None}
            self.call = replace(call, **copies)
        watched = (t for t in (self.call.weights, self.call.mask, call.bias) if t is not None)
        self.versions = tuple((t, version_of(t)) for t in watched)
        return self

    def changed(self) -> bool:
        """Whether it was overwritten."""
        return any(version_of(tensor) != version for tensor, version in self.versions)


def as_read(call: AttentionCall) -> AttentionCall:
    """Settle a call of which nothing was made that tells its heads."""
    assert call.layout is not None
    several = call.shape[0] * call.shape[1] > 1
    uncertain = several or bool(call.layout.beside or call.layout.lacking)
    notes = (call.note, AS_READ if uncertain else "")
    return replace(call, layout=None, note="; ".join(note for note in notes if note))
