"""Shares of rows that one sum divides: rows of all keys together, an error, or a rest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck import AttentionExtractor, CaptureError
from tests.capture.reference import Heads, close, reference_weights

X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(7))


def raised(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT / 2).exp()


def two_blocks(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    near, far = raised(q, k[:, :, :2]), raised(q, k[:, :, 2:])
    return near, far, near.sum(-1, keepdim=True) + far.sum(-1, keepdim=True)


def divided_before(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    near, far, total = two_blocks(q, k)
    return (near / total) @ v[:, :, :2] + (far / total) @ v[:, :, 2:]


def divided_behind(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    near, far, total = two_blocks(q, k)
    return (far @ v[:, :, 2:]) / total + (near @ v[:, :, :2]) * (1 / total)


def stacked_sums(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    near, far, _ = two_blocks(q, k)
    total = torch.stack([near.sum(-1, keepdim=True), far.sum(-1, keepdim=True)]).sum(0)
    return near / total @ v[:, :, :2] + far / total @ v[:, :, 2:]


def cut_before(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    whole = raised(q, k)
    total = whole.sum(-1, keepdim=True)
    return (whole[..., :2] / total) @ v[:, :, :2] + (whole[..., 2:] / total) @ v[:, :, 2:]


def summed_in_parts(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    near, far = raised(q, k).split([2, 4], dim=-1)
    total = near.sum(-1, keepdim=True) + far.sum(-1, keepdim=True)
    return (near / total) @ v[:, :, :2] + (far / total) @ v[:, :, 2:]


def cut_logarithms(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    whole = F.log_softmax(q @ k.mT / 2, dim=-1).exp()
    return whole[..., :2] @ v[:, :, :2] + whole[..., 2:] @ v[:, :, 2:]


@pytest.mark.parametrize(
    "attend",
    [divided_before, divided_behind, stacked_sums, cut_before, summed_in_parts, cut_logarithms],
)
def test_shares_become_rows_of_all_keys(attend: Callable[..., Tensor]) -> None:
    module = Heads(attend)
    (layer,) = AttentionExtractor(module).get_attention(X).layers
    assert close(layer.weights, reference_weights(*module.last))
    assert layer.sink_mass is None
    assert not layer.note


def one_share(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    near, _, total = two_blocks(q, k)
    return (near / total) @ v[:, :, :2]


def one_share_behind(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    near, _, total = two_blocks(q, k)
    return (near @ v[:, :, :2]) / total


def one_cut(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    whole = raised(q, k)
    return (whole[..., :2] / whole.sum(-1, keepdim=True)) @ v[:, :, :2]


@pytest.mark.parametrize("attend", [one_share, one_share_behind, one_cut])
def test_a_share_alone_is_an_error(attend: Callable[..., Tensor]) -> None:
    model = nn.Sequential(Heads(lambda m, q, k, v: (q @ k.mT).softmax(-1) @ v), Heads(attend))
    with pytest.raises(CaptureError, match="1: a softmax over query and key"):
        AttentionExtractor(model).get_attention(X)


@pytest.mark.parametrize("behind", [False, True])
def test_what_is_divided_by_more_than_its_keys_leaves_a_rest(behind: bool) -> None:
    def attend(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = raised(q, k)
        total = 1 + scores.sum(-1, keepdim=True)
        return (scores @ v) / total if behind else (scores / total) @ v

    module = Heads(attend)
    (layer,) = AttentionExtractor(module).get_attention(X).layers
    q, k = module.last
    scores = raised(q.double(), k.double())
    torch.testing.assert_close(
        layer.weights.double(), scores / (1 + scores.sum(-1, keepdim=True)), atol=1e-6, rtol=0
    )
    assert layer.sink_mass is not None
    torch.testing.assert_close(layer.weights.sum(-1) + layer.sink_mass, torch.ones(2, 4, 6))


def _captured(attend: object) -> tuple[Tensor, Tensor]:
    """Map that was captured, and the scores of its call."""
    model = Heads(attend).eval()  # type: ignore[arg-type]
    layers = AttentionExtractor(model).get_attention(X).layers
    assert len(layers) == 1
    query, key = model.last
    return layers[0].weights, query @ key.mT / 2


def local_and_earlier(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal within pairs of positions, and whole earlier pairs: two masks over the same keys."""
    pair = torch.arange(6) // 2
    own = (pair[:, None] == pair) & torch.ones(6, 6, dtype=torch.bool).tril()
    scores = q @ k.mT / 2
    near, far = (
        scores.masked_fill(~seen, -torch.inf).exp() for seen in (own, pair[:, None] > pair)
    )
    total = near.sum(-1, keepdim=True) + far.sum(-1, keepdim=True)
    return near / total @ v + far / total @ v


def joint_logsumexp(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    first, second = q @ k[:, :, :2].mT / 2, q @ k[:, :, 2:].mT / 2
    total = torch.logaddexp(first.logsumexp(-1, True), second.logsumexp(-1, True))
    return (first - total).exp() @ v[:, :, :2] + (second - total).exp() @ v[:, :, 2:]


def test_parts_of_the_same_keys_are_added() -> None:
    weights, scores = _captured(local_and_earlier)
    seen = torch.ones(6, 6, dtype=torch.bool).tril()
    expected = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    assert torch.allclose(weights, expected, atol=1e-6)


def test_parts_divided_in_the_logarithm_are_put_together() -> None:
    weights, scores = _captured(joint_logsumexp)
    assert torch.allclose(weights, scores.softmax(-1), atol=1e-6)
