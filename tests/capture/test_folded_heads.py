"""Heads that lie in the batch, before it, or are called one by one: each is told for what it is."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck import AttentionExtractor
from tests.capture.handwritten import Attend, fused, written

LENGTH, SIZE = 7, 4


class Inner(nn.Module):
    """Gets query, key and value ready made."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attend = attend

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attend(q, k, v)


class Folding(nn.Module):
    """Attends over heads that lie where ``way`` has them."""

    def __init__(self, way: str, heads: int, attend: Attend, declares: bool, inner: bool) -> None:
        super().__init__()
        self.h = heads
        if declares:
            self.num_heads = heads
        self.qkv = nn.Linear(heads * SIZE, 3 * heads * SIZE)
        self.way, self.attend = way, Inner(attend) if inner else attend
        self.expected = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(x).chunk(3, -1)
        q, k, v = (part.view(batch, length, self.h, SIZE).transpose(1, 2) for part in parts)
        self.expected = (q @ k.mT / SIZE**0.5).softmax(-1).detach()
        return WAYS[self.way](self, q, k, v).reshape(batch, length, width)


def batch_major(m: Folding, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = m.attend(*(t.reshape(-1, LENGTH, SIZE) for t in (q, k, v)))
    return out.view(-1, m.h, LENGTH, SIZE).transpose(1, 2).flatten(2)


def _heads_first(m: Folding, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return m.attend(*(t.transpose(0, 1).reshape(-1, LENGTH, SIZE) for t in (q, k, v)))


def heads_first(m: Folding, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = _heads_first(m, q, k, v).view(m.h, -1, LENGTH, SIZE)
    return out.permute(1, 2, 0, 3).contiguous().view(-1, LENGTH, m.h * SIZE)


def heads_first_in_two_steps(m: Folding, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = F.dropout(_heads_first(m, q, k, v) * 2, 0.0).unflatten(0, (m.h, -1))
    return out.transpose(0, 1).transpose(1, 2).flatten(-2)


def heads_first_in_chunks(m: Folding, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.cat(_heads_first(m, q, k, v).chunk(m.h, dim=0), dim=2)


def heads_first_in_slices(m: Folding, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = _heads_first(m, q, k, v)
    n = len(out) // m.h
    return torch.cat([out[i * n : (i + 1) * n] for i in range(m.h)], dim=-1)


def heads_first_changed_in_place(m: Folding, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = _heads_first(m, q, k, v)
    out *= 2
    return out.view(m.h, -1, LENGTH, SIZE).permute(1, 2, 0, 3).flatten(2)


def heads_ahead(m: Folding, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = m.attend(*(t.transpose(0, 1) for t in (q, k, v)))
    return out.permute(1, 2, 0, 3).flatten(2)


def heads_ahead_unbound(m: Folding, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.cat(m.attend(*(t.transpose(0, 1) for t in (q, k, v))).unbind(0), dim=-1)


def heads_behind(m: Folding, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.cat(m.attend(q, k, v).unbind(1), dim=-1)


def usual(m: Folding, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return m.attend(q, k, v).transpose(1, 2).flatten(2)


WAYS: dict[str, Callable[[Folding, Tensor, Tensor, Tensor], Tensor]] = {
    way.__name__: way
    for way in (
        *(usual, batch_major, heads_first, heads_first_in_two_steps, heads_first_in_chunks),
        *(heads_first_in_slices, heads_first_changed_in_place, heads_ahead, heads_ahead_unbound),
        heads_behind,
    )
}


class Block(nn.Module):
    """Calls attention with a sequence of its own, as a model does."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x)


@pytest.mark.parametrize(("batch", "heads"), [(2, 4), (4, 2), (3, 3), (1, 4)])
@pytest.mark.parametrize("attend", [fused, written])
@pytest.mark.parametrize("way", WAYS)
def test_every_head_of_every_sequence_is_where_it_belongs(
    way: str, attend: Attend, batch: int, heads: int
) -> None:
    for declares, inner in itertools.product((True, False), (True, False)):
        torch.manual_seed(0)
        model = Folding(way, heads, attend, declares, inner)
        x = torch.randn(batch, LENGTH, heads * SIZE)
        (layer,) = AttentionExtractor(Block(model)).get_attention(x).layers
        torch.testing.assert_close(layer.weights, model.expected, rtol=0, atol=1e-6)
        assert layer.status == "exact"
        assert layer.note == ""


@pytest.mark.parametrize("attend", [fused, written])
@pytest.mark.parametrize("way", [way for way in WAYS if "ahead" not in way])
def test_one_head_of_a_batch_is_no_batch_of_heads(way: str, attend: Attend) -> None:
    model = Folding(way, 1, attend, declares=False, inner=False)
    (weights,) = AttentionExtractor(Block(model)).get_attention(torch.randn(4, LENGTH, SIZE))
    torch.testing.assert_close(weights, model.expected, rtol=0, atol=1e-6)


class Rebinding(nn.Module):
    """Names its projections as its arguments, as many do: the arguments are gone then."""

    def __init__(self, inner: nn.Module, heads: int) -> None:
        super().__init__()
        self.n_head, self.inner = heads, inner
        self.w = nn.ModuleList(nn.Linear(heads * SIZE, heads * SIZE) for _ in range(3))
        self.expected = torch.empty(0)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        given = (q, k, v)
        q, k, v = (w(t).unflatten(-1, (-1, SIZE)) for w, t in zip(self.w, given, strict=True))
        self.expected = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / SIZE**0.5).softmax(-1)
        batch, length = q.shape[:2]
        q = q.permute(2, 0, 1, 3).contiguous().view(-1, length, SIZE)
        k = k.permute(2, 0, 1, 3).contiguous().view(-1, k.shape[1], SIZE)
        v = v.permute(2, 0, 1, 3).contiguous().view(-1, v.shape[1], SIZE)
        out = self.inner(q, k, v).view(self.n_head, batch, length, SIZE)
        return out.permute(1, 2, 0, 3).contiguous().view(batch, length, -1)


@pytest.mark.parametrize("attend", [fused, written])
@pytest.mark.parametrize(("batch", "heads"), [(2, 4), (4, 4), (6, 2)])
def test_arguments_that_are_bound_anew_do_not_mislead(
    attend: Attend, batch: int, heads: int
) -> None:
    model = Rebinding(Inner(attend), heads)
    x, context = torch.randn(batch, LENGTH, heads * SIZE), torch.randn(batch, 5, heads * SIZE)
    for args in ((x, x, x), (x, context, context)):
        (layer,) = AttentionExtractor(model).get_attention(*args).layers
        torch.testing.assert_close(layer.weights, model.expected, rtol=0, atol=1e-6)


class OneByOne(nn.Module):
    """Calls its heads one by one, or two by two."""

    def __init__(self, heads: int, attend: Attend, at_once: int) -> None:
        super().__init__()
        self.num_heads, self.attend, self.at_once = heads, attend, at_once
        self.qkv = nn.Linear(heads * SIZE, 3 * heads * SIZE)

    def forward(self, x: Tensor) -> Tensor:
        made = []
        parts = (t.split(SIZE * self.at_once, -1) for t in self._parts(x))
        for q, k, v in zip(*parts, strict=True):
            if self.at_once == 1:
                made.append(self.attend(q, k, v))
            else:
                split = (t.unflatten(-1, (self.at_once, SIZE)).transpose(1, 2) for t in (q, k, v))
                made.append(self.attend(*split).transpose(1, 2).flatten(2))
        return torch.cat(made, -1)

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(x).chunk(3, -1)


@pytest.mark.parametrize("attend", [fused, written])
@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("batch", [2, 4, 8])
def test_heads_called_one_by_one_are_calls_of_their_own(
    attend: Attend, at_once: int, batch: int
) -> None:
    model = OneByOne(4, attend, at_once)
    x = torch.randn(batch, LENGTH, 4 * SIZE)
    maps = AttentionExtractor(model).get_attention(x)
    parts = (t.unflatten(-1, (4, SIZE)).transpose(1, 2) for t in model._parts(x))
    q, k, _ = parts
    expected = (q @ k.mT / SIZE**0.5).softmax(-1)
    assert [tuple(w.shape) for w in maps] == [(batch, at_once, LENGTH, LENGTH)] * (4 // at_once)
    torch.testing.assert_close(torch.cat(list(maps), 1), expected, rtol=0, atol=1e-6)


class Sequences(nn.Module):
    """Turns sequences of another layout into ``(batch, length, width)``, and folds there."""

    def __init__(self, layout: str, attend: Attend) -> None:
        super().__init__()
        self.layout, self.attend = layout, attend
        self.qkv = nn.Linear(4 * SIZE, 12 * SIZE)

    def forward(self, x: Tensor) -> Tensor:
        if self.layout == "length first":
            x = x.transpose(0, 1)
        elif self.layout in ("features first", "image"):
            x = x.flatten(2).mT
        q, k, v = self.heads(x)
        out = self.attend(*(t.reshape(-1, *t.shape[2:]) for t in (q, k, v)))
        return out.unflatten(0, (-1, 4)).transpose(1, 2).flatten(2)

    def heads(self, x: Tensor) -> list[Tensor]:
        return [t.unflatten(-1, (4, SIZE)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1)]


@pytest.mark.parametrize("attend", [fused, written])
@pytest.mark.parametrize("layout", ["length first", "features first", "image"])
def test_sequences_of_any_layout_tell_how_many_heads_there_are(layout: str, attend: Attend) -> None:
    width = 4 * SIZE
    shape = {"length first": (LENGTH, 2, width), "features first": (2, width, LENGTH)}
    x = torch.randn(*shape.get(layout, (2, width, 4, 4)))
    (weights,) = AttentionExtractor(Sequences(layout, attend)).get_attention(x)
    assert weights.shape[:2] == (2, 4)


def test_an_order_that_nothing_tells_is_noted() -> None:
    class Returning(Folding):
        def forward(self, x: Tensor) -> Tensor:
            parts = self.qkv(x).chunk(3, -1)
            q, k, v = (t.unflatten(-1, (self.h, SIZE)).transpose(1, 2) for t in parts)
            return fused(*(t.flatten(0, 1) for t in (q, k, v))).sum()

    model = Returning("batch_major", 4, fused, declares=True, inner=False)
    (layer,) = AttentionExtractor(model).get_attention(torch.randn(2, LENGTH, 16)).layers
    assert layer.weights.shape == (2, 4, LENGTH, LENGTH)
    assert "nothing tells batch from heads" in layer.note
