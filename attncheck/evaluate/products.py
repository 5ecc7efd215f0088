"""`Products`: blocks of scores on a CPU, for threads beside each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch

from attncheck.evaluate.scores import Scores

__all__ = ["Products"]

LONG: Final = 1 << 10
"""Keys above which those that lie apart in memory, as views of one projection do, are copied.

Each may be on a page of its own there, and every block reads all of them: a 12th of the time at
8,192 keys, a 20th at 2,048.
"""


@dataclass(frozen=True, eq=False)
class Products:
    """Products of query and key of one sequence, block by block.

    Views are made by NumPy, which keeps Python's lock. Torch gives it up and takes it back for each
    view, and waits for other threads every time.

    Attributes:
        scores: The scores, on a CPU.
        query: ``(head, query, size)``.
        key: ``(key-value head, key, size)``.
        room: Flat memory for the largest block.
    """

    scores: Scores
    query: Any
    key: Any
    room: Any

    @classmethod
    def of(cls, scores: Scores, largest: int) -> Products:
        """Make room.

        Args:
            scores: Scores of one sequence.
            largest: Most pairs of query and key in a block.
        """
        query, key = scores.query[0].to(scores.key.dtype), scores.key
        room = key.new_empty(len(query) * largest)
        if key.shape[1] > LONG and key.stride(1) != key.shape[2]:
            key = key.contiguous()
        return cls(scores, query.numpy(), key.numpy(), room.numpy())

    def block(self, rows: slice, keys: slice) -> Any:
        """Compute a block: float32 ``(head, query, key)``, valid until the next one."""
        query, key = self.query[:, rows], self.key[:, keys]
        shape = (*query.shape[:2], key.shape[1])
        query = query.reshape(len(key), -1, query.shape[2])
        flat = self.room[: shape[0] * shape[1] * shape[2]]
        found = torch.from_numpy(flat.reshape(*query.shape[:2], shape[2]))
        query, key = torch.from_numpy(query), torch.from_numpy(key.swapaxes(1, 2))
        found.baddbmm_(query, key, beta=0, alpha=self.scores.factor)
        if self.scores.changes:
            every = slice(0, shape[0])
            self.scores.change(found.view(1, *shape), rows, keys, every)
        return flat.reshape(shape)
