"""Ways to call `scaled_dot_product_attention`, and which kernel of which device takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from torch.nn.attention.bias import causal_lower_right

from tests.devices.support import HEADS, Layer

BATCH, N = 2, 40
FEWER = 24


def fixed(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def window(n_query: int, n_key: int) -> Tensor:
    behind = torch.arange(n_query)[:, None] - torch.arange(n_key)
    return (behind >= 0) & (behind < 9)


@dataclass(frozen=True)
class Call:
    """Arguments of a call, and what they mean.

    Attributes:
        options: Given to the kernel; tensors are moved to the device, floating ones to its dtype.
        visible: Bool, broadcastable to ``(batch, head, query, key)``.
        bias: Added to the scores, likewise.
        n_query, n_key: Lengths.
        causal: What the layer says of itself.
    """

    options: dict[str, Any]
    visible: Tensor | None = None
    bias: Tensor | None = None
    n_query: int = N
    n_key: int = N
    kv_heads: int = HEADS
    scale: float | None = None
    causal: bool = False

    def layer(self) -> nn.Module:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            options = dict(self.options)
            mask = options.get("attn_mask")
            if type(mask) is Tensor:
                moved = mask.to(query.dtype) if mask.is_floating_point() else mask
                options["attn_mask"] = moved.to(query.device)
            elif mask == "lower right":
                options["attn_mask"] = causal_lower_right(self.n_query, self.n_key)
            return F.scaled_dot_product_attention(query, key, value, **options)

        torch.manual_seed(2)
        return Layer(attend, self.kv_heads).eval()


TRIANGLE = torch.ones(N, N).tril().bool()
PAD = (torch.arange(N) < torch.tensor([[N], [N - 7]]))[:, None, None]
BLIND = TRIANGLE.clone()
BLIND[5] = False
BIAS = fixed(1, HEADS, N, N)
HIDDEN = torch.zeros(N, N).masked_fill(~window(N, N), -torch.inf)

CALLS: dict[str, Call] = {
    "plain": Call({}),
    "scale": Call({"scale": 0.4}, scale=0.4),
    "causal": Call({"is_causal": True}, TRIANGLE, causal=True),
    "grouped": Call({"is_causal": True, "enable_gqa": True}, TRIANGLE, kv_heads=2, causal=True),
    "fewer_queries": Call({"is_causal": True}, TRIANGLE[:FEWER], n_query=FEWER),
    "fewer_keys": Call({"is_causal": True}, TRIANGLE[:, :FEWER], n_key=FEWER),
    "lower_right": Call(
        {"attn_mask": "lower right"}, TRIANGLE[N - FEWER :], n_query=FEWER, causal=True
    ),
    "padding": Call({"attn_mask": PAD}, PAD),
    "bool_window": Call({"attn_mask": window(N, N)}, window(N, N), causal=True),
    "additive_window": Call({"attn_mask": HIDDEN}, window(N, N), causal=True),
    "bias": Call({"attn_mask": BIAS}, bias=BIAS),
    "blind_row": Call({"attn_mask": BLIND}, BLIND, causal=True),
}

MASKED = ("padding", "bool_window", "additive_window", "bias", "blind_row")
PLAIN = ("plain", "scale", "causal", "grouped", "lower_right")
UNEQUAL = ("fewer_queries", "fewer_keys")

TAKEN: dict[str, dict[str, tuple[tuple[str, ...], tuple[torch.dtype, ...]]]] = {
    "cpu": {
        "MATH": (tuple(CALLS), (torch.float32, torch.bfloat16)),
        "FLASH_ATTENTION": (tuple(CALLS), (torch.float32, torch.float16)),
    },
    "cuda": {
        "any": (tuple(CALLS), (torch.float32, torch.bfloat16)),
        "MATH": (tuple(CALLS), (torch.float32, torch.float16)),
        "FLASH_ATTENTION": (PLAIN, (torch.float16, torch.bfloat16)),
        "EFFICIENT_ATTENTION": (
            ("plain", "scale", "causal", "lower_right", *UNEQUAL, *MASKED),
            (torch.float32, torch.float16),
        ),
        "CUDNN_ATTENTION": (
            ("plain", "scale", "causal", "grouped", *MASKED),
            (torch.float16, torch.bfloat16),
        ),
    },
}
"""By device and kernel: the calls and dtypes that it is asked to take."""


@dataclass(frozen=True)
class KernelCase:
    """One call of one kernel in one dtype."""

    kernel: str
    call: str
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.kernel}-{self.call}-{str(self.dtype).removeprefix('torch.')}"

    @property
    def backends(self) -> list[SDPBackend]:
        if self.kernel != "any":
            return [getattr(SDPBackend, self.kernel)]
        return [
            SDPBackend.CUDNN_ATTENTION,
            SDPBackend.FLASH_ATTENTION,
            SDPBackend.EFFICIENT_ATTENTION,
            SDPBackend.MATH,
        ]


def cases_of(kind: str) -> list[KernelCase]:
    return [
        KernelCase(kernel, call, dtype)
        for kernel, (calls, dtypes) in TAKEN[kind].items()
        for call in calls
        for dtype in dtypes
    ]
