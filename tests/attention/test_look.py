"""The quick look over large weights lets nothing pass that the slow one rejects."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attncheck import as_attention
from attncheck.attention import LayerAttention, look, reading
from attncheck.attention.look import look_over

pytest.importorskip("numba")

SIZE, HEADS = 40, 3


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SMALL", 1)


def rows(causal: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(0)
    scores = torch.randn(2, HEADS, SIZE, SIZE)
    if causal:
        scores = scores + torch.full((SIZE, SIZE), -torch.inf).triu(1)
    return scores.softmax(-1).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_sound_weights(causal: bool, dtype: torch.dtype) -> None:
    layer = LayerAttention(rows(causal))
    found = look_over(layer)
    assert found is not None
    assert found == look.Look(sound=True, ahead=not causal)
    assert as_attention(rows(causal, dtype)).layers[0].causal == causal


DAMAGES: dict[str, Callable[[Tensor], None]] = {
    "negative": lambda row: row.sub_(0.01),
    "negative, but even": lambda row: row[:2].add_(torch.tensor([0.9, -0.9])),
    "not a number": lambda row: row[3:4].fill_(torch.nan),
    "infinite": lambda row: row[3:4].fill_(torch.inf),
    "of both infinities": lambda row: row[3:5].copy_(torch.tensor([torch.inf, -torch.inf])),
    "too much": lambda row: row.mul_(1.01),
    "too little": lambda row: row.mul_(0.99),
}


@pytest.mark.parametrize("query", [0, 17, SIZE - 1])
@pytest.mark.parametrize("damage", DAMAGES)
def test_one_bad_row_is_seen(damage: str, query: int) -> None:
    weights = rows()
    DAMAGES[damage](weights[1, 2, query])
    found = look_over(LayerAttention(weights))
    assert found is not None
    assert not found.sound
    with pytest.raises(ValueError, match="attention: "):
        as_attention(weights)


def test_rows_of_zeros_carry_no_attention() -> None:
    weights = rows()
    weights[0, 1, 5] = 0
    found = look_over(LayerAttention(weights))
    assert found is not None
    assert found.sound
    as_attention(weights)


@pytest.mark.parametrize("value", [1e-30, -1e-30, torch.nan])
@pytest.mark.parametrize("place", [(0, 1), (0, SIZE - 1), (SIZE - 2, SIZE - 1)])
def test_one_weight_on_a_later_key_is_seen(place: tuple[int, int], value: float) -> None:
    weights = rows(causal=True)
    weights[(1, 0, *place)] = value
    found = look_over(LayerAttention(weights))
    assert found is not None
    assert found.ahead


def test_last_queries_of_longer_keys() -> None:
    weights = rows(causal=True)[:, :, -7:]
    assert as_attention(weights).layers[0].causal
    weights[0, 0, 0, SIZE - 6] = 1e-30
    assert not as_attention(weights).layers[0].causal


def test_what_is_left_to_the_slow_look(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = rows()
    assert look_over(LayerAttention(weights.double())) is None
    assert look_over(LayerAttention(weights * 0.5, sink_mass=torch.full((2, 3, SIZE), 0.5))) is None
    monkeypatch.setattr(reading, "missing", lambda: "numba is not installed")
    assert look_over(LayerAttention(weights)) is None
    monkeypatch.undo()
    assert look_over(LayerAttention(weights)) is None, "few weights"
