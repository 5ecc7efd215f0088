"""Kinds of scales, numbers, strides and masks by name: each one line of Python of torch alone."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

__all__ = [
    "BOOL_PATTERNS",
    "CONTENTS",
    "FLOAT_PATTERNS",
    "LAYOUTS",
    "LOOKALIKES",
    "MASK_LAYOUTS",
    "SCALES",
    "USUAL_CONTENTS",
]

SCALES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "default": "",
        "given": "0.3",
        "one": "1.0",
        "large": "2.5",
        "small": "0.01",
        "tensor": "torch.tensor(0.4)",
        "double tensor": "torch.tensor(0.3, dtype=torch.float64)",
        "integer": "2",
        "negative": "-0.3",
        "zero": "0.0",
    }
)
"""The ``scale`` argument by name; the source text of its value, empty for "not given"."""

CONTENTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "normal": "",
        "large": "q = 8 * q",
        "huge": "q = 40 * q",
        "positive": "q, k, v = q.abs(), k.abs(), v.abs()",
        "growing": "q, k = q.abs(), k.abs() * torch.linspace(0, 6, {S}, dtype=k.dtype)[:, None]",
        "falling": "q, k = q.abs(), k.abs() * torch.linspace(6, 0, {S}, dtype=k.dtype)[:, None]",
        "shifted": "q, k = q + 1.5, k + 1.5",
        "zeros": "k = 0 * k",
        "offset values": "v = v + 4",
        "big values": "v = 100 * v",
        "enormous": "q = 30_000 * q",
        "sunken": "q, k = 300 * q.abs(), -k.abs()",
        "alike": "k, v = 0 * k, 100 + 8 * v",
    }
)
"""The kind of numbers by name; a line that turns normal numbers into that kind."""

USUAL_CONTENTS: Final = tuple(
    name for name in CONTENTS if name not in ("enormous", "sunken", "alike")
)
"""Kinds whose scores stay within the range of half precision, and that are no property's own."""

LAYOUTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "contiguous": "",
        "heads last": "{x} = {x}.transpose(-3, -2).contiguous().transpose(-3, -2)",
        "columns": "{x} = {x}.mT.contiguous().mT",
        "every second feature": "{x} = {x}.repeat_interleave(2, -1)[..., ::2]",
        "every second row": "{x} = {x}.repeat_interleave(2, -2)[..., 1::2, :]",
        "offset": "{x} = torch.cat([{x}[..., :1], {x}], -1)[..., 1:]",
        "reversed axes": "{x} = {x}.permute({r}).contiguous().permute({r})",
        "expanded heads": "{x} = {x}[..., :1, :, :].expand({x}.shape)",
        "expanded batch": "{x} = {x}[:1].expand({x}.shape)",
        "expanded rows": "{x} = {x}[..., :1, :].expand({x}.shape)",
        "packed": "q, k, v = torch.cat([q, k, v], -1).split([{E}, {E}, {Ev}], -1)",
    }
)
"""Strides by name; a line that lays ``{x}`` out so, without changing its shape."""

BOOL_PATTERNS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "random": "mask = torch.rand({m}) > 0.4",
        "padding": "mask = torch.arange({K}) < torch.randint(1, {K} + 1, {m1})",
        "left padding": "mask = torch.arange({K}) >= torch.randint(0, {K}, {m1})",
        "empty rows": "mask = (torch.rand({m}) > 0.3) & (torch.rand({m1}) > 0.4)",
        "one key": "mask = torch.arange({K}) == torch.randint(0, {K}, {m1})",
        "lower": "mask = torch.ones({m}).tril().bool()",
        "all": "mask = torch.ones({m}).bool()",
        "none": "mask = torch.zeros({m}).bool()",
        "causal but one": "mask = torch.ones({m}).tril().bool(); "
        "mask[..., {L} // 2, ({L} - 1) // 4] = False",
        "causal and one": "mask = torch.ones({m}).tril().bool(); "
        "mask[..., {L} // 2, min({L} // 2 + 1, {K} - 1)] = True",
    }
)
"""Boolean masks by name: ``{m}`` is the shape, ``{m1}`` the same with one key, ``{L}`` its queries,
``{K}`` its keys."""

FLOAT_PATTERNS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "random": "mask = torch.randn({m}, dtype=q.dtype)",
        "large": "mask = 12 * torch.randn({m}, dtype=q.dtype)",
        "padding": "mask = torch.zeros({m}, dtype=q.dtype).masked_fill(torch.arange({K}) "
        ">= torch.randint(1, {K} + 1, {m1}), -torch.inf)",
        "empty rows": "mask = torch.randn({m}, dtype=q.dtype).masked_fill("
        "torch.rand({m1}) < 0.4, -torch.inf)",
        "holes": "mask = torch.randn({m}, dtype=q.dtype).masked_fill("
        "torch.rand({m}) < 0.4, -torch.inf)",
        "distance": "mask = -0.5 * torch.arange({K} - 1, -1, -1).to(q.dtype).expand({m}).clone()",
        "lowest": "mask = torch.zeros({m}, dtype=q.dtype).masked_fill("
        "torch.arange({K}) >= torch.randint(1, {K} + 1, {m1}), torch.finfo(q.dtype).min)",
        "all lowest": "mask = torch.full({m}, torch.finfo(q.dtype).min, dtype=q.dtype)",
        "lowest and hidden": "mask = torch.full({m}, torch.finfo(q.dtype).min, dtype=q.dtype)"
        ".masked_fill(torch.rand({m}) < 0.3, -torch.inf)",
        "all hidden": "mask = torch.full({m}, -torch.inf, dtype=q.dtype)",
        "zeros": "mask = torch.zeros({m}, dtype=q.dtype)",
        "causal but one": "mask = torch.full({m}, -torch.inf, dtype=q.dtype).triu(1); "
        "mask[..., {L} // 2, ({L} - 1) // 4] = -torch.inf",
        "causal and one": "mask = torch.full({m}, -torch.inf, dtype=q.dtype).triu(1); "
        "mask[..., {L} // 2, min({L} // 2 + 1, {K} - 1)] = 0.0",
    }
)
"""Additive masks by name, as `BOOL_PATTERNS`."""

LOOKALIKES: Final = ("causal but one", "causal and one")
"""Square masks that differ from a causal one at one position, in no corner."""

MASK_LAYOUTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "contiguous": "",
        "columns": "mask = mask.mT.contiguous().mT",
        "every second": "mask = mask.repeat_interleave(2, -1)[..., ::2]",
        "expanded": "mask = mask.expand({full})",
        "offset": "mask = torch.cat([mask[..., :1], mask], -1)[..., 1:]",
        "later rows": "mask = torch.cat([mask[..., :1, :], mask], -2)[..., 1:, :]",
    }
)
"""Strides of a mask by name."""
