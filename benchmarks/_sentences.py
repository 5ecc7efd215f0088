"""Ten plain sentences for models of language."""

from __future__ import annotations

from typing import Final

__all__ = ["SENTENCES"]

SENTENCES: Final = (
    "The old lighthouse keeper climbed the stairs every evening to light the lamp.",
    "She bought three apples, two pears and a small loaf of bread at the market.",
    "When the train finally arrived, the passengers hurried to find their seats.",
    "A quick brown fox jumps over the lazy dog near the river bank.",
    "The committee will announce its decision about the new library next Tuesday.",
    "Our neighbours planted a row of cherry trees along the garden wall.",
    "He forgot his umbrella, so he waited inside the shop until the rain stopped.",
    "Scientists discovered a new species of frog in the mountains of Peru.",
    "The children built a castle of sand while their parents read the newspaper.",
    "Please send the signed documents to the office before the end of the month.",
)
