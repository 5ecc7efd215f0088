"""Exponential and logarithm in float32, written so that a compiler runs eight of them at once.

A call of the C library handles one number at a time, ten times slower. A power of two is split off,
a short polynomial does the rest: for the logarithm that of Cephes (Moshier 1989, ``logf``), for the
exponential the one of degree 6 whose largest relative error is least (2e-9).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from attncheck.compiled.loop import exact

__all__ = ["ZERO", "exp", "larger", "log", "smaller"]

f32: Final = np.float32

LOWEST: Final = f32(-88.1)
"""The power of two is -127 here, whose bits are those of 0, and so it is from -87.7 down."""

TINY: Final = f32(np.finfo(np.float32).tiny)
LOG2_E: Final = f32(1.4426950408889634)
LN2: Final = f32(0.6931471805599453)
"""Its error is 2e-9: a 30th of what float32 rounds to here."""

LN2_HIGH, LN2_LOW = f32(0.693359375), f32(-2.12194440e-4)
ROUNDER: Final = f32(12582912 + 127)
"""1.5 * 2**23, and the bias of exponents: a whole number added to it stands in the lowest bits."""

E2, E3, E4 = f32(4.9999994e-1), f32(1.6666432e-1), f32(4.1668000e-2)
E5, E6 = f32(8.374156e-3), f32(1.3843651e-3)
G0, G1, G2 = f32(7.0376836292e-2), f32(-1.1514610310e-1), f32(1.1676998740e-1)
G3, G4, G5 = f32(-1.2420140846e-1), f32(1.4249322787e-1), f32(-1.6668057665e-1)
G6, G7, G8 = f32(2.0000714765e-1), f32(-2.4999993993e-1), f32(3.3333331174e-1)
ZERO, HALF, ONE, TWO = f32(0), f32(0.5), f32(1), f32(2)
ROOT: Final = f32(1.41421356)

_INT: Final = ir.IntType(32)
_FLOAT: Final = ir.FloatType()


def _constant(number: int) -> Any:
    return ir.Constant(_INT, number)


@intrinsic
def _power_of_two(_context: Any, _rounded: Any) -> Any:
    """``2**n`` of an ``n`` that was rounded by adding `ROUNDER`."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], _INT)
        return builder.bitcast(builder.shl(bits, _constant(23)), _FLOAT)

    return types.float32(types.float32), generate


@intrinsic
def _exponent(_context: Any, _number: Any) -> Any:
    """``floor(log2(x))`` of a positive normal ``x``, as a float32."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        bits = builder.lshr(builder.bitcast(args[0], _INT), _constant(23))
        return builder.sitofp(builder.sub(bits, _constant(127)), _FLOAT)

    return types.float32(types.float32), generate


@intrinsic
def _mantissa(_context: Any, _number: Any) -> Any:
    """``x / 2**floor(log2(x))`` of a positive normal ``x``: from 1 to 2."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        bits = builder.and_(builder.bitcast(args[0], _INT), _constant(0x7FFFFF))
        return builder.bitcast(builder.or_(bits, _constant(0x3F800000)), _FLOAT)

    return types.float32(types.float32), generate


def _chosen(sign: str) -> Any:
    """Generate the choice of one of two numbers, in a form that a loop takes eight at a time."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        flags = ["nnan", "nsz"]
        first = builder.fcmp_ordered(sign, *args, flags=flags)
        return builder.select(first, *args, flags=flags)

    return types.float32(types.float32, types.float32), generate


@intrinsic
def larger(_context: Any, _one: Any, _other: Any) -> Any:
    """The larger of two float32; either if one is NaN: who asks looks for NaN elsewhere."""
    return _chosen(">")


@intrinsic
def smaller(_context: Any, _one: Any, _other: Any) -> Any:
    """The smaller of two float32; either if one is NaN: who asks looks for NaN elsewhere."""
    return _chosen("<")


@exact
def exp(x: Any) -> Any:
    """``e**x`` of a float32 that is not above 0; 0 below -87.7; NaN stays.

    Its relative error is two roundings, and ``3e-9 * |x|``. More constants would not fit into the
    registers: their loop then takes a third longer.
    """
    x = LOWEST if x < LOWEST else x
    rounded = x * LOG2_E + ROUNDER
    n = rounded - ROUNDER
    r = x - n * LN2
    p = E6 * r + E5
    p = p * r + E4
    p = p * r + E3
    p = p * r + E2
    p = p * r + ONE
    p = p * r + ONE
    return p * _power_of_two(rounded)


@exact
def log(x: Any) -> Any:
    """Natural logarithm of a float32, to two roundings; of what is below `TINY`, that of `TINY`."""
    y = TINY if x < TINY else x
    n, m = _exponent(y), _mantissa(y)
    n, m = (n + ONE, m * HALF) if m > ROOT else (n, m)
    r = m - ONE
    square = r * r
    p = G0 * r + G1
    p = p * r + G2
    p = p * r + G3
    p = p * r + G4
    p = p * r + G5
    p = p * r + G6
    p = p * r + G7
    p = p * r + G8
    p = p * r * square + n * LN2_LOW - HALF * square
    return r + p + n * LN2_HIGH
