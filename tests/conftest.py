"""Shared by all tests: one thread, so that numbers repeat; Hypothesis without deadlines.

Where there is no GPU, triton's interpreter runs the package's kernels. It must be told before
anybody imports triton, and a process can't go back.
"""

from __future__ import annotations

import os

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
settings.register_profile(
    "attncheck",
    deadline=None,
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("attncheck")
