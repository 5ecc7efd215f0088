"""The exponential and the logarithm of compiled loops against float64."""

from __future__ import annotations

import math
import platform

import numpy as np
import pytest

pytest.importorskip("numba")

from llvmlite.binding import get_host_cpu_features

from attncheck.compiled.arithmetic import exp, log

EPS = float(np.finfo(np.float32).eps)
FUSES = get_host_cpu_features().get("fma", platform.machine() not in ("x86_64", "AMD64"))


def test_the_exponential_is_exact_to_one_rounding_and_a_little_of_its_exponent() -> None:
    points = np.linspace(-87.2, 0, 20001).astype(np.float32)
    found = np.array([exp(x) for x in points], np.float64)
    exact = np.exp(points.astype(np.float64))
    assert (np.abs(found - exact) / exact - (3e-9 if FUSES else 6e-8) * np.abs(points)).max() <= EPS


def test_the_logarithm_is_exact_to_one_rounding() -> None:
    near = 1 + np.outer([1, -1], np.logspace(-7, -1, 500)).ravel()
    points = np.concatenate([np.exp(np.linspace(-87.2, 3, 20001)), near]).astype(np.float32)
    found = np.array([log(x) for x in points], np.float64)
    exact = np.log(points.astype(np.float64))
    assert (np.abs(found - exact) / np.maximum(np.abs(exact), 1e-7)).max() <= EPS


def test_ends_and_what_is_no_number() -> None:
    f32 = np.float32
    assert exp(f32(0)) == 1
    assert exp(f32(-1e30)) == exp(f32(-math.inf)) == 0
    assert math.isnan(exp(f32(math.nan)))
    assert 0 * log(f32(0)) == 0
    assert -89 < log(f32(0)) <= log(f32(1e-42)) < math.log(np.finfo(np.float32).tiny)
    assert log(f32(1)) == 0
