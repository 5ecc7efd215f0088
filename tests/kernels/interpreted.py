"""Where the kernels of these tests run: triton's interpreter stands in for a GPU."""

from __future__ import annotations

import torch

__all__ = ["DEVICE"]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
