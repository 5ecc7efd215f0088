"""Modules that write ``softmax(query @ key) @ value`` out, found by what they compute."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck import AttentionExtractor, CaptureError
from tests.capture.reference import Heads, close, reference_weights, stack

N = 6
X = torch.randn(2, N, 16, generator=torch.Generator().manual_seed(1))
FUTURE = torch.ones(N, N).triu(1).bool()
PAD = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]).bool()


def operators(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / 2).softmax(-1) @ v


def functions(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.matmul(F.softmax(torch.matmul(q, k.transpose(-1, -2)) * 0.5, dim=-1), v)


def einsum(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * 0.5
    return torch.einsum("bhij,bhjd->bhid", torch.softmax(scores, -1), v)


def einsum_positions_first(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.permute(2, 0, 1, 3) for t in (q, k, v))
    scores = torch.einsum("ibnd,jbnd->ijbn", q, k) * 0.5
    return torch.einsum("ijbn,jbnd->ibnd", scores.softmax(1), v).permute(1, 2, 0, 3)


def einsum_ellipsis(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("...id,...jd->...ij", q, k) * 0.5
    return torch.einsum("...ij,...jd->...id", scores.softmax(-1), v)


def heads_in_batch(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    scores = torch.baddbmm(torch.zeros(8, N, N), q, k.mT, alpha=0.5)
    return torch.bmm(nn.Softmax(dim=-1)(scores), v).unflatten(0, (2, 4))


def values_on_the_left(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (v.mT @ (0.5 * q @ k.mT).softmax(-1).mT).mT


def float32_softmax(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = F.softmax(q @ k.mT / 2, dim=-1, dtype=torch.float32).to(q.dtype)
    return m.drop(weights).contiguous() @ v


def shifted_scores(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT / 2
    scores = scores - scores.amax(-1, keepdim=True)
    return F.softmax(scores, -1) @ v


def grouped(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.unflatten(1, (2, 2)) for t in (q, k, v))
    return ((q @ k.mT / 2).softmax(-1) @ v).flatten(1, 2)


SPELLINGS = [
    grouped,
    operators,
    functions,
    einsum,
    einsum_positions_first,
    einsum_ellipsis,
    heads_in_batch,
    values_on_the_left,
    float32_softmax,
    shifted_scores,
]


@pytest.mark.parametrize("attend", SPELLINGS, ids=lambda f: f.__name__)
def test_every_spelling_equals_a_float64_loop(attend: Callable[..., Tensor]) -> None:
    model = stack(attend)
    model.eval()
    before = model(X)
    with AttentionExtractor(model) as extractor:
        output = model(X)
    assert torch.equal(output, before)
    assert extractor.maps.names == ("0", "1")
    for layer, module in zip(extractor.maps.layers, model.children(), strict=True):
        assert isinstance(module, Heads)
        assert close(layer.weights, reference_weights(*module.last))
        assert (layer.backend, layer.kind, layer.causal) == ("softmax", "self", False)


def masked_fill(scores: Tensor) -> Tensor:
    return scores.masked_fill(FUTURE, -math.inf)


def masked_fill_in_place(scores: Tensor) -> Tensor:
    scores.masked_fill_(FUTURE, torch.finfo(scores.dtype).min)
    return scores


def added(scores: Tensor) -> Tensor:
    return scores + torch.zeros(N, N).masked_fill(FUTURE, -1e9)


def where(scores: Tensor) -> Tensor:
    return torch.where(FUTURE, torch.tensor(-1e9), scores)


def where_visible(scores: Tensor) -> Tensor:
    return torch.where(~FUTURE, scores, -math.inf)


def assigned(scores: Tensor) -> Tensor:
    scores[..., FUTURE] = -math.inf
    return scores


@pytest.mark.parametrize(
    "hide",
    [masked_fill, masked_fill_in_place, added, where, where_visible, assigned],
    ids=lambda f: f.__name__,
)
def test_causality_is_told_however_it_is_written(hide: Callable[[Tensor], Tensor]) -> None:
    module = Heads(lambda m, q, k, v: hide(q @ k.mT / 2).softmax(-1) @ v)
    layer = AttentionExtractor(module).get_attention(X).layers[0]
    assert close(layer.weights, reference_weights(*module.last, sees=lambda b, h, i, j: j <= i))
    assert layer.causal


def padding_filled(scores: Tensor) -> Tensor:
    return scores.masked_fill(~PAD[:, None, None], -1e9)


def padding_assigned(scores: Tensor) -> Tensor:
    scores[~PAD[:, None, None].expand_as(scores)] = -math.inf
    return scores


def padding_assigned_by_axes(scores: Tensor) -> Tensor:
    scores[1, ..., 4:] = torch.tensor(-math.inf)
    return scores


def padding_put(scores: Tensor) -> Tensor:
    hidden = ~PAD[:, None, None].expand_as(scores)
    return scores.index_put_((hidden,), torch.tensor(-math.inf))


def padding_subtracted(scores: Tensor) -> Tensor:
    return scores - 1e9 * (~PAD[:, None, None]).float()


def padding_subtracted_in_place(scores: Tensor) -> Tensor:
    scores -= 1e9 * (~PAD[:, None, None]).float()
    return scores


def padding_subtracted_times(scores: Tensor) -> Tensor:
    return torch.sub(scores, (~PAD[:, None, None]).float(), alpha=1e9)


def padding_added_times(scores: Tensor) -> Tensor:
    return scores.add((~PAD[:, None, None]).float(), alpha=-1e9)


def padding_by_minimum(scores: Tensor) -> Tensor:
    return torch.minimum(scores, torch.where(PAD[:, None, None], math.inf, -math.inf))


@pytest.mark.parametrize(
    "hide",
    [
        *(padding_filled, padding_assigned, padding_assigned_by_axes, padding_put),
        *(padding_subtracted, padding_subtracted_in_place, padding_subtracted_times),
        *(padding_added_times, padding_by_minimum),
    ],
    ids=lambda f: f.__name__,
)
def test_padding_is_told_as_a_mask(hide: Callable[[Tensor], Tensor]) -> None:
    module = Heads(lambda m, q, k, v: hide(q @ k.mT / 2).softmax(-1) @ v)
    layer = AttentionExtractor(module).get_attention(X).layers[0]
    assert layer.mask is not None
    assert torch.equal(layer.visible().expand_as(layer.weights), layer.weights > 0)
    assert layer.valid_rows()[1, 0].tolist() == PAD[1].tolist()


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_softmax_that_gets_its_mask(kind: int) -> None:
    """Of (query, key), of (batch, key), and of all scores."""
    hidden = {0: FUTURE, 1: ~PAD, 2: (FUTURE | ~PAD[:, None, None]).repeat(1, 4, 1, 1)}[kind]

    def attend(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch._masked_softmax(q @ k.mT / 2, hidden, 3, kind) @ v

    module = Heads(attend)
    (layer,) = AttentionExtractor(module).get_attention(X).layers

    def sees(b: int, h: int, i: int, j: int) -> bool:
        return (kind == 1 or j <= i) and (kind == 0 or bool(PAD[b, j]))

    assert close(layer.weights, reference_weights(*module.last, sees=sees))
    assert torch.equal(layer.visible().expand_as(layer.weights), layer.weights > 0)


@pytest.mark.parametrize("rows", [slice(0, 1), slice(-1, None), slice(1, 3), 2], ids=str)
def test_some_rows_of_as_many_queries_as_keys(rows: slice | int) -> None:
    """Only these multiply values, and the softmax made all."""

    def attend(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        part = (q @ k.mT / 2).softmax(-1)[:, :, rows]
        return ((part[:, :, None] if isinstance(rows, int) else part) @ v).mean(2, keepdim=True) + v

    module = Heads(attend)
    (weights,) = AttentionExtractor(module).get_attention(X)
    assert close(weights, reference_weights(*module.last))


def test_weights_before_dropout() -> None:
    module = Heads(lambda m, q, k, v: m.drop((q @ k.mT / 2).softmax(-1)) @ v)
    module.train()
    with AttentionExtractor(module) as extractor:
        module(X)
    assert close(extractor.maps[0], reference_weights(*module.last))


def test_weights_before_dropout_however_they_are_laid_out_then() -> None:
    def attend(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dropped = F.dropout((q @ k.mT / 2).softmax(-1), 0.5, training=True)
        rows = dropped.view(8, N, N).transpose(0, 1).reshape(N, 2, 4, N).permute(1, 2, 0, 3)
        return torch.bmm(rows.flatten(0, 1), v.flatten(0, 1)).view(2, 4, N, 4)

    module = Heads(attend)
    maps = AttentionExtractor(module).get_attention(X)
    assert close(maps[0], reference_weights(*module.last))


class OwnDropout(torch.autograd.Function):
    """A dropout that no function mode sees."""

    @staticmethod
    def forward(ctx: object, weights: Tensor, share: float) -> Tensor:
        return weights * (torch.rand_like(weights) > share) / (1 - share)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class OwnSoftmax(torch.autograd.Function):
    """A softmax that saves memory in its backward pass."""

    @staticmethod
    def forward(ctx: object, scores: Tensor) -> Tensor:
        return torch.softmax(scores, -1)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return grads[0]


def test_a_softmax_inside_an_autograd_function() -> None:
    module = Heads(lambda m, q, k, v: OwnSoftmax.apply(q @ k.mT / 2) @ v)
    with AttentionExtractor(module) as extractor:
        module(X)
    assert close(extractor.maps[0].detach(), reference_weights(*module.last))


@pytest.mark.parametrize("grad", [True, False])
def test_weights_before_a_dropout_of_ones_own(grad: bool) -> None:
    def attend(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return OwnDropout.apply((q @ k.mT / 2).softmax(-1), 0.5) @ v

    apply = vars(torch.autograd.Function)["apply"]
    module = Heads(attend)
    with torch.set_grad_enabled(grad), AttentionExtractor(module) as extractor:
        module(X)
    assert close(extractor.maps[0].detach(), reference_weights(*module.last))
    assert vars(torch.autograd.Function)["apply"] is apply


def test_a_sink_keeps_its_share() -> None:
    def attend(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.cat([q @ k.mT / 2, torch.ones(2, 4, N, 1)], dim=-1)
        return scores.softmax(-1)[..., :-1] @ v

    layer = AttentionExtractor(Heads(attend)).get_attention(X).layers[0]
    assert layer.sink_mass is not None
    assert layer.weights.sum(-1).max() < 1
    torch.testing.assert_close(layer.weights.sum(-1) + layer.sink_mass, torch.ones(2, 4, N))


class Mixture(nn.Module):
    """A router in front of experts, dense: a softmax whose result multiplies values."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(16, 3)
        self.experts = nn.Parameter(torch.randn(3, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        share = self.router(x).softmax(-1)
        outputs = torch.einsum("bnd,edf->bnef", x, self.experts)
        return torch.einsum("bne,bnef->bnf", share, outputs)


class Pooling(nn.Module):
    """Attention pooling by a linear score: no query meets a key."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(x).softmax(1).mT @ x


class LinearAttention(nn.Module):
    """Softmax over features and over positions, but never over query times key."""

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(-1) @ (x.softmax(1).mT @ x)


class Memory(nn.Module):
    """Soft look-up in a parameter: a classifier's softmax times an embedding matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 16))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.table.T).softmax(-1) @ self.table


class Scores(nn.Module):
    """Similarities as a result: a softmax over query and key that multiplies nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return (x @ x.mT).softmax(-1)


class HeatMap(nn.Module):
    """Expected place in a similarity matrix: one softmax over both of its axes."""

    def forward(self, x: Tensor) -> Tensor:
        return (x @ x.mT).flatten(1).softmax(-1) @ torch.arange(36.0)[:, None]


OTHERS = [HeatMap, Mixture, Pooling, LinearAttention, Memory, Scores]


@pytest.mark.parametrize("other", OTHERS, ids=lambda c: c.__name__)
def test_what_is_no_attention_is_not_captured(other: type[nn.Module]) -> None:
    with pytest.raises(CaptureError, match="captured no attention"):
        AttentionExtractor(other()).get_attention(X)


@pytest.mark.parametrize("other", [Mixture, Memory, LinearAttention], ids=lambda c: c.__name__)
def test_and_raises_no_alarm_beside_attention(other: type[nn.Module]) -> None:
    model = nn.Sequential(Heads(operators), other(), Heads(functions))
    maps = AttentionExtractor(model).get_attention(X)
    assert maps.names == ("0", "2")


def test_one_softmax_over_two_values_is_one_layer() -> None:
    def attend(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q @ k.mT / 2).softmax(-1)
        return weights @ v + weights @ k

    assert len(AttentionExtractor(Heads(attend)).get_attention(X)) == 1


def test_what_the_model_does_to_its_weights_later_is_not_captured() -> None:
    def attend(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q @ k.mT / 2).softmax(-1)
        mixed = weights @ v
        weights.zero_()
        return mixed

    module = Heads(attend)
    weights = AttentionExtractor(module).get_attention(X)[0]
    assert close(weights, reference_weights(*module.last))
