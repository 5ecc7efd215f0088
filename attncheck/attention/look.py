"""One quick read of large weights: are they attention, and does any query attend to later keys?

What it does not find in order is looked at again, slowly, by whoever says what is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

from attncheck.attention.maps import LayerAttention
from attncheck.attention.reading import read_heads, worth_compiled

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
    if not worth_compiled(layer):
        return None
    from attncheck.compiled.loops import look_over as look

    first = 1 + layer.n_key - layer.n_query

    found = read_heads(layer, lambda weights, *_: look(weights, first))
    return Look(all(sound for sound, _ in found), any(ahead for _, ahead in found))
