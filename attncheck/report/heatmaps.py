"""Heatmaps for a page: at most 48 x 48 cells, one byte each."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from attncheck.attention import LayerAttention, head_name
from attncheck.plot.cells import Cells, cells_of
from attncheck.report.entries import MapEntry

__all__ = ["HIDDEN", "LEVELS", "MOST_CELLS", "Heatmap", "heatmaps_of"]

MOST_CELLS: Final = 48
"""Longer sequences are added up in blocks; 1,024 heads then take 3.1 MB as text."""

LEVELS: Final = 254
HIDDEN: Final = 255
"""The code of a cell that no query may see."""


@dataclass(frozen=True, eq=False)
class Heatmap:
    """One head as bytes.

    A cell is worth ``code / 254 * peak``, within ``peak / 508`` of the weight (of a block: the mean
    mass that its queries put on its keys).

    Attributes:
        codes: uint8 ``(row, column)``; 255: hidden.
        peak: Weight of code 254, the largest of the head; 0 where all are.
        query_block: Queries per row.
        key_block: Keys per column.

    Example:
        >>> cells = Cells(np.array([[0.5, 0.0], [0.2, 0.3]]), np.eye(2, k=1) > 0, 1, 1)
        >>> Heatmap.of(cells).codes.tolist()
        [[254, 255], [102, 152]]
    """

    codes: NDArray[np.uint8]
    peak: float
    query_block: int = 1
    key_block: int = 1

    @classmethod
    def of(cls, cells: Cells) -> Heatmap:
        """Round the cells to bytes; what is no finite number counts as 0."""
        values = np.nan_to_num(cells.values, nan=0, posinf=0, neginf=0).clip(min=0)
        peak = float(values.max(initial=0))
        codes = np.rint(values * (LEVELS / peak if peak else 0)).astype(np.uint8)
        codes[cells.hidden] = HIDDEN
        return cls(codes, peak, cells.query_block, cells.key_block)

    def to_dict(self) -> MapEntry:
        """Describe as JSON."""
        rows, columns = self.codes.shape
        return {
            "rows": rows,
            "columns": columns,
            "peak": float(f"{self.peak:.6g}"),
            "blocks": [self.query_block, self.key_block],
            "codes": base64.b64encode(self.codes.tobytes()).decode("ascii"),
        }

    @classmethod
    def from_dict(cls, held: MapEntry) -> Heatmap:
        """Read what `to_dict` returned."""
        codes = np.frombuffer(base64.b64decode(held["codes"]), dtype=np.uint8)
        shaped = codes.reshape(held["rows"], held["columns"])
        return cls(shaped, held["peak"], held["blocks"][0], held["blocks"][1])


def heatmaps_of(layer: LayerAttention, most: int = MOST_CELLS) -> Iterator[tuple[str, Heatmap]]:
    """Yield name and heatmap of each head of a layer, for the first sequence of its batch.

    Args:
        layer: The layer; nothing of it is kept.
        most: Rows and columns of a heatmap.
    """
    for position, head in enumerate(layer.heads):
        yield head_name(layer.index, head), Heatmap.of(cells_of(layer, position, 0, most))
