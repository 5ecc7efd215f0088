"""Kernels are compiled for GPUs that are not there: as far as a CPU can go."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from attncheck.kernels.counts import count_targets
from attncheck.kernels.rows import read_rows
from attncheck.kernels.sums import add_up
from attncheck.kernels.weights import measure_rows

NUMBERS = {"factor": "fp32", "softcap": "fp32"}
POINTERS = {
    "query": None, "key": None, "key_heads": "i32", "low": "i32", "high": "i32",
    "edges": "i32", "first": "i32", "counts": "u8", "tokens": "i32", "segments": "i32",
    "delimiters": "u8", "table": "fp32", "peaks": "fp32", "even": "fp32", "tops": "fp32",
    "columns": "i64", "offsets": "i64", "overlap": "i64", "cells": "i64", "found": "fp32",
    "weights": None, "out": "fp64", "wrong": "i32",
}
TARGETS = {"DUPLICATE": 10, "INDUCTION": 11, "DELIMITER": 12, "BLOCK": 13}
NOTHING = dict.fromkeys(TARGETS, -1)
OF_SCORES = {"SOFTCAP": False, "PRECISION": "ieee", "STAGES": 2}
KERNELS = {
    "rows": (read_rows, {"DISTANCES": True, "CAUSAL": True, **NOTHING, **OF_SCORES}),
    "rows with everything": (
        read_rows,
        {"DISTANCES": True, "CAUSAL": False, **TARGETS, **OF_SCORES, "SOFTCAP": True},
    ),
    "sums": (add_up, {"STEP": 8, "POSITIONAL": True, "BLOCKS": 64, **OF_SCORES}),
    "counts": (count_targets, {"ROWS": 64, "KEYS": 128, **TARGETS}),
    "weights": (measure_rows, {"CAUSAL": True, "POSITIONAL": True, "ROWS": 4, "KEYS": 1024}),
}

kernel, consts = KERNELS[sys.argv[1]]
dtype, capability = sys.argv[2], int(sys.argv[3])
if "STAGES" in consts:
    wide = dtype == "fp32"
    consts |= {"SIZE": 64, "WIDTH": 64, "ROWS": 64 if wide else 128, "KEYS": 32 if wide else 64}
signature, aligned = {}, {}
for place, name in enumerate(kernel.arg_names):
    if name in consts:
        signature[name] = "constexpr"
    elif name in POINTERS:
        signature[name] = "*" + (POINTERS[name] or dtype)
        aligned[(place,)] = [["tt.divisibility", 16]]
    else:
        signature[name] = NUMBERS.get(name, "i32")
consts = {(kernel.arg_names.index(name),): value for name, value in consts.items()}
source = ASTSource(fn=kernel, signature=signature, constexprs=consts, attrs=aligned)
options = {"num_warps": 4, "enable_fp_fusion": True}
made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
print(made.metadata.shared, len(made.asm["cubin"]))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="triton's assembler runs on x86-64")
@pytest.mark.parametrize(
    ("kernel", "dtype", "capability"),
    [
        ("rows", "bf16", 90),
        ("rows with everything", "fp16", 80),
        ("sums", "bf16", 90),
        ("sums", "fp32", 80),
        ("counts", "fp32", 90),
        ("weights", "fp32", 90),
    ],
)
def test_kernels_compile(kernel: str, dtype: str, capability: int) -> None:
    words = [sys.executable, "-c", SCRIPT, kernel, dtype, str(capability)]
    bare = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run(words, capture_output=True, text=True, check=False, env=bare)
    assert ran.returncode == 0, ran.stderr[-2000:]
    shared, size = map(int, ran.stdout.split())
    assert shared <= 99 * 1024  # what the smallest of these GPUs has for a block
    assert size > 1000
