"""Triton kernels that read attention tile by tile on a GPU, where no tile leaves the registers.

Two passes over the products of query and key take everything that a profile needs: `rows` finds
the softmax of each row and what is measured along it, online as flash attention does; `sums` makes
each tile again, now as weights, and adds them up by key, by distance and by cell. Tiles that
causality, a window or padding hides are not computed. Sums over many tiles are integers, so that
they come out the same in whatever order tiles end.

Importing this package is light; its other modules need triton: import them inside the function
that uses them. `missing` says whether it is there.
"""

from attncheck.kernels.presence import missing

__all__ = ["missing"]
