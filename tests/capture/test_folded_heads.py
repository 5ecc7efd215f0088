"""Heads that lie in the batch, before it, or are called one by one: each is told for what it is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck import AttentionExtractor
from attncheck.capture.copies import compact_copy

LENGTH, SIZE = 7, 4
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def written(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / SIZE**0.5).softmax(-1) @ v


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


def test_layers_keep_their_order_where_one_waits_for_the_other() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            q = x.unflatten(-1, (4, SIZE)).permute(2, 0, 1, 3)
            first = fused(*[q.flatten(0, 1)] * 3)
            second = fused(*[q.transpose(0, 1)] * 3)
            told = first.view(4, 2, LENGTH, SIZE).permute(1, 2, 0, 3).flatten(2)
            return told + second.transpose(1, 2).flatten(2)

    x = torch.randn(2, LENGTH, 16)
    maps = AttentionExtractor(Two()).get_attention(x)
    assert [layer.index for layer in maps.layers] == [0, 1]
    torch.testing.assert_close(maps[0], maps[1], rtol=0, atol=1e-6)
    last = AttentionExtractor(Two(), layers=[-1]).get_attention(x)
    assert [layer.index for layer in last.layers] == [1]


class Neighbourhood(nn.Module):
    """Each query sees three keys around it, cut out by `unfold`."""

    def __init__(self, heads: int, heads_last: bool) -> None:
        super().__init__()
        self.h, self.heads_last = heads, heads_last
        self.expected = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        q = x.unflatten(-1, (self.h, SIZE)).transpose(1, 2)
        near = F.pad(q, (0, 0, 1, 1)).unfold(2, 3, 1)  # (batch, head, query, size, key)
        self.expected = torch.einsum("bhnd,bhndw->bhnw", q, near).softmax(-1)
        if self.heads_last:
            q, near = q.transpose(1, 2), near.transpose(1, 2)
        weights = torch.einsum("bhnd,bhndw->bhnw", q, near).softmax(-1)
        return torch.einsum("bhnw,bhndw->bhnd", weights, near)


@pytest.mark.parametrize("heads_last", [False, True])
@pytest.mark.parametrize(("batch", "heads"), [(2, 4), (1, 2), (2, 1), (1, 1)])
def test_a_neighbourhood_has_its_positions_where_queries_are(
    batch: int, heads: int, heads_last: bool
) -> None:
    model = Neighbourhood(heads, heads_last)
    x = torch.randn(batch, LENGTH, heads * SIZE)
    (layer,) = AttentionExtractor(model).get_attention(x).layers
    torch.testing.assert_close(layer.weights, model.expected, rtol=0, atol=1e-6)
    assert layer.kind == "unknown"
    assert "keys of its own" in layer.note


def test_one_query_of_each_sequence_is_no_neighbourhood() -> None:
    class Pooling(nn.Module):
        def forward(self, memory: Tensor, x: Tensor) -> Tensor:
            key = memory.unflatten(-1, (4, SIZE)).transpose(1, 2)
            scores = torch.einsum("bhd,bhnd->bhn", x.unflatten(-1, (4, SIZE)), key)
            return torch.einsum("bhn,bhnd->bhd", scores.softmax(-1), key)

    for batch in (2, 4):
        args = torch.randn(batch, LENGTH, 16), torch.randn(batch, 16)
        (layer,) = AttentionExtractor(Pooling()).get_attention(*args).layers
        assert layer.weights.shape == (batch, 4, 1, LENGTH)
        assert layer.note == ""


class Written(nn.Module):
    """Does what it is told; the number of its heads is kept where nobody looks for it."""

    def __init__(self, forward: Callable[..., Tensor], declares: int = 0) -> None:
        super().__init__()
        self.run = forward
        if declares:
            self.num_heads = declares

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        return self.run(x) if other is None else self.run(x, other)


def heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def weights_of(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)


def merged(out: Tensor) -> Tensor:
    return out.transpose(1, 2).flatten(2)


def require(model: nn.Module, args: tuple[Tensor, ...], *expected: Tensor, note: str = "") -> None:
    layers = AttentionExtractor(model).get_attention(*args).layers
    assert [tuple(layer.weights.shape) for layer in layers] == [tuple(w.shape) for w in expected]
    for layer, weights in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer.weights, weights, rtol=0, atol=1e-6)
        assert note in layer.note
        assert bool(note) == bool(layer.note)


def test_other_arguments_do_not_turn_batch_and_heads_round() -> None:
    """As many queries for each position of the first argument as there are sequences."""
    x, context = torch.randn(2, 4, 32), torch.randn(2, 16, 32)

    def cross(context: Tensor, x: Tensor) -> Tensor:
        return merged(fused(heads(x, 8), heads(context, 8), heads(context, 8)))

    require(Written(cross), (context, x), weights_of(heads(x, 8), heads(context, 8)))
    x = torch.randn(2, 8, 32)
    require(
        Written(lambda mask, x: merged(F.scaled_dot_product_attention(*[heads(x, 8)] * 3, mask))),
        (torch.ones(8, 8).bool(), x),
        weights_of(heads(x, 8), heads(x, 8)),
    )
    x, doubled = (
        torch.randn(2, 5, 8),
        Written(lambda x: merged(fused(*[heads(torch.cat([x, x.flip(1)]), 2)] * 3))),
    )
    q = heads(torch.cat([x, x.flip(1)]), 2)
    require(doubled, (x,), weights_of(q, q))
    image, patch = torch.randn(8, 3, 16, 16), torch.randn(12, 3 * 16)
    patches = F.unfold(image, 4, stride=4).mT @ patch.mT
    q = heads(patches, 3)
    vit = Written(
        lambda image: merged(fused(*[heads(F.unfold(image, 4, stride=4).mT @ patch.mT, 3)] * 3))
    )
    require(vit, (image,), weights_of(q, q))


@pytest.mark.parametrize("mask", [torch.ones(6, 6).bool(), torch.zeros(6, 6)])
def test_a_mask_is_no_sequence(mask: Tensor) -> None:
    x = torch.randn(3, 6, 8)
    model = Written(lambda mask, x: F.scaled_dot_product_attention(x, x, x, mask))
    require(model, (mask, x), weights_of(x, x)[:, None])


def test_the_output_of_one_attention_may_be_the_value_of_another() -> None:
    def agents(x: Tensor) -> Tensor:
        q = heads(x, 4)
        agent = q[:, :, :3]
        return merged(weights_of(q, agent) @ fused(agent, q, q))

    x = torch.randn(4, 6, 16)
    q = heads(x, 4)
    agent = q[:, :, :3]
    layers = AttentionExtractor(Written(agents)).get_attention(x).layers
    for layer, weights in zip(layers, (weights_of(agent, q), weights_of(q, agent)), strict=True):
        torch.testing.assert_close(layer.weights, weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch", [2, 4])
@pytest.mark.parametrize("what", ["weights", "q", "k", "v", "mask"])
def test_what_is_overwritten_while_a_call_waits_is_kept_as_it_was(what: str, batch: int) -> None:
    def overwriting(x: Tensor) -> Tensor:
        q, k, v = (heads(x, 4).contiguous() for _ in range(3))
        mask = torch.ones(5, 5).tril().bool()
        if what == "weights":
            weights = weights_of(q, k)
            out = weights @ v
            weights.zero_()
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask)
            {"q": q, "k": k, "v": v, "mask": mask}[what].zero_()
        return merged(out)

    x = torch.randn(batch, 5, 16)
    q = heads(x, 4)
    causal = (q @ q.mT / 2).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf).softmax(-1)
    expected = weights_of(q, q) if what == "weights" else causal
    require(Written(overwriting, declares=4), (x,), expected)


def untold(x: Tensor) -> Tensor:
    q = heads(x, 4).flatten(0, 1)
    return x + 0 * fused(q, q, q).sum()


@pytest.mark.parametrize("what", ["out", "weights"])
def test_what_is_overwritten_behind_a_call_that_waits_is_kept_too(what: str) -> None:
    def overwriting(x: Tensor) -> Tensor:
        q = heads(x, 4)
        weights = weights_of(q, q)
        out = fused(q, q, q) if what == "out" else weights @ q
        (out if what == "out" else weights).mul_(0.5)
        return merged(out)

    x = torch.randn(2, 5, 16)
    q = heads(x, 4)
    model = nn.Sequential(Written(untold), Written(overwriting, declares=4))
    layers = AttentionExtractor(model).get_attention(x).layers
    for layer in layers:
        torch.testing.assert_close(layer.weights, weights_of(q, q), rtol=0, atol=1e-6)


def test_layers_do_not_wait_for_one_that_nothing_tells() -> None:
    def attending(x: Tensor) -> Tensor:
        q = heads(x, 4)
        return merged(weights_of(q, q) @ q)

    seen: list[int] = []
    parts = [Written(untold), *(Written(attending, declares=4) for _ in range(8)), nn.Identity()]
    model = nn.Sequential(*parts)
    handed: list[int] = []
    model[-1].register_forward_hook(lambda *_: handed.append(len(seen)))
    with AttentionExtractor(model, on_layer=lambda layer: seen.append(layer.index)):
        model(torch.randn(2, 5, 16))
    assert handed[0] >= 5
    assert seen == list(range(9))


def test_branches_beside_each_other_are_no_heads() -> None:
    def branches(x: Tensor) -> Tensor:
        q = heads(torch.cat([x, x.flip(1)]), 4)
        return merged(torch.cat(fused(q, q, q).chunk(2, 0), -1))

    x = torch.randn(2, 5, 16)
    q = heads(torch.cat([x, x.flip(1)]), 4)
    require(Written(branches, declares=4), (x,), weights_of(q, q), note="nothing tells")


W = torch.nn.Parameter(torch.randn(4, 4, 16))
ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "einsum": lambda out: torch.einsum("hbnd,hde->bne", out, W),
    "sum of projected heads": lambda out: (out @ W[:, None]).sum(0),
    "sum of heads": lambda out: out.sum(0),
    "projected, then merged": lambda out: (out @ W[0, :, :4]).permute(1, 2, 0, 3).flatten(2),
    "first token": lambda out: out[:, :, 0].transpose(0, 1).flatten(1),
    "stacked": lambda out: torch.stack(list(out), 2).flatten(2),
    "heads changed": lambda out: torch.cat([F.relu(head) for head in out], -1),
    "mean over positions": lambda out: out.mean(2).transpose(0, 1).flatten(1),
    "all at once": lambda out: out.permute(1, 2, 0, 3).flatten(1),
}


@pytest.mark.parametrize("end", ENDS)
def test_many_endings_tell_which_axis_was_of_heads(end: str) -> None:
    def attending(x: Tensor) -> Tensor:
        q = heads(x, 4).transpose(0, 1)
        return ENDS[end](fused(q, q, q))

    x = torch.randn(4, 6, 16)
    require(Written(attending, declares=4), (x,), weights_of(heads(x, 4), heads(x, 4)))


@pytest.mark.parametrize("batch", [4, 2])
@pytest.mark.parametrize("averages", [False, True])
def test_an_ending_that_tells_nothing_is_noted(averages: bool, batch: int) -> None:
    """Features ahead of heads, or a mean that may be over heads or over sequences."""

    def attending(x: Tensor) -> Tensor:
        q = heads(x, 4).transpose(0, 1)
        out = fused(q, q, q)
        return out.mean(0) if averages else torch.cat([head.mT for head in out], 1)

    x = torch.randn(batch, 6, 16)
    q = heads(x, 4) if batch == 2 else heads(x, 4).transpose(0, 1)  # 4 came in side by side
    require(Written(attending), (x,), weights_of(q, q), note="nothing tells")


@pytest.mark.parametrize("layout", ["plain", "folded", "heads first"])
def test_views_that_are_merged_are_no_heads(layout: str) -> None:
    """As many heads came in side by side as a module declares: no more can be merged."""

    def views(x: Tensor) -> Tensor:
        q = heads(x, 4)
        if layout == "folded":
            out = fused(*[q.flatten(0, 1)] * 3).unflatten(0, (len(x), 4))
        else:
            first = layout == "heads first"
            out = fused(*[q.transpose(0, 1) if first else q] * 3)
            out = out.transpose(0, 1) if first else out
        return out.unflatten(0, (2, -1)).permute(1, 3, 0, 2, 4).flatten(2)

    x = torch.randn(4 if layout == "plain" else 2, 5, 16)
    layer = AttentionExtractor(Written(views, declares=4)).get_attention(x).layers[0]
    q = heads(x, 4)
    torch.testing.assert_close(layer.weights, weights_of(q, q), rtol=0, atol=1e-6)


def test_an_expanded_mask_is_copied_as_small_as_it_is() -> None:
    mask = torch.ones(1, 1, 5, 5).tril().bool().expand(3, 4, 5, 5)
    copy = compact_copy(mask)
    assert copy.untyped_storage().nbytes() == 25
    assert torch.equal(copy, mask)
    assert copy.data_ptr() != mask.data_ptr()


def test_a_mean_over_sequences_is_none_over_heads() -> None:
    def views(x: Tensor) -> Tensor:
        q = heads(x, 4)
        return fused(q, q, q).mean(0).transpose(0, 1).flatten(1)

    x = torch.randn(4, 5, 16)
    q = heads(x, 4)
    layer = AttentionExtractor(Written(views, declares=4)).get_attention(x).layers[0]
    torch.testing.assert_close(layer.weights, weights_of(q, q), rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2])
def test_positions_and_features_in_one_tell_nothing_yet(steps: int) -> None:
    def attending(x: Tensor) -> Tensor:
        q = heads(x, 4).flatten(0, 1)
        out = fused(q, q, q)
        return (out.flatten(1) if steps == 2 else out).reshape(len(x), -1)

    x = torch.randn(3, 5, 16)
    require(Written(attending, declares=4), (x,), weights_of(heads(x, 4), heads(x, 4)))


@pytest.mark.parametrize("batch", [2, 4])
def test_heads_in_pairs_that_a_kernel_attends_with_stay_heads(batch: int) -> None:
    def differing(x: Tensor) -> Tensor:
        q = heads(x, 8)
        out = fused(q, q, heads(x, 4).repeat_interleave(2, 1)).unflatten(1, (4, 2))
        return merged(out[:, :, 0] - 0.3 * out[:, :, 1])

    x = torch.randn(batch, 5, 32)
    require(Written(differing, declares=4), (x,), weights_of(heads(x, 8), heads(x, 8)))


def test_two_outputs_that_are_subtracted_are_told_together() -> None:
    def differing(x: Tensor) -> Tensor:
        q = heads(x, 4).transpose(0, 1)
        out = fused(q, q, q) - 0.3 * fused(q.flip(2), q, q)
        return out.permute(1, 2, 0, 3).flatten(2)

    x = torch.randn(4, 6, 16)
    q = heads(x, 4)
    require(Written(differing, declares=4), (x,), weights_of(q, q), weights_of(q.flip(2), q))


@pytest.mark.parametrize("rows", [3, 4])
@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("order", [(0, 3, 1, 2, 4), (3, 0, 1, 2, 4), (0, 1, 3, 2, 4)])
def test_rows_of_an_image_are_no_heads(order: tuple[int, ...], batch: int, rows: int) -> None:
    def axial(x: Tensor) -> Tensor:
        q = x.unflatten(-1, (4, 4)).permute(order)
        return fused(q, q, q).permute([order.index(axis) for axis in range(5)]).flatten(-2)

    x = torch.randn(batch, rows, 5, 16)
    q = heads(x.flatten(0, 1), 4)
    found = weights_of(q, q).unflatten(0, (batch, rows))
    layer = AttentionExtractor(Written(axial, declares=4)).get_attention(x).layers[0]
    assert layer.weights.shape == (batch * rows, 4, 5, 5)
    torch.testing.assert_close(layer.weights, found.flatten(0, 1), rtol=0, atol=1e-6)


LOOPS: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor], tuple[Tensor, ...]]]] = {
    "mask first": (lambda mask, x: x, lambda x: (torch.ones(6, 6), x)),
    "image": (lambda x: x.flatten(2).mT, lambda x: (x.mT.unflatten(2, (2, 3)),)),
    "length first": (lambda x: x.transpose(0, 1), lambda x: (x.transpose(0, 1),)),
    "a token more": (lambda x: torch.cat([x[:, :1], x], 1), lambda x: (x,)),
}


@pytest.mark.parametrize("batch", [4, 8])
@pytest.mark.parametrize("stacks", [False, True])
@pytest.mark.parametrize("name", LOOPS)
def test_heads_of_a_loop_are_told_whatever_came_in(name: str, stacks: bool, batch: int) -> None:
    read, give = LOOPS[name]

    def looping(*args: Tensor) -> Tensor:
        parts = [fused(q, q, q) for q in read(*args).split(4, -1)]
        return torch.stack(parts, 2).flatten(2) if stacks else torch.cat(parts, -1)

    args = give(torch.randn(batch, 6, 16))
    expected = [weights_of(q, q)[:, None] for q in read(*args).split(4, -1)]
    require(Written(looping, declares=4), args, *expected)


def folded(x: Tensor) -> Tensor:
    return heads(x, 4).flatten(0, 1)


def unfolded(out: Tensor, batch: int) -> Tensor:
    return merged(out.unflatten(0, (batch, 4)))


def test_the_output_tells_how_many_heads_there_are() -> None:
    x, context = torch.randn(4, 6, 16), torch.randn(4, 3, 16)
    require(
        Written(lambda c, x: unfolded(fused(folded(x), folded(c), folded(c)), 4)),
        (context, x),
        weights_of(heads(x, 4), heads(context, 4)),
    )
    longer = torch.cat([x[:, :1], x], 1)
    require(
        Written(lambda x: unfolded(fused(*[folded(torch.cat([x[:, :1], x], 1))] * 3), 4)),
        (x,),
        weights_of(heads(longer, 4), heads(longer, 4)),
    )


def test_heads_beside_the_queries_leave_the_batch_whole() -> None:
    def multi_query(x: Tensor) -> Tensor:
        q, k = x.unflatten(-1, (4, 4)).flatten(1, 2), x[..., :4]
        return fused(q, k, k).reshape(x.shape)

    x = torch.randn(4, 6, 16)
    q, k = x.unflatten(-1, (4, 4)).flatten(1, 2), x[..., :4]
    require(Written(multi_query, declares=4), (x,), weights_of(q, k)[:, None])


def test_heads_in_pairs_stay_heads() -> None:
    """Two softmaxes for each head, unfolded before one is subtracted from the other."""

    def differing(x: Tensor) -> Tensor:
        weights = weights_of(heads(x, 8), heads(x, 8)).unflatten(1, (4, 2))
        return merged((weights[:, :, 0] - 0.3 * weights[:, :, 1]) @ heads(x, 4))

    x = torch.randn(2, 5, 16)
    require(Written(differing, declares=4), (x,), weights_of(heads(x, 8), heads(x, 8)))


@pytest.mark.parametrize("first", [False, True])
def test_order_is_told_under_transforms_of_functions(first: bool) -> None:
    def attending(x: Tensor) -> Tensor:
        q = heads(x, 4).transpose(0, 1) if first else heads(x, 4)
        flat = q.flatten(0, 1)
        out = (weights_of(flat, flat) @ flat).view(q.shape)
        return merged(out.transpose(0, 1) if first else out)

    model, x = Written(attending, declares=4), torch.randn(2, 5, 16)
    with AttentionExtractor(model) as extractor:
        torch.func.grad(lambda y: model(y).sum())(x)
    q = heads(x, 4)
    torch.testing.assert_close(extractor.maps[0], weights_of(q, q), rtol=0, atol=1e-6)


def test_an_output_is_followed_no_further_than_it_has_to_be() -> None:
    """Whoever keeps it, for a residual, would make every later function slower."""
    kept: list[Tensor] = []
    seen: list[int] = []

    def attending(x: Tensor) -> Tensor:
        q = heads(x, 4)
        kept.append(fused(q, q, q))
        return merged(kept[-1])

    with AttentionExtractor(Written(attending)) as extractor:
        extractor.model(torch.randn(2, 5, 16))
        mode: Any = torch._C._get_function_stack_at(torch._C._len_torch_function_stack() - 1)
        seen.append(mode._follows(kept[0]))
    assert seen == [False]


@pytest.mark.parametrize("spelling", ["bhij,bjhd->bihd", "bhij,bjhd->hbid"])
def test_an_output_with_axes_in_another_order_is_not_misread(spelling: str) -> None:
    """As many heads as positions, and as sequences: shapes alone do not tell axes."""

    def attending(x: Tensor) -> Tensor:
        q = x.unflatten(-1, (4, 4))
        weights = (torch.einsum("bihd,bjhd->bhij", q, q) / 2).softmax(-1)
        out = torch.einsum(spelling, weights, q)
        return out.flatten(2) if spelling.endswith("bihd") else out.permute(1, 2, 0, 3).flatten(2)

    x = torch.randn(4, 4, 16)
    q = heads(x, 4)
    layer = AttentionExtractor(Written(attending)).get_attention(x).layers[0]
    torch.testing.assert_close(layer.weights, weights_of(q, q), rtol=0, atol=1e-6)


@pytest.mark.parametrize("first", [False, True])
def test_a_mask_of_ones_own_that_is_overwritten_is_kept(first: bool) -> None:
    def attending(x: Tensor) -> Tensor:
        q = heads(x, 4).transpose(0, 1) if first else heads(x, 4)
        later = torch.ones(5, 5).triu(2).bool()
        out = (q @ q.mT / 2).masked_fill(later, -torch.inf).softmax(-1) @ q
        later.zero_()
        return merged(out.transpose(0, 1) if first else out)

    model = Written(attending, declares=4)
    layer = AttentionExtractor(model).get_attention(torch.randn(4, 5, 16)).layers[0]
    assert torch.equal(layer.visible()[0, 0], torch.ones(5, 5).tril(1).bool())


def test_a_mask_that_is_overwritten_behind_a_call_that_waits_is_kept() -> None:
    def reusing(x: Tensor) -> Tensor:
        q, mask = heads(x, 4), torch.zeros(5, 5)
        first = fused(*[q.transpose(0, 1).flatten(0, 1)] * 3)
        second = F.scaled_dot_product_attention(q, q, q, mask)
        mask.fill_(-torch.inf)
        return merged(first.unflatten(0, (4, -1)).transpose(0, 1) + second)

    x = torch.randn(2, 5, 16)
    q = heads(x, 4)
    require(Written(reusing, declares=4), (x,), weights_of(q, q), weights_of(q, q))
