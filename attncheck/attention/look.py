"""One quick read of large weights: are they attention, and does any query attend to later keys?

What it does not find in order is looked at again, slowly, by whoever says what is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from attncheck.attention.maps import LayerAttention
from attncheck.attention.quiet import quiet
from attncheck.compiled import SMALL, missing
from attncheck.compiled.threads import shares, side_by_side

__all__ = ["Look", "look_over"]


@dataclass(frozen=True)
class Look:
    """What was seen.

    Attributes:
        sound: All weights are finite, none is negative, and rows sum to 1 or are all 0.
        ahead: Some query has weight on a key that is later, if queries are the last positions.
    """

    sound: bool
    ahead: bool


def look_over(layer: LayerAttention) -> Look | None:
    """Read the weights of a layer once.

    Returns:
        None where there is no quick way: few weights, float64, a GPU, no numba, weights that are
        not held, or rows that a learned sink completes.
    """
    if layer.query_key is not None or layer.sink_mass is not None:
        return None
    if layer.device.type != "cpu" or layer.dtype == torch.float64:
        return None
    if prod(layer.shape) < SMALL or missing() is not None:
        return None
    from attncheck.compiled.loops import look_over as look

    first = 1 + layer.n_key - layer.n_query

    def read(place: tuple[int, slice]) -> tuple[bool, bool]:
        sequence, head = place
        with quiet("cpu"):
            weights = layer.weights[sequence, head].detach().float().contiguous().numpy()
        sound, ahead = look(weights, first)
        return bool(sound), bool(ahead)

    places = [(b, head) for b in range(layer.batch) for head in shares(layer.n_heads)]
    found = side_by_side(read, places)
    return Look(all(sound for sound, _ in found), any(ahead for _, ahead in found))
