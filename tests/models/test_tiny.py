"""The trained model: its heads do what the manifest says, judged by a plain float64 computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attncheck.models import (
    VOCABULARY,
    TinyTransformer,
    encode,
    load_tiny_model,
    repeated_tokens,
    tokens_of,
)
from tests.models.plain import mass_by_tokens, previous_token_mass, tiny_forward

PREVIOUS, OTHER = "L0H1", "L0H0"
INDUCTION = ("L1H0", "L1H1")


@pytest.fixture(scope="module")
def model() -> TinyTransformer:
    return load_tiny_model()


def copy_accuracy(model: TinyTransformer, ids: torch.Tensor, period: int) -> float:
    with torch.no_grad():
        predicted = model(ids)[:, 1 + period : -1].argmax(-1)
    return float((predicted == ids[:, 2 + period :]).double().mean())


def mean_induction(
    model: TinyTransformer, head: str, period: int, silenced: tuple[str, ...] = ()
) -> float:
    prompts = repeated_tokens(period, seed=50, batch=4).tolist()
    return float(
        np.mean(
            [mass_by_tokens(tiny_forward(model, ids, silenced)[0][head], ids, 1) for ids in prompts]
        )
    )


def test_model_has_the_size_it_claims_and_is_in_evaluation_mode(model: TinyTransformer) -> None:
    assert sum(p.numel() for p in model.parameters()) == 11_456
    assert not model.training


@pytest.mark.parametrize("silenced", [(), (PREVIOUS,), ("L0H0", "L1H1")])
def test_forward_matches_a_plain_float64_computation(
    model: TinyTransformer, silenced: tuple[str, ...]
) -> None:
    ids = repeated_tokens(9, seed=4)
    with torch.no_grad(), model.ablate(*silenced):
        logits = model(ids)[0]
    expected = tiny_forward(model, ids[0].tolist(), silenced)[1]
    np.testing.assert_allclose(logits.numpy(), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("period", range(6, 16))
def test_heads_copy_at_every_period(model: TinyTransformer, period: int) -> None:
    prompts = repeated_tokens(period, seed=period, batch=6)
    previous, induction = [], []
    for ids in prompts.tolist():
        weights, _ = tiny_forward(model, ids)
        previous.append(previous_token_mass(weights[PREVIOUS]))
        induction.append([mass_by_tokens(weights[head], ids, 1) for head in INDUCTION])
        assert mass_by_tokens(weights[OTHER], ids, 1) < 0.1
    assert np.mean(previous) > 0.75
    assert np.mean(induction, axis=0).min() > 0.85
    assert copy_accuracy(model, repeated_tokens(period, seed=90, batch=64), period) == 1.0


def test_silencing_the_previous_token_head_ends_induction(model: TinyTransformer) -> None:
    ids = repeated_tokens(12, seed=3, batch=64)
    for head in INDUCTION:
        assert mean_induction(model, head, 12) > 0.85
        assert mean_induction(model, head, 12, (PREVIOUS,)) < 0.3
    with model.ablate(PREVIOUS):
        assert copy_accuracy(model, ids, 12) < 0.4


@pytest.mark.parametrize("silenced", [OTHER, *INDUCTION])
def test_silencing_any_other_head_changes_little(model: TinyTransformer, silenced: str) -> None:
    with model.ablate(silenced):
        assert copy_accuracy(model, repeated_tokens(12, seed=3, batch=64), 12) > 0.95
    if silenced == OTHER:
        assert mean_induction(model, "L1H0", 12, (OTHER,)) > 0.75


def test_ablation_ends_with_its_block_and_with_an_exception(model: TinyTransformer) -> None:
    ids = repeated_tokens(8)
    before = model(ids)
    with model.ablate("L1H0", "L1H1"):
        assert not torch.equal(model(ids), before)
    assert torch.equal(model(ids), before)
    with pytest.raises(ValueError, match="positions for 32"), model.ablate("L1H0", "L1H1"):
        model(torch.zeros(1, 40, dtype=torch.long))
    assert torch.equal(model(ids), before)
    with model.ablate("L1H0"), model.ablate("L1H1"):
        both = model(ids)
    with model.ablate("L1H0", "L1H1"):
        assert torch.equal(model(ids), both)


@pytest.mark.parametrize("name", ["L2H0", "L0H2", "0.1", "L0H1x", ""])
def test_ablating_a_head_that_is_none_is_an_error(model: TinyTransformer, name: str) -> None:
    with (
        pytest.raises(ValueError, match=r"heads: no head .*; the heads are L0H0, L0H1, L1H0, L1H1"),
        model.ablate(name),
    ):
        pass


def test_input_of_wrong_shape_is_an_error(model: TinyTransformer) -> None:
    with pytest.raises(ValueError, match=r"33 tokens; the model has positions for 32"):
        model(torch.zeros(1, 33, dtype=torch.long))
    with pytest.raises(ValueError, match=r"shape \(4,\); expected \(batch, token\)"):
        model(torch.zeros(4, dtype=torch.long))


def test_repeated_tokens_are_distinct_blocks_behind_a_start_token() -> None:
    ids = repeated_tokens(10, 3, seed=5, batch=20)
    assert ids.shape == (20, 31)
    assert (ids[:, 0] == 0).all()
    for row in ids[:, 1:].tolist():
        assert len(set(row[:10])) == 10
        assert 0 not in row
        assert row == row[:10] * 3
    assert len({tuple(row) for row in ids.tolist()}) == 20


def test_repeated_tokens_follow_their_seed_alone() -> None:
    torch.manual_seed(1)
    first = repeated_tokens(7, seed=2)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(repeated_tokens(7, seed=2), first)
    assert not torch.equal(repeated_tokens(7, seed=3), first)


@pytest.mark.parametrize("period", [0, 32])
def test_period_beyond_the_alphabet_is_an_error(period: int) -> None:
    with pytest.raises(ValueError, match=f"period: got {period}; 31 distinct tokens allow 1 to 31"):
        repeated_tokens(period)


def test_text_becomes_ids_and_back() -> None:
    assert len(set(VOCABULARY)) == 32
    text = "".join(VOCABULARY[1:])
    assert tokens_of(encode(text)) == [list(VOCABULARY)]
    assert torch.equal(encode("a b"), encode("ab"))
    with pytest.raises(ValueError, match=r"text: '!', 'A' not in the vocabulary"):
        encode("aA!")
