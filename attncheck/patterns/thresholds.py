"""Every number that a label depends on, in one place.

They were chosen on the weights that `create_synthetic_attention` builds, and judged on generators
that share no code with it (``benchmarks/detector_accuracy.py``). The first run of the judges, when
nothing had been changed on their account, gave a macro accuracy of 0.961; their errors then led to
corrections, so that later figures, though on other seeds, are not quite blind.
"""

from __future__ import annotations

from typing import Final

MIN_POSITIONS: Final = 8
"""Fewer positions than this carry no label: chance alone makes patterns of them."""

MIN_STRENGTH: Final = 0.08
"""Share of the attention that a pattern must explain to be named at all."""

MIN_BLOCK_STRENGTH: Final = 0.15
"""The same for blocks whose cuts were searched."""

Z_NAMED: Final = 2.0
"""Standard deviations above chance, for patterns without a parameter."""

Z_SEARCHED: Final = 1.0
"""The same for searched ones, in addition to ``sqrt(2 ln(number of candidates))``."""

Z_BAND: Final = 2.6
"""The same for bands of any width, which overlap and so are few."""

Z_BLOCK: Final = 0.85
"""The same for a search over cuts, in addition to `Z_BLOCK_GROWTH` times ``log(positions)``:
near the 99.9th percentile of even heads with noise, for 8 to 64 positions."""

Z_BLOCK_GROWTH: Final = 0.65
"""See `Z_BLOCK`."""

FILLED: Final = 0.5
"""Entropy that the rows of blocks need, as a share of that of evenly filled ones: rows of one key
each fall into blocks by chance."""

SINGLE_SHARE: Final = 0.65
"""One diagonal that holds this share of its band is named itself; below it is ``local``."""

TWO_LINES_SHARE: Final = 0.8
"""Two diagonals, not neighbours, that hold this share of a band are two patterns, not a band."""

BLOCK_BESIDE_BAND: Final = 0.92
"""Blocks must hold more mass above chance than the best band; beside a diagonal that stands out,
this share of it."""

WIDEST_BAND: Final = 0.34
"""Widest band searched for, as a share of the length: what is wider is not local."""

MIXED_RATIO: Final = 0.65
"""Strength of the second pattern relative to the first from which a head is ``mixed``."""

MIN_MIXED: Final = 0.15
"""Least strength of the second pattern in a mixture."""

UNEVEN: Final = 0.55
"""Nats that the entropy of what no pattern explains lies below that of even attention, from which
a head without a pattern is ``heterogeneous`` and not ``uniform``."""

UNEVEN_SHARE: Final = 0.3
"""The same as a share of the entropy of even attention; the smaller bound holds (few keys)."""

MIN_BESIDE_UNEVEN: Final = 0.2
"""Strength a pattern needs to be named in a head whose other attention is uneven."""

MIN_BESIDE_VERY_UNEVEN: Final = 0.42
"""The same where the rest is twice as uneven as that."""

MIN_ROWS_SHARE: Final = 0.4
"""Share of the rows that a diagonal must cross to be searched: in a few rows chance is strong."""

MIN_SEGMENT: Final = 2
"""Shortest segment searched for."""

MAX_CUTS: Final = 31
"""Most cuts searched for."""

CUT_NOISE: Final = 1.5
"""Standard deviations of noise that a cut must gain to be made."""

CLEAR_LINE: Final = 0.05
"""Share of the mass from which a single line is set aside before blocks are searched."""

CLEAR_COLUMN: Final = 0.3
"""The same for a column other than the first: blocks under a causal mask make short stripes."""

MIN_REST: Final = 0.15
"""Share of the mass beside single lines below which no blocks are searched."""

MIN_TOKEN_ROWS: Final = 4
"""Rows with a target that a token-conditioned pattern needs to be named."""

TOKEN_OVER_OFFSET: Final = 0.8
"""Lift of a token-conditioned pattern relative to that of the diagonal it may explain."""
