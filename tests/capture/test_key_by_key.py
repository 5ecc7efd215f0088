"""Weights that multiply values element by element, a key at a time: whole rows, or an error."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attncheck import AttentionExtractor, CaptureError
from tests.capture.reference import Heads, close, reference_weights

N = 6
X = torch.randn(2, N, 16, generator=torch.Generator().manual_seed(11))


def weights_of(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT / 2).softmax(-1)


def columns(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights, out = weights_of(q, k), torch.zeros_like(v)
    for j in range(N):
        out = out + weights[..., j : j + 1] * v[:, :, j : j + 1]
    return out


def columns_without_their_axis(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    columns = weights_of(q, k).unbind(-1)
    return sum(columns[j].unsqueeze(-1) * v[:, :, j].unsqueeze(2) for j in range(N))


def selected_columns(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = weights_of(q, k)
    return sum(v[:, :, j, None] * weights[..., j, None] for j in reversed(range(N)))


def addcmul(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights, out = weights_of(q, k), torch.zeros_like(v)
    for j in range(N):
        out = torch.addcmul(out, weights[..., j : j + 1], v[:, :, j : j + 1])
    return out


def recurrent(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    largest = torch.full_like(q[..., :1], -math.inf)
    total, out = torch.zeros_like(largest), torch.zeros_like(q)
    for j in range(N):
        scores = q @ k[:, :, j : j + 1].mT / 2
        new = torch.maximum(largest, scores)
        raised, shrink = (scores - new).exp(), (largest - new).exp()
        total = total * shrink + raised
        out = out * shrink + raised * v[:, :, j : j + 1]
        largest = new
    return out / total


def raised_element_by_element(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raised = (q @ k.mT / 2).exp()
    return (raised[..., None] * v[:, :, None]).sum(3) / raised.sum(-1, keepdim=True)


def score(q: Tensor, k: Tensor, j: int) -> Tensor:
    return (q * k[:, :, j : j + 1]).sum(-1, keepdim=True) / 2


def raised_one_by_one(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out, total = torch.zeros_like(q), torch.zeros(())
    for j in range(N):
        raised = score(q, k, j).exp()
        out, total = out + raised * v[:, :, j : j + 1], total + raised
    return out / total


def raised_without_an_axis(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out, total = torch.zeros_like(q), torch.zeros_like(q[..., 0])
    for key, value in zip(k.unbind(2), v.unbind(2), strict=True):
        raised = (torch.einsum("bhid,bhd->bhi", q, key) / 2).exp()
        out += raised[..., None] * value[:, :, None]
        total += raised
    return out / total[..., None]


def divided_one_by_one(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raised = [score(q, k, j).exp() for j in range(N)]
    total = sum(raised)
    return sum(raised[j] / total * v[:, :, j : j + 1] for j in range(N))


def divided_columns(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raised = [(q @ k[:, :, j : j + 1].mT / 2).exp() for j in range(N)]
    total = sum(raised)
    return sum(raised[j] / total * v[:, :, j : j + 1] for j in range(N))


def stacked_products(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raised = [score(q, k, j).exp() for j in range(N)]
    weighed = [part * v[:, :, j : j + 1] for j, part in enumerate(raised)]
    return torch.stack(weighed).sum(0) / torch.stack(raised).sum(0)


def stacked_keys(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raised = torch.stack([score(q, k, j).exp() for j in range(N)])
    values = torch.stack(v.split(1, dim=2))
    return (raised * values).sum(0) / raised.sum(0)


def raised_by_addcmul(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out, total = torch.zeros_like(q), torch.zeros(())
    for j in range(N):
        raised = score(q, k, j).exp()
        out, total = torch.addcmul(out, raised, v[:, :, j : j + 1]), total + raised
    return out / total


def recurrent_by_broadcasting(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    largest = torch.full_like(q[..., :1], -math.inf)
    total, out = torch.zeros_like(largest), torch.zeros_like(q)
    for j in range(N):
        new = torch.maximum(largest, score(q, k, j))
        raised, shrink = (score(q, k, j) - new).exp(), (largest - new).exp()
        total, out = total * shrink + raised, out * shrink + raised * v[:, :, j : j + 1]
        largest = new
    return out / total


ONE_BY_ONE = [
    *(columns, columns_without_their_axis, selected_columns, addcmul),
    *(recurrent, raised_element_by_element),
    *(raised_one_by_one, raised_without_an_axis, divided_one_by_one, divided_columns),
    *(recurrent_by_broadcasting, stacked_products, stacked_keys, raised_by_addcmul),
]


@pytest.mark.parametrize("attend", ONE_BY_ONE)
@pytest.mark.parametrize("batch", [1, 2])
def test_keys_one_by_one_are_whole_rows(attend: Callable[..., Tensor], batch: int) -> None:
    module = Heads(attend)
    (weights,) = AttentionExtractor(module).get_attention(X[:batch])
    assert close(weights, reference_weights(*module.last))


@pytest.mark.parametrize("attend", [raised_one_by_one, raised_without_an_axis, divided_columns])
@pytest.mark.parametrize("length", [1, 3, 4])
def test_so_they_are_for_other_queries(attend: Callable[..., Tensor], length: int) -> None:
    module = Heads(attend)
    (layer,) = AttentionExtractor(module).get_attention(X[:, :length].flip(2), X).layers
    assert close(layer.weights, reference_weights(*module.last))
    assert not layer.note


def some_columns(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = weights_of(q, k)
    return weights[..., :1] * v[:, :, :1] + weights[..., 1:2] * v[:, :, 1:2]


def one_selected(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return weights_of(q, k)[..., 2, None] * v[:, :, 2, None]


def divided_element_by_element(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raised = (q @ k.mT / 2).exp()
    return (raised[..., None] * v[:, :, None] / raised.sum(-1)[..., None, None]).sum(3)


@pytest.mark.parametrize("attend", [some_columns, one_selected, divided_element_by_element])
def test_what_is_no_whole_row_is_an_error(attend: Callable[..., Tensor]) -> None:
    model = nn.Sequential(Heads(lambda m, q, k, v: weights_of(q, k) @ v), Heads(attend))
    with pytest.raises(CaptureError, match="1: a softmax over query and key"):
        AttentionExtractor(model).get_attention(X)
