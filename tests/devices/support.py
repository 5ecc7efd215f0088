"""A small layer, attention by definition in float64 on the CPU, and how far two may lie apart."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attncheck import AttentionMaps, tolerance_for

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HALF = DTYPES[1:]
WIDTH, HEADS, SIZE = 64, 4, 16

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def name_of(value: object) -> str | None:
    """Name dtypes in the ids of tests."""
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


class Layer(nn.Module):
    """Projects ``(batch, length, 64)`` into four heads of 16, lets a function attend, projects.

    Query and key of the last call stay in ``last``.
    """

    def __init__(self, attend: Attend, kv_heads: int = HEADS) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, kv_heads * SIZE)
        self.value = nn.Linear(WIDTH, kv_heads * SIZE)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.attend = attend
        self.last: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        source = x if context is None else context
        query, key, value = (
            projected.unflatten(-1, (-1, SIZE)).transpose(1, 2)
            for projected in (self.query(x), self.key(source), self.value(source))
        )
        self.last = (query.detach().clone(), key.detach().clone())
        return self.out(self.attend(query, key, value).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def layers(attend: Attend, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """Two layers, one behind the other, in eval mode."""
    torch.manual_seed(1)
    return nn.Sequential(Layer(attend), Layer(attend)).to(device, dtype).eval()


def inputs(
    device: torch.device, n: int = 40, dtype: torch.dtype = torch.float32, batch: int = 2
) -> Tensor:
    """The same numbers on every device, rounded to the dtype."""
    generator = torch.Generator().manual_seed(n)
    return (2 * torch.randn(batch, n, WIDTH, generator=generator)).to(dtype).to(device)


def exact_weights(
    query: Tensor,
    key: Tensor,
    *,
    visible: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Weights by definition in float64; blind rows are zero, key heads repeat in blocks."""
    query, key = query.detach().cpu().double(), key.detach().cpu().double()
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias.cpu().double()
    if visible is not None:
        scores = scores.masked_fill(~visible.cpu(), -torch.inf)
    return torch.nan_to_num(scores.softmax(-1))


def assert_rebuilt(weights: Tensor, expected: Tensor) -> None:
    """Hold rebuilt weights, float32 at least, against exact ones: to the table's float32."""
    assert weights.dtype == torch.float32
    allowed = tolerance_for("float32")
    torch.testing.assert_close(
        weights.cpu().double(), expected, atol=allowed.atol, rtol=allowed.rtol
    )


def variation(weights: Tensor, expected: Tensor) -> float:
    """Total variation, the mean over rows that see a key, of the worst head."""
    weights, expected = weights.cpu().double(), expected.cpu().double()
    assert weights.shape == expected.shape
    rows = expected.sum(-1) > 0
    moved = (weights - expected).abs().sum(-1) / 2
    per_head = (moved * rows).sum((0, 2)) / rows.sum((0, 2)).clamp(min=1)
    return float(per_head.max())


def assert_same_maps(
    found: AttentionMaps, expected: AttentionMaps, dtype: torch.dtype = torch.float32
) -> None:
    """Hold what a model does on a device against what it does in float64 on the CPU."""
    assert found.names == expected.names
    allowed = tolerance_for(dtype).total_variation
    for ours, theirs in zip(found.layers, expected.layers, strict=True):
        assert (ours.kind, ours.causal, ours.status) == (theirs.kind, theirs.causal, "exact")
        assert ours.n_key_value_heads == theirs.n_key_value_heads
        rows = theirs.valid_rows()
        assert torch.equal(ours.valid_rows().cpu(), rows)
        seen = (rows[..., None] & theirs.visible()).expand(theirs.weights.shape)
        assert torch.equal((ours.visible().cpu() & rows[..., None]).expand_as(seen), seen)
        moved = variation(ours.weights.cpu() * rows[..., None], theirs.weights * rows[..., None])
        assert moved <= allowed, f"{ours.name}: {moved:.2g} > {allowed:.2g}"


def doubled(model: nn.Module) -> Any:
    """A copy on the CPU in float64."""
    return copy.deepcopy(model).cpu().double()


def on(device: torch.device, value: Any, dtype: torch.dtype | None = None) -> Any:
    """Move whatever tensors there are; floating ones to a dtype as well."""
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, Mapping):
        return {name: on(device, held, dtype) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on(device, held, dtype) for held in value)
    return value
