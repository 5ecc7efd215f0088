"""Measuring cost: interleaved timing, peak memory, the machine's ceilings, and what it is."""

from attncheck.benchmark.ceilings import Ceilings, measure_ceilings
from attncheck.benchmark.machine import machine
from attncheck.benchmark.memory import peak_memory
from attncheck.benchmark.timing import interleave, median_ratio, synchroniser

__all__ = [
    "Ceilings",
    "interleave",
    "machine",
    "measure_ceilings",
    "median_ratio",
    "peak_memory",
    "synchroniser",
]
