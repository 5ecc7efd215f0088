"""Measuring cost: interleaved timing, peak memory, the machine's ceilings, and what it is."""

from attncheck.benchmark.ceilings import Ceilings, measure_ceilings
from attncheck.benchmark.costs import Cost, CostTable, LeftOut, measure_costs
from attncheck.benchmark.flops import count_flops
from attncheck.benchmark.machine import machine
from attncheck.benchmark.memory import peak_memory
from attncheck.benchmark.timing import interleave, median_ratio, synchroniser
from attncheck.benchmark.ways import PLAIN, Inputs, Way, ways_of

__all__ = [
    "PLAIN",
    "Ceilings",
    "Cost",
    "CostTable",
    "Inputs",
    "LeftOut",
    "Way",
    "count_flops",
    "interleave",
    "machine",
    "measure_ceilings",
    "measure_costs",
    "median_ratio",
    "peak_memory",
    "synchroniser",
    "ways_of",
]
