"""Exponential and logarithm in float32, written so that a compiler runs eight of them at once.

A call of the C library handles one number at a time, ten times slower. A power of two is split off;
what is left goes through the polynomial whose largest relative error is least, of degree 6 (2e-9)
for the exponential, of degree 9 (3e-8) for the logarithm. Few constants count for as much as few
operations: where they don't fit into the registers, a loop takes a third longer.
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

LOG2_E: Final = f32(1.4426950408889634)
LN2: Final = f32(0.6931471805599453)
"""Its error is 2e-9: a 30th of what float32 rounds to here."""

ROUNDER: Final = f32(12582912 + 127)
"""1.5 * 2**23, and the bias of exponents: a whole number added to it stands in the lowest bits."""

E2, E3, E4 = f32(4.9999994e-1), f32(1.6666432e-1), f32(4.1668000e-2)
E5, E6 = f32(8.374156e-3), f32(1.3843651e-3)
G2, G3, G4 = f32(-4.99999911e-1), f32(3.33339512e-1), f32(-2.50017554e-1)
G5, G6, G7 = f32(1.99620724e-1), f32(-1.65705085e-1), f32(1.49179742e-1)
G8, G9 = f32(-1.43075228e-1), f32(8.73484388e-2)
ZERO, ONE = f32(0), f32(1)
ROOT_BITS: Final = 0x3F3504F3
"""Bits of the root of 1/2: what is split off leaves between that and the root of 2."""

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
    """The whole ``n`` that leaves ``x / 2**n`` between the roots of 1/2 and 2, of ``x > 0``."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        beyond = builder.sub(builder.bitcast(args[0], _INT), _constant(ROOT_BITS))
        return builder.ashr(beyond, _constant(23))

    return types.int32(types.float32), generate


@intrinsic
def _as_float(_context: Any, _number: Any) -> Any:
    """A whole number as a float32."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.sitofp(args[0], _FLOAT)

    return types.float32(types.int32), generate


@intrinsic
def _without(_context: Any, _number: Any, _exponent: Any) -> Any:
    """``x / 2**n``."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        bits = builder.sub(builder.bitcast(args[0], _INT), builder.shl(args[1], _constant(23)))
        return builder.bitcast(bits, _FLOAT)

    return types.float32(types.float32, types.int32), generate


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

    Its relative error is two roundings, and ``3e-9 * |x|``; ``6e-8 * |x|`` on a processor that
    does not fuse a product with a sum.
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
    """Natural logarithm of a float32, to two roundings; about -88 below the smallest normal one.

    Of what is negative or no number it is some number: who asks looks for these elsewhere.
    """
    n = _exponent(x)
    r = _without(x, n) - ONE
    p = G9 * r + G8
    p = p * r + G7
    p = p * r + G6
    p = p * r + G5
    p = p * r + G4
    p = p * r + G3
    p = p * r + G2
    return _as_float(n) * LN2 + (p * (r * r) + r)
