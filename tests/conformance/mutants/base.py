"""A correct attention in steps, so that a mutant changes one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

__all__ = ["MUTANTS", "Mutant", "Steps", "mutant", "put", "steps"]


@dataclass(frozen=True)
class Mutant:
    """A wrong implementation: where the mistake was real, and what it is about."""

    id: str
    family: str
    source: str
    make: Callable[[], Callable[..., Any]]
    returns_weights: bool = False


MUTANTS: dict[str, Mutant] = {}


class Steps:
    """Attention in steps; ``c`` carries q, k, v, mask, causal, scale, gqa, p and what they make."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:  # fmt: skip
        c = SimpleNamespace(
            q=query, k=key, v=value, mask=attn_mask, p=dropout_p, causal=is_causal, scale=scale,
            gqa=enable_gqa, dtype=query.dtype,
        )  # fmt: skip
        c.L, c.S, c.E, c.Ev = query.shape[-2], key.shape[-2], query.shape[-1], value.shape[-1]
        c.B = query.shape[0] if query.dim() > 3 else 1
        c.H = query.shape[-3] if query.dim() > 2 else 1
        c.KV = key.shape[-3] if key.dim() > 2 else 1
        self.prepare(c)
        self.group(c)
        c.factor = self.factor(c)
        c.scores = self.scores(c)
        self.hide(c)
        c.weights = self.softmax(c)
        c.dropped = self.dropout(c)
        c.output = self.combine(c)
        return self.finish(c)

    def prepare(self, c: Any) -> None:
        """Change the inputs."""

    def group(self, c: Any) -> None:
        if c.gqa:
            n = c.H // max(c.KV, 1)
            c.k, c.v = c.k.repeat_interleave(n, -3), c.v.repeat_interleave(n, -3)

    def factor(self, c: Any) -> float:
        return float(c.E**-0.5 if c.scale is None else c.scale)

    def scores(self, c: Any) -> Tensor:
        scores: Tensor = (c.q * c.factor) @ c.k.mT
        return scores

    def future(self, c: Any) -> Tensor:
        return torch.ones(c.L, c.S, dtype=torch.bool).triu(1)

    def hide(self, c: Any) -> None:
        if c.causal:
            c.scores = c.scores.masked_fill(self.future(c), -torch.inf)
        if c.mask is not None:
            self.apply_mask(c)

    def apply_mask(self, c: Any) -> None:
        if c.mask.dtype == torch.bool:
            c.scores = c.scores.masked_fill(~c.mask, -torch.inf)
        else:
            c.scores = c.scores + c.mask

    def softmax(self, c: Any) -> Tensor:
        empty = (c.scores == -torch.inf).all(-1, keepdim=True)
        return torch.softmax(c.scores.masked_fill(empty, 0), -1).masked_fill(empty, 0)

    def dropout(self, c: Any) -> Tensor:
        return torch.nn.functional.dropout(c.weights, c.p) if c.p else c.weights

    def combine(self, c: Any) -> Tensor:
        output: Tensor = c.dropped @ c.v
        return output

    def finish(self, c: Any) -> Any:
        return c.output


def put(c: Any, **changes: Any) -> Any:
    """Change what ``c`` carries, and return it."""
    c.__dict__.update(changes)
    return c


def mutant(
    id: str, family: str, source: str, returns_weights: bool = False
) -> Callable[[Callable[[], Callable[..., Any]]], Any]:
    """Enter a class (or a function that makes a callable) in `MUTANTS`."""

    def enter(make: Callable[[], Callable[..., Any]]) -> Any:
        assert id not in MUTANTS, id
        MUTANTS[id] = Mutant(id, family, source, make, returns_weights)
        return make

    return enter


def steps(id: str, family: str, source: str, returns_weights: bool = False, **changes: Any) -> None:
    """Enter a mutant that replaces some steps by functions of ``c``."""

    def make() -> Callable[..., Any]:
        methods = {name: _method(change) for name, change in changes.items()}
        instance: Callable[..., Any] = type(id, (Steps,), methods)()
        return instance

    mutant(id, family, source, returns_weights)(make)


def _method(change: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda self, c: change(c)
