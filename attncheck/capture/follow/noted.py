"""What is known about tensors, each as long as it lives."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from torch import Tensor

__all__ = ["Noted"]

Note = TypeVar("Note")


class Noted(Generic[Note]):
    """A dictionary by tensor, not by its numbers, that keeps no tensor alive.

    Args:
        forgotten: Gets the id of each tensor that is no more.

    Example:
        >>> import torch
        >>> notes, tensor = Noted(), torch.ones(2)
        >>> notes[tensor] = "ones"
        >>> notes.get(tensor), notes.get(torch.ones(2))
        ('ones', None)
    """

    __slots__ = ("_forgotten", "_held")

    def __init__(self, forgotten: Callable[[int], object] | None = None) -> None:
        self._held: dict[int, tuple[weakref.ref[Tensor], Note]] = {}
        self._forgotten = forgotten

    def __bool__(self) -> bool:
        return bool(self._held)

    def has_id(self, number: int) -> bool:
        """Whether a tensor of this id may be here; a quick look.

        Args:
            number: Of any object.
        """
        return number in self._held

    def get(self, tensor: Tensor) -> Note | None:
        """Return what is known; None: nothing."""
        held = self._held.get(id(tensor))
        return held[1] if held is not None and held[0]() is tensor else None

    def __setitem__(self, tensor: Tensor, note: Note) -> None:
        key = id(tensor)

        def forget(reference: weakref.ref[Tensor]) -> None:
            held = self._held.get(key)
            if held is not None and held[0] is reference:
                del self._held[key]
                if self._forgotten is not None:
                    self._forgotten(key)

        self._held[key] = weakref.ref(tensor, forget), note

    def items(self) -> Iterator[tuple[Tensor, Note]]:
        """Yield every tensor with what is known of it."""
        for reference, note in list(self._held.values()):
            tensor = reference()
            if tensor is not None:
                yield tensor, note

    def forget(self, tensor: Tensor) -> None:
        """Take a tensor out."""
        self._held.pop(id(tensor), None)

    def clear(self) -> None:
        """Take all out."""
        self._held.clear()
