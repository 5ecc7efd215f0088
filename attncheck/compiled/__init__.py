"""Loops that read rows of attention once, compiled by numba where it is installed.

A pass of torch over a block of weights costs as much as the memory it moves, and a dozen measures
need a dozen passes. Here each row is read once or twice while it lies in the processor's first
cache. Importing this package is light and needs no numba; `missing` says whether it is there.
The other modules need it: import them inside the function that uses them.
"""

from attncheck.compiled.presence import MANY, SMALL, missing

__all__ = ["MANY", "SMALL", "missing"]
