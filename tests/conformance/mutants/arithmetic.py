"""Wrong factors, and numbers of too few bits."""

from __future__ import annotations

from typing import Any

import torch

from tests.conformance.mutants.base import Steps, put, steps

GH = "https://github.com/"
OFF = Steps()

steps(
    "scale-missing",
    "scale",
    "https://github.com/mlc-ai/mlc-llm/pull/3426",
    factor=lambda c: 1.0 if c.scale is None else float(c.scale),
)
steps(
    "scale-one-over-d",
    "scale",
    "no report; muP's 1/d taken for 1/sqrt(d)",
    factor=lambda c: 1 / c.E if c.scale is None else float(c.scale),
)
steps(
    "scale-ignored",
    "scale",
    "https://github.com/NVIDIA/Megatron-LM/pull/3698",
    factor=lambda c: c.E**-0.5,
)
steps(
    "scale-padded-head",
    "scale",
    "https://github.com/bytedance-iaas/sglang/pull/485",
    factor=lambda c: (-(-c.E // 8) * 8) ** -0.5 if c.scale is None else float(c.scale),
)
steps(
    "scale-of-value-size",
    "scale",
    "no report; common slip",
    factor=lambda c: c.Ev**-0.5 if c.scale is None else float(c.scale),
)
steps(
    "scale-zero-is-none",
    "scale",
    "https://github.com/SKaiNET-developers/SKaiNET/pull/880",
    factor=lambda c: float(c.scale or c.E**-0.5),
)
steps(
    "scale-on-top",
    "scale",
    "no report; common slip",
    factor=lambda c: c.E**-0.5 * (1 if c.scale is None else float(c.scale)),
)
steps(
    "scale-absolute",
    "scale",
    "no report; sqrt of the scale on query and key each: math.sqrt(abs(scale))",
    factor=lambda c: abs(float(c.E**-0.5 if c.scale is None else c.scale)),
)
steps(
    "scale-hard-64",
    "scale",
    GH + "lucidrains/muse-maskgit-pytorch/issues/40",
    factor=lambda c: 0.125 if c.scale is None else float(c.scale),
)
steps(
    "scale-rounded-half",
    "scale",
    "no report; the scale kept in the inputs' half precision, also for float32",
    factor=lambda c: (
        float(torch.tensor(c.E**-0.5).bfloat16()) if c.scale is None else float(c.scale)
    ),
)

steps(
    "dtype-float64-in-32",
    "dtype",
    "no report; a float32 accumulator for float64 inputs",
    scores=lambda c: OFF.scores(c).float().to(c.dtype),
)
steps(
    "dtype-float32-in-16",
    "dtype",
    "no report; tensor cores: float32 rounded to half precision",
    combine=lambda c: c.dropped.bfloat16().to(c.dtype) @ c.v.bfloat16().to(c.dtype),
)
steps(
    "dtype-tf32",
    "dtype",
    "no report; torch.backends.cuda.matmul.allow_tf32: 10 bits of mantissa",
    prepare=lambda c: put(c, q=_tf32(c.q), k=_tf32(c.k)),
)
steps(
    "dtype-output-float32",
    "dtype",
    "no report; common slip",
    finish=lambda c: c.output.float() if c.dtype != torch.float64 else c.output,
)
steps(
    "dtype-half-accumulation",
    "dtype",
    "https://github.com/zhuzilin/ring-flash-attention/issues/22",
    combine=lambda c: _chunked(c, 8),
)
steps(
    "dtype-score-half",
    "dtype",
    "no report; scores stored as float16: they overflow, and round",
    scores=lambda c: (
        OFF.scores(c).half().to(c.dtype) if c.dtype == torch.float32 else OFF.scores(c)
    ),
)


def _tf32(x: Any) -> Any:
    if x.dtype != torch.float32:
        return x
    return (x.detach().contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32) + (
        x - x.detach()
    )


def _chunked(c: Any, size: int) -> Any:
    if c.dtype not in (torch.float16, torch.bfloat16) or c.S == 0:
        return c.dropped @ c.v
    total: Any = 0
    for start in range(0, c.S, size):
        total = total + c.dropped[..., start : start + size] @ c.v[..., start : start + size, :]
    return total
