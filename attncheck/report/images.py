"""Heatmaps as PNG files in data URIs: what a page shows where scripts do not run."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from attncheck.checks.finding import Evidence
from attncheck.plot.cells import Cells
from attncheck.report.heatmaps import HIDDEN, LEVELS, Heatmap

__all__ = ["DIVERGING", "SEQUENTIAL", "evidence_uri", "heatmap_uri"]

SEQUENTIAL: Final = (
    *("#440154", "#482878", "#3e4989", "#31688e", "#26828e"),
    *("#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"),
)
"""Viridis at ten points, interpolated between them."""

DIVERGING: Final = ("#2166ac", "#67a9cf", "#d1e5f0", "#f7f7f7", "#fddbc7", "#ef8a62", "#b2182b")
"""Blue for less, red for more (ColorBrewer RdBu)."""

GREY: Final = (0xD0, 0xD0, 0xD0)
RED: Final = (0xE6, 0x00, 0x26)
SIDE: Final = 240
"""Pixels that the longer side of a picture has at least."""


def heatmap_uri(heatmap: Heatmap) -> str:
    """Return the heatmap as a PNG in a data URI, a whole number of pixels per cell.

    Example:
        >>> heatmap_uri(Heatmap(np.zeros((2, 2), np.uint8), 1.0))[:40]
        'data:image/png;base64,iVBORw0KGgoAAAANSU'
    """
    pixels, _ = _enlarged(heatmap.codes)
    return _uri(pixels)


def evidence_uri(evidence: Evidence) -> str:
    """Return a failed head as a PNG in a data URI, cells that break the rule framed in red."""
    weights = np.nan_to_num(evidence.weights.astype(np.float64), nan=0, posinf=0, neginf=0)
    hidden = ~evidence.visible & ~evidence.offending & (weights == 0)
    codes = Heatmap.of(Cells(weights, hidden, 1, 1)).codes
    pixels, size = _enlarged(codes)
    frame = _frame(size)
    offending = np.kron(evidence.offending, frame).astype(bool)
    pixels[offending] = LEVELS
    return _uri(pixels)


def _enlarged(codes: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], int]:
    """Repeat cells; codes above 252 make room for the marks."""
    size = max(1, -(-SIDE // max(codes.shape)))
    shades = np.where(codes == HIDDEN, HIDDEN, np.minimum(codes, LEVELS - 1)).astype(np.uint8)
    return np.repeat(np.repeat(shades, size, axis=0), size, axis=1), size


def _frame(size: int) -> NDArray[np.uint8]:
    """A square outline, a full cell where cells are too small for one."""
    frame = np.ones((size, size), dtype=np.uint8)
    thick = max(1, size // 8)
    if size > 2 * thick:
        frame[thick:-thick, thick:-thick] = 0
    return frame


def _uri(pixels: NDArray[np.uint8]) -> str:
    return "data:image/png;base64," + base64.b64encode(_png(pixels)).decode("ascii")


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode 8-bit palette pixels (W3C PNG, sec. 5 and 11)."""
    height, width = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels], axis=1)  # filter 0: none
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    parts = ((b"IHDR", header), (b"PLTE", _palette()), (b"IDAT", zlib.compress(rows.tobytes(), 9)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in (*parts, (b"IEND", b"")))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _palette() -> bytes:
    """Colours of codes 0 to 253, the mark at 254, hidden cells at 255."""
    anchors = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in SEQUENTIAL])
    at = np.linspace(0, len(anchors) - 1, LEVELS)
    ramp = np.stack([np.interp(at, range(len(anchors)), channel) for channel in anchors.T], axis=1)
    shades: bytes = np.rint(ramp).astype(np.uint8).tobytes()
    return shades + bytes(RED) + bytes(GREY)
