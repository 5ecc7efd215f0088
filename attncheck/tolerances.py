"""One table of tolerances by dtype; nobody else in the library writes a number of this kind.

``atol`` and ``rtol`` are those of ``torch.testing.assert_close``. Measured over 512 softmax rows
of 16 to 32,768 keys, summed in float64, the worst ``|row sum - 1|`` was 1.9e-14 (float64), 1.2e-6
(float32), 3.6e-4 (float16) and 2.8e-3 (bfloat16): the table leaves margins from 2.8 up.
``total_variation`` is how far two captures of one head may lie apart, as the mean over rows of
half the summed absolute difference; padding, thread count and dtype alone stay below it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

__all__ = ["TOLERANCES", "Tolerance", "tolerance_for"]


@dataclass(frozen=True)
class Tolerance:
    """What rounding alone may do to numbers of one dtype.

    Attributes:
        atol: Largest absolute error of one number near 0.
        rtol: Largest relative error of one number.
        total_variation: Largest mean total variation between two captures of one head.
    """

    atol: float
    rtol: float
    total_variation: float

    @property
    def row_sum(self) -> float:
        """Largest ``|row sum - 1|``, from ``atol + rtol * 1``."""
        return self.atol + self.rtol

    @property
    def row_variation(self) -> float:
        """Largest total variation of a single row: measured worst 1.5e-6, 2.5e-3 and 2.1e-2."""
        return 5 * self.total_variation


TOLERANCES: Final[Mapping[str, Tolerance]] = MappingProxyType(
    {
        "float64": Tolerance(atol=1e-7, rtol=1e-7, total_variation=1e-7),
        "float32": Tolerance(atol=1e-5, rtol=1.3e-6, total_variation=1e-5),
        "float16": Tolerance(atol=1e-5, rtol=1e-3, total_variation=2e-3),
        "bfloat16": Tolerance(atol=1e-5, rtol=1.6e-2, total_variation=1e-2),
    }
)


def tolerance_for(*dtypes: object) -> Tolerance:
    """Return the loosest tolerance among some dtypes.

    Args:
        dtypes: ``torch.dtype`` or ``numpy.dtype`` objects, or their names.

    Raises:
        ValueError: A dtype is not a floating one of the table.

    Example:
        >>> tolerance_for("float32", "float16").rtol
        0.001
    """
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    for name in names:
        if name not in TOLERANCES:
            raise ValueError(f"dtype: no tolerance for {name!r}; known are {', '.join(TOLERANCES)}")
    return max((TOLERANCES[name] for name in names), key=lambda tolerance: tolerance.row_sum)
