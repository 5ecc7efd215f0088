"""The hand-set model against closed forms and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from attncheck.models import ANALYTIC_HEADS, AnalyticTransformer, repeated_tokens
from tests.models.plain import Array, mass_by_tokens, previous_token_mass

PERIOD = 20
PROMPT = repeated_tokens(PERIOD, seed=2)
LENGTH = 1 + 2 * PERIOD


def heads_of(model: AnalyticTransformer, ids: Tensor) -> dict[str, Array]:
    """Weights of the first sequence by head name, recomputed from each layer's own input."""
    weights: dict[str, Array] = {}

    def keep(module: torch.nn.Module, inputs: tuple[Tensor]) -> None:
        layer = list(model.attention).index(module)
        for head in range(3):
            query = (inputs[0][0] @ module.query[head]).numpy()
            key = (inputs[0][0] @ module.key[head]).numpy()
            rows = np.exp(query @ key.T)
            rows = np.tril(rows)
            weights[f"L{layer}H{head}"] = rows / rows.sum(-1, keepdims=True)

    handles = [layer.register_forward_pre_hook(keep) for layer in model.attention]
    model(ids)
    for handle in handles:
        handle.remove()
    return weights


def closed_form(sharpness: float, ids: list[int], head: str) -> Array:
    """The weights as the class's table gives them, by plain loops."""
    b, n = sharpness, len(ids)
    previous = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1):
            previous[i, j] = math.exp(b * (j == i - 1))
        previous[i] /= previous[i].sum()
    if head == "L0H0":
        return previous
    weights = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1):
            copied = sum(previous[j, k] for k in range(j + 1) if ids[k] == ids[i])
            score = {
                "L0H1": b * (ids[j] == ids[i]) - 2 * b * (i == j) + b / 2 * (j == 0),
                "L0H2": b * (i == j),
                "L1H0": b * copied + b / 2 * (j == 0),
                "L1H1": 0.0,
                "L1H2": b * (j == 0),
            }[head]
            weights[i, j] = math.exp(score)
        weights[i] /= weights[i].sum()
    return weights


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 5.0, 20.0])
def test_every_weight_is_the_one_of_the_table(sharpness: float) -> None:
    ids = torch.tensor([[0, 3, 1, 1, 4, 3, 2, 0, 1, 3, 3]])
    held = heads_of(AnalyticTransformer(sharpness), ids)
    assert list(held) == list(ANALYTIC_HEADS)
    for head, weights in held.items():
        np.testing.assert_allclose(
            weights, closed_form(sharpness, ids[0].tolist(), head), atol=1e-13
        )


@pytest.mark.parametrize(
    ("sharpness", "previous", "duplicate", "induction"),
    [
        (5, 0.88277, 0.78556, 0.70915),
        (10, 0.99907, 0.99203, 0.99194),
        (20, 1 - 4.23e-8, 0.99995, 0.99995),
        (40, 1.0, 1 - 2.061e-9, 1 - 2.061e-9),
    ],
)
def test_scores_on_a_repeated_block(
    sharpness: float, previous: float, duplicate: float, induction: float
) -> None:
    ids = PROMPT[0].tolist()
    held = heads_of(AnalyticTransformer(sharpness), PROMPT)
    digits = 1e-12 if sharpness == 40 else 5e-6
    assert previous_token_mass(held["L0H0"]) == pytest.approx(previous, abs=digits)
    assert mass_by_tokens(held["L0H1"], ids, 0) == pytest.approx(duplicate, abs=digits)
    assert mass_by_tokens(held["L1H0"], ids, 1) == pytest.approx(induction, abs=digits)


@pytest.mark.parametrize("sharpness", [0.0, 2.5, 5.0, 12.0])
def test_masses_have_closed_forms(sharpness: float) -> None:
    held = heads_of(AnalyticTransformer(sharpness), PROMPT)
    sharp, rest = math.exp(sharpness), math.exp(sharpness / 2)
    chosen = [sharp / (sharp + i) for i in range(1, LENGTH)]
    assert previous_token_mass(held["L0H0"]) == pytest.approx(np.mean(chosen), abs=1e-14)
    assert held["L0H2"].diagonal()[1:] == pytest.approx(chosen, abs=1e-14)
    assert held["L1H2"][1:, 0] == pytest.approx(chosen, abs=1e-14)
    second = range(1 + PERIOD, LENGTH)
    duplicate = [sharp / (sharp + 1 / sharp + rest + i - 2) for i in second]
    assert held["L0H1"].diagonal(-PERIOD)[1:] == pytest.approx(duplicate, abs=1e-14)
    assert held["L1H1"][-1] == pytest.approx([1 / LENGTH] * LENGTH, abs=1e-15)


def test_zero_sharpness_is_uniform_attention_everywhere() -> None:
    uniform = np.tril(np.ones((LENGTH, LENGTH)))
    uniform /= uniform.sum(-1, keepdims=True)
    for weights in heads_of(AnalyticTransformer(0.0), PROMPT).values():
        np.testing.assert_allclose(weights, uniform, atol=1e-15)


@pytest.mark.parametrize("period", [3, 7, 12, 20])
@pytest.mark.parametrize("sharpness", [5, 10, 40])
def test_the_model_copies_without_a_mistake(sharpness: float, period: int) -> None:
    ids = repeated_tokens(period, seed=period, batch=5)
    logits = AnalyticTransformer(sharpness)(ids)
    assert torch.equal(logits[:, 1 + period : -1].argmax(-1), ids[:, 2 + period :])


def test_output_is_the_attention_that_the_induction_head_gives_to_each_token() -> None:
    model = AnalyticTransformer(4.0)
    weights = heads_of(model, PROMPT)["L1H0"]
    expected = np.zeros((LENGTH, model.n_tokens))
    for i in range(LENGTH):
        for j in range(LENGTH):
            expected[i, PROMPT[0, j]] += weights[i, j]
    np.testing.assert_allclose(model(PROMPT)[0].numpy(), expected, atol=1e-14)


def test_induction_needs_what_the_previous_token_head_writes() -> None:
    model = AnalyticTransformer(10.0)
    ids = PROMPT[0].tolist()
    before = mass_by_tokens(heads_of(model, PROMPT)["L1H0"], ids, 1)
    model.attention[0].output[0] = 0
    after = mass_by_tokens(heads_of(model, PROMPT)["L1H0"], ids, 1)
    assert before > 0.99
    assert after < 0.01


def test_dtype_and_limits() -> None:
    assert AnalyticTransformer(dtype=torch.float32)(PROMPT).dtype == torch.float32
    assert AnalyticTransformer()(PROMPT).dtype == torch.float64
    with pytest.raises(ValueError, match=r"41 tokens; the model has positions for 40"):
        AnalyticTransformer(max_length=40)(PROMPT)
