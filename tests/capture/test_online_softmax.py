"""A softmax over a few keys at a time, written out: captured whole, or an error, never silence."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attncheck import AttentionExtractor, CaptureError
from tests.capture.reference import Heads, close, reference_weights

N = 6
X = torch.randn(2, N, 16, generator=torch.Generator().manual_seed(3))


def running(q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.full_like(q[..., :1], -math.inf), torch.zeros_like(q[..., :1]), torch.zeros_like(q)


def flash(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    largest, total, out = running(q)
    for start in range(0, N, 2):
        scores = q @ k[:, :, start : start + 2].mT / 2
        new = torch.maximum(largest, scores.amax(-1, keepdim=True))
        raised, shrink = (scores - new).exp(), (largest - new).exp()
        total = total * shrink + raised.sum(-1, keepdim=True)
        out = out * shrink + raised @ v[:, :, start : start + 2]
        largest = new
    return out / total


def in_place(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    largest, total, out = running(q)
    for keys, values in zip(k.split(4, dim=2), v.split(4, dim=2), strict=True):
        scores = torch.einsum("bhid,bhjd->bhij", q, keys).mul_(0.5)
        new = torch.maximum(largest, scores.max(dim=-1, keepdim=True).values)
        raised = torch.exp(scores - new)
        total.mul_(torch.exp(largest - new)).add_(raised.sum(-1, keepdim=True))
        out.mul_(torch.exp(largest - new)).add_(torch.matmul(raised, values))
        largest = new
    return out.mul(1 / total)


def backwards(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    largest, total, out = running(q)
    for start in (3, 0):
        scores = q @ k[:, :, start : start + 3].mT / 2
        new = torch.maximum(largest, scores.amax(-1, keepdim=True))
        raised, shrink = (scores - new).exp(), (largest - new).exp()
        total = shrink * total + raised.sum(-1, keepdim=True)
        out = shrink * out
        out += raised @ v[:, :, start : start + 3]
        largest = new
    return out / total


def two_passes(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    largest = torch.stack([(q @ k[:, :, i : i + 2].mT / 2).amax(-1) for i in (0, 2, 4)]).amax(0)
    raised = [(q @ k[:, :, i : i + 2].mT / 2 - largest[..., None]).exp() for i in (0, 2, 4)]
    total = sum(part.sum(-1, keepdim=True) for part in raised)
    return sum(part @ v[:, :, 2 * i : 2 * i + 2] for i, part in enumerate(raised)) / total


def outputs_of(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Stack what two halves of the keys gave, and return the sum of all beside it."""
    scores = [q @ k[:, :, i : i + 3].mT / 2 for i in (0, 3)]
    largest = torch.maximum(*(part.amax(-1, keepdim=True) for part in scores))
    raised = [(part - largest).exp() for part in scores]
    total = torch.stack([part.sum(-1, keepdim=True) for part in raised]).sum(0)
    outputs = [part @ v[:, :, i : i + 3] for part, i in zip(raised, (0, 3), strict=True)]
    return torch.stack(outputs), total


def stacked(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    outputs, total = outputs_of(q, k, v)
    return outputs.sum(0) / total


@pytest.mark.parametrize("attend", [flash, in_place, backwards, two_passes, stacked])
def test_tiles_become_whole_weights(attend: Callable[..., Tensor]) -> None:
    module = Heads(attend)
    maps = AttentionExtractor(module).get_attention(X)
    assert len(maps) == 1
    assert close(maps[0], reference_weights(*module.last))


def test_beside_attention_that_is_captured_anyway() -> None:
    model = nn.Sequential(Heads(lambda m, q, k, v: (q @ k.mT / 2).softmax(-1) @ v), Heads(flash))
    maps = AttentionExtractor(model).get_attention(X)
    assert maps.names == ("0", "1")
    assert close(maps[1], reference_weights(*model[1].last))


def lists(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Rabe and Staats: every tile beside its own largest score, their factors afterwards."""
    tiles = []
    for keys, values in zip(k.split(5, dim=2), v.split(5, dim=2), strict=True):
        scores = q @ keys.mT / 2
        largest = scores.amax(-1, keepdim=True)
        raised = (scores - largest).exp()
        tiles.append((largest, raised.sum(-1, keepdim=True), raised @ values))
    largest = torch.stack([tile[0] for tile in tiles]).amax(0)
    total = sum(part * (own - largest).exp() for own, part, _ in tiles)
    return sum(part * (own - largest).exp() for own, _, part in tiles) / total


def last_key_first(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return visiting([(5, 6), (3, 5), (0, 3)])(m, q, k, v)


def visiting(
    tiles: list[tuple[int, int]],
    keys: Callable[[Tensor], Tensor] = lambda k: k / 2,
    values: Callable[[Tensor], Tensor] = lambda v: v,
) -> Callable[..., Tensor]:
    """Visit tiles in an order; their keys are views of one tensor only if `keys` makes none."""

    def attend(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        largest, total, out = running(q)
        for start, end in tiles:
            scores = q @ keys(k[:, :, start:end]).mT
            new = torch.maximum(largest, scores.amax(-1, keepdim=True))
            raised, shrink = (scores - new).exp(), (largest - new).exp()
            total = total * shrink + raised.sum(-1, keepdim=True)
            out = out * shrink + raised @ values(v[:, :, start:end])
            largest = new
        return out / total

    return attend


@pytest.mark.parametrize("length", [1, 6])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("attend", [lists, last_key_first])
def test_a_tile_of_a_single_key_is_one_among_others(
    attend: Callable[..., Tensor], batch: int, length: int
) -> None:
    """Raised beside itself, it is 1 in every row, as whole weights are."""

    def last_queries(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(m, q[:, :, -length:], k, v).expand(-1, -1, N, -1)

    module = Heads(last_queries)
    (weights,) = AttentionExtractor(module).get_attention(X[:batch])
    assert close(weights, reference_weights(*module.last)[:, :, -length:])


def test_a_row_that_sees_one_key_of_the_first_tile_is_no_whole_row_yet() -> None:
    def attend(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        largest, total, out = running(q)
        for start in (0, 2, 4):
            scores = q @ k[:, :, start : start + 2].mT / 2
            scores[..., 1:] = -math.inf  # keys 0, 2 and 4
            new = torch.maximum(largest, scores.amax(-1, keepdim=True))
            raised, shrink = (scores - new).exp(), (largest - new).exp()
            total = total * shrink + raised.sum(-1, keepdim=True)
            out = out * shrink + raised @ v[:, :, start : start + 2]
            largest = new
        return out / total

    module = Heads(attend)
    (weights,) = AttentionExtractor(module).get_attention(X)
    assert close(weights, reference_weights(*module.last, sees=lambda b, h, i, j: j % 2 == 0))


ORDERS = [[(4, 6), (2, 4), (0, 2)], [(2, 4), (0, 2), (4, 6)]]


@pytest.mark.parametrize("tiles", ORDERS)
def test_tiles_are_ordered_by_their_values_where_keys_are_copies(
    tiles: list[tuple[int, int]],
) -> None:
    module = Heads(visiting(tiles))
    (layer,) = AttentionExtractor(module).get_attention(X).layers
    assert close(layer.weights, reference_weights(*module.last))
    assert not layer.note


@pytest.mark.parametrize("tiles", ORDERS)
def test_an_order_of_tiles_that_nothing_tells_is_noted(tiles: list[tuple[int, int]]) -> None:
    held: list[Tensor] = []  # no two copies in the same memory

    def copied(t: Tensor) -> Tensor:
        held.append(t.clone() / 2)
        return held[-1]

    module = Heads(visiting(tiles, copied, copied))
    (layer,) = AttentionExtractor(module).get_attention(X).layers
    order = [key for start, end in tiles for key in range(start, end)]
    assert close(layer.weights, reference_weights(*module.last)[..., order])
    assert "nothing tells where the keys of its parts stand" in layer.note


def renormalised(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Divided by the sum so far after every tile: no row of a tile is final."""
    largest, total, out = running(q)
    for start in range(0, N, 2):
        scores = q @ k[:, :, start : start + 2].mT / 2
        new = torch.maximum(largest, scores.amax(-1, keepdim=True))
        raised, shrink = (scores - new).exp(), (largest - new).exp()
        grown = total * shrink + raised.sum(-1, keepdim=True)
        out = (out * (total * shrink) + raised @ v[:, :, start : start + 2]) / grown
        largest, total = new, grown
    return out


def turned(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Parts that meet in a way that is not followed."""
    outputs, total = outputs_of(q, k, v)
    return outputs.movedim(0, -1).sum(-1) / total


@pytest.mark.parametrize("attend", [renormalised, turned])
@pytest.mark.parametrize("beside", [False, True])
def test_what_cannot_be_put_together_is_an_error(
    attend: Callable[..., Tensor], beside: bool
) -> None:
    first = [Heads(lambda m, q, k, v: (q @ k.mT / 2).softmax(-1) @ v)] if beside else []
    model = nn.Sequential(*first, Heads(attend))
    with pytest.raises(CaptureError, match="a few keys at a time") as error:
        AttentionExtractor(model).get_attention(X)
    assert f"{len(first)}: its softmax" in str(error.value)
    assert "scaled_dot_product_attention" in str(error.value)


class Features(nn.Module):
    """Linear attention with random exponential features, shifted, in chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("projection", torch.randn(16, 5))

    def raised(self, x: Tensor) -> Tensor:
        scores = x @ self.projection
        return (scores - scores.amax(-1, keepdim=True)).exp()

    def forward(self, x: Tensor) -> Tensor:
        state, total = torch.zeros(2, 5, 16), torch.zeros(2, 5, 1)
        outputs = []
        for part in x.split(3, dim=1):
            state = state + self.raised(part).mT @ part
            total = total + self.raised(part).sum(1)[..., None]
            outputs.append(self.raised(part) @ state / (self.raised(part) @ total))
        return torch.cat(outputs, dim=1)


class Gated(nn.Module):
    """Products of two activations that multiply a third, without any softmax."""

    def forward(self, x: Tensor) -> Tensor:
        return ((x @ x.mT).sigmoid() @ x) * x + (x @ x.mT).relu() @ x


class Contrast(nn.Module):
    """A contrastive loss: similarities raised and summed, but nothing multiplied by them."""

    def forward(self, x: Tensor) -> Tensor:
        scores = x @ x.mT
        raised = (scores - scores.amax(-1, keepdim=True)).exp()
        return (raised / raised.sum(-1, keepdim=True)).diagonal(dim1=-2, dim2=-1).log()


class ChunkedPooling(nn.Module):
    """Pooling by a linear score, a few positions at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        largest = self.score(x).amax(1, keepdim=True)
        parts = [((self.score(part) - largest).exp(), part) for part in x.split(2, dim=1)]
        total = sum(weights.sum(1, keepdim=True) for weights, _ in parts)
        return sum(weights.mT @ part for weights, part in parts) / total


OTHERS = [Features, Gated, Contrast, ChunkedPooling]


@pytest.mark.parametrize("other", OTHERS, ids=lambda c: c.__name__)
def test_what_is_no_attention_raises_no_alarm(other: type[nn.Module]) -> None:
    attention = Heads(lambda m, q, k, v: (q @ k.mT / 2).softmax(-1) @ v)
    with pytest.raises(CaptureError, match="captured no attention") as error:
        AttentionExtractor(other()).get_attention(X)
    assert "a few keys at a time" not in str(error.value)
    assert AttentionExtractor(nn.Sequential(attention, other())).get_attention(X).names == ("0",)
