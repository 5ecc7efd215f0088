"""One input of an attention function, as data: small enough to print, to shrink and to rebuild.

A `Case` names shapes, dtype, layout, mask, flags and the kind of numbers. `Case.lines` are the
lines of Python that build its tensors, with torch alone; the battery runs these very lines, so a
script that prints them reproduces to the bit what the battery saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from types import CodeType
from typing import Any, Final

import torch
from torch import Tensor

from attncheck.conformance.kinds import (
    BOOL_PATTERNS,
    CONTENTS,
    FLOAT_PATTERNS,
    LAYOUTS,
    MASK_LAYOUTS,
    SCALES,
)

__all__ = ["AXES", "Case", "Inputs"]


@dataclass(frozen=True)
class Inputs:
    """Tensors and flags of one call."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    flags: Mapping[str, Any]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by argument name, without a missing mask."""
        named = {"query": self.query, "key": self.key, "value": self.value}
        return named if self.mask is None else {**named, "attn_mask": self.mask}


@dataclass(frozen=True)
class Case:
    """One input, as data.

    Attributes:
        rank: Dimensions of query, key and value; 2 has no heads, 3 no batch, 5 an extra axis of 2.
        batch: Size of the batch axis.
        kv_heads: Heads of key and value.
        ratio: Query heads per key-value head.
        gqa: Whether ``enable_gqa=True`` is passed; always, when ``ratio`` is above 1.
        n_query: Queries.
        n_key: Keys.
        size: Size of a head in query and key.
        value_size: Size of a head in value and output.
        dtype: Name of the dtype of query, key, value and a float mask.
        mask: ``"none"``, ``"bool"`` or ``"float"``.
        mask_shape: The mask's axes: a letter of ``lbhqk`` where full, ``1`` where broadcast; ``l``
            is the first of five.
        pattern: Which positions the mask hides, or its numbers: a key of the pattern tables.
        mask_layout: Strides of the mask.
        causal: Whether ``is_causal=True`` is passed.
        scale: A key of `SCALES`.
        layout: A key of `LAYOUTS`.
        layout_on: Which of ``q``, ``k``, ``v`` have that layout.
        content: A key of `CONTENTS`.
        grad: Whether gradients are asked for.
        seed: Seed of the numbers.

    Example:
        >>> print(*Case(n_query=2, n_key=3, size=4, value_size=4).lines(), sep="\\n")
        torch.manual_seed(0)
        q = torch.randn(1, 1, 2, 4, dtype=torch.float32)
        k = torch.randn(1, 1, 3, 4, dtype=torch.float32)
        v = torch.randn(1, 1, 3, 4, dtype=torch.float32)
    """

    rank: int = 4
    batch: int = 1
    kv_heads: int = 1
    ratio: int = 1
    gqa: bool = False
    n_query: int = 3
    n_key: int = 3
    size: int = 8
    value_size: int = 8
    dtype: str = "float32"
    mask: str = "none"
    mask_shape: str = "qk"
    pattern: str = "random"
    mask_layout: str = "contiguous"
    causal: bool = False
    scale: str = "default"
    layout: str = "contiguous"
    layout_on: str = "qkv"
    content: str = "normal"
    grad: bool = False
    seed: int = 0

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.kv_heads * self.ratio

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        found = getattr(torch, self.dtype)
        assert isinstance(found, torch.dtype)
        return found

    def lead(self, heads: int) -> tuple[int, ...]:
        """Return the axes before the sequence axis."""
        return {2: (), 3: (heads,), 4: (self.batch, heads), 5: (2, self.batch, heads)}[self.rank]

    def full_mask(self) -> tuple[int, ...]:
        """Return the shape of the weights, to which a mask broadcasts."""
        return (*self.lead(self.heads), self.n_query, self.n_key)

    def mask_dims(self) -> tuple[int, ...]:
        """Return the shape of the mask."""
        size = {
            "b": self.batch,
            "h": self.heads,
            "q": self.n_query,
            "k": self.n_key,
            "1": 1,
            "l": 2,
        }
        dims = tuple(size[axis] for axis in self.mask_shape)
        return (2, *dims) if self.rank == 5 and self.mask_shape.startswith("b") else dims

    def lines(self) -> list[str]:
        """Return the lines of Python that build ``q``, ``k``, ``v`` and, if any, ``mask``."""
        dtype = f"dtype=torch.{self.dtype}"
        shapes = {
            "q": (*self.lead(self.heads), self.n_query, self.size),
            "k": (*self.lead(self.kv_heads), self.n_key, self.size),
            "v": (*self.lead(self.kv_heads), self.n_key, self.value_size),
        }
        made = [f"torch.manual_seed({self.seed})"]
        made += [f"{x} = torch.randn({_dims(shape)}, {dtype})" for x, shape in shapes.items()]
        made.append(CONTENTS[self.content].format(S=self.n_key))
        layout = LAYOUTS[self.layout]
        axes = ", ".join(str(axis) for axis in reversed(range(self.rank)))
        for x in self.layout_on if "{x}" in layout else "q":
            made.append(layout.format(x=x, r=axes, E=self.size, Ev=self.value_size))
        return [line for line in made + self._mask_lines() if line]

    def _mask_lines(self) -> list[str]:
        if self.mask == "none":
            return []
        patterns = BOOL_PATTERNS if self.mask == "bool" else FLOAT_PATTERNS
        dims = self.mask_dims()
        text = patterns[self.pattern].format(m=dims, m1=(*dims[:-1], 1), L=dims[-2], K=dims[-1])
        return [text, MASK_LAYOUTS[self.mask_layout].format(full=self.full_mask())]

    def flag_text(self) -> dict[str, str]:
        """Return the keyword arguments that are passed, as source text."""
        given = {
            "attn_mask": "mask" if self.mask != "none" else "",
            "is_causal": "True" if self.causal else "",
            "scale": SCALES[self.scale],
            "enable_gqa": "True" if self.gqa else "",
        }
        return {name: text for name, text in given.items() if text}

    def call_text(self) -> str:
        """Return the call as source text."""
        flags = "".join(f", {name}={text}" for name, text in self.flag_text().items())
        return f"attention(q, k, v{flags})"

    def build(self, device: str = "cpu") -> Inputs:
        """Run `lines` and return what they make.

        The global random state is left as it was.
        """
        scope: dict[str, Any] = {"torch": torch}
        where = torch.device(device) if device != "cpu" else nullcontext()
        state = torch.get_rng_state()
        seeding, *lines = self.lines()
        if device == "cpu":  # the same numbers; torch.manual_seed takes longer than a small call
            torch.default_generator.manual_seed(self.seed)
        else:
            exec(seeding, scope)
        with where:
            for line in lines:
                exec(_compiled(line), scope)
            flags = {
                name: eval(text, scope)
                for name, text in self.flag_text().items()
                if name != "attn_mask"
            }
        torch.set_rng_state(state)
        return Inputs(scope["q"], scope["k"], scope["v"], scope.get("mask"), flags)

    def describe(self) -> str:
        """Return one line: shapes, dtype, strides, mask, flags."""
        heads = f"{self.heads} heads" + (f" on {self.kv_heads}" if self.ratio > 1 else "")
        parts = [
            f"{self.dtype} {self.rank}-D, batch {self.batch}, {heads}",
            f"{self.n_query} queries, {self.n_key} keys, head size {self.size}"
            + (f" (values {self.value_size})" if self.value_size != self.size else ""),
        ]
        if self.mask != "none":
            dims = "x".join(str(size) for size in self.mask_dims())
            parts.append(f"{self.mask} mask {dims} ({self.pattern}, {self.mask_layout})")
        if self.layout != "contiguous":
            parts.append(f"{', '.join(self.layout_on)}: {self.layout}")
        if self.content != "normal":
            parts.append(f"{self.content} numbers")
        flags = [f"{k}={v}" for k, v in self.flag_text().items() if k != "attn_mask"]
        parts += [", ".join(flags)] if flags else []
        parts += ["with gradients"] if self.grad else []
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that differ from the defaults."""
        plain = Case()
        return {k: v for k, v in asdict(self).items() if v != getattr(plain, k)}

    @property
    def work(self) -> int:
        """Multiplications of one call, roughly."""
        pairs = self.n_query * self.n_key * self.heads * self.batch * (2 if self.rank == 5 else 1)
        return pairs * (self.size + self.value_size + 8)

    def legal(self) -> Case:
        """Return the nearest case whose parts fit together.

        For instance a matrix has no heads, float64 gets no scale in float32, a packed layout needs
        equal shapes, and both a mask and ``is_causal`` stay: whether an implementation refuses that
        is its capability.
        """
        changes: dict[str, Any] = {}
        if self.scale == "tensor" and self.dtype == "float64":
            changes |= {"scale": "double tensor"}  # who multiplies it is as exact as it is
        if self.rank < 4:
            changes |= {"batch": 1}
        if self.rank == 2:
            changes |= {"kv_heads": 1, "ratio": 1, "gqa": False}
        elif self.ratio > 1:
            changes |= {"gqa": True}
        if self.mask == "none":
            changes |= {"mask_shape": "qk", "pattern": "random", "mask_layout": "contiguous"}
        else:
            table = BOOL_PATTERNS if self.mask == "bool" else FLOAT_PATTERNS
            changes |= {"mask_shape": self.mask_shape[-self.rank :]}
            changes |= {} if self.pattern in table else {"pattern": "random"}
        equal = self.n_query == self.n_key and self.ratio == 1
        if self.layout == "packed":
            changes |= {"layout_on": "qkv"} if equal else {"layout": "every second row"}
        elif self.layout == "contiguous":
            changes |= {"layout_on": "qkv"}
        elif self.rank == 2 and self.layout in ("heads last", "expanded heads"):
            changes |= {"layout": "columns"}
        return replace(self, **changes) if changes else self


AXES: Final = tuple(field.name for field in fields(Case))


def _dims(shape: tuple[int, ...]) -> str:
    return ", ".join(str(size) for size in shape)


@lru_cache(maxsize=8192)
def _compiled(source: str) -> CodeType:
    return compile(source, "<case>", "exec")
