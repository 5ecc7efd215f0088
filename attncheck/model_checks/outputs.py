"""Which tensor of what a model returns is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

__all__ = ["OutputChoice", "OutputReader", "tensors_of"]

OutputChoice = str | int | Callable[[Any], Tensor] | None
"""A key, an index, a function, or None: the first fitting tensor."""

PREFERRED: Final = ("logits", "last_hidden_state", "prediction_logits", "pooler_output")


@dataclass(frozen=True)
class OutputReader:
    """Reads the judged tensor out of a model's output.

    Attributes:
        choice: What the caller asked for.

    Example:
        >>> import torch
        >>> OutputReader()({"loss": torch.ones(()), "logits": torch.ones(2, 5, 3)}, 2, 5).shape
        torch.Size([2, 5, 3])
    """

    choice: OutputChoice = None

    def __call__(self, returned: Any, batch: int, length: int) -> Tensor:
        """Return the judged tensor, floating and with the batch first.

        Args:
            returned: What the model returned.
            batch: Number of sequences that went in.
            length: Number of positions that went in.

        Raises:
            ValueError: There is no such tensor.
        """
        if callable(self.choice):
            return self.choice(returned)
        if self.choice is not None:
            try:
                held = returned[self.choice]
            except (KeyError, IndexError, TypeError):
                held = getattr(returned, str(self.choice), None)
            if not isinstance(held, Tensor):
                raise ValueError(f"output: {self.choice!r} is no tensor in what the model returned")
            return held
        found = [t for t in tensors_of(returned) if t.is_floating_point() and t.ndim]
        follows = [t for t in found if t.ndim > 2 and tuple(t.shape[:2]) == (batch, length)]
        rows = [t for t in found if t.shape[0] == batch]
        if not (follows or rows):
            raise ValueError(
                f"output: the model returned no floating tensor with {batch} rows; pass output= a "
                "key, an index, or a function from what it returns to a tensor"
            )
        return (follows or rows)[0]


def tensors_of(returned: Any) -> Iterator[Tensor]:
    """Yield the tensors of an output, preferred ones first."""
    if isinstance(returned, Tensor):
        yield returned
    elif isinstance(returned, Mapping):
        keys = [key for key in PREFERRED if key in returned]
        for key in [*keys, *(key for key in returned if key not in keys)]:
            yield from tensors_of(returned[key])
    elif isinstance(returned, tuple | list):
        for item in returned:
            yield from tensors_of(item)
