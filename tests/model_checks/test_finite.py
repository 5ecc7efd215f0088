"""NaN is told as NaN: never as a broken mask, and never as equal to NaN."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attncheck
from attncheck import CheckFailure, ModelSubject, check_model
from attncheck.model_checks import PROMISES
from attncheck.model_checks.noise import distance, noise_of
from tests.model_checks.decoder import Decoder, step, token_ids

OPTIONS: dict[str, Any] = {"kind": "decoder", "step": step, "segments": "segment_ids", "output": 0}


class BlindFirst(nn.Module):
    """Each token sees those before it, itself not: the first one sees none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(40, 16)
        self.attend = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        x, hidden = self.embed(ids), torch.ones(2 * ids.shape[1:], dtype=torch.bool).triu()
        mixed: Tensor = self.attend(x, x, x, attn_mask=hidden, need_weights=False)[0]
        return mixed


class Changed(Decoder):
    """A sound decoder whose output passes through a function of it and of the arguments."""

    def __init__(self, change: Any, fault: str = "") -> None:
        super().__init__(fault)
        self.change = change

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Any = None,
        position_ids: Any = None,
        segment_ids: Any = None,
        cache: Any = None,
    ) -> Any:
        given = {"attention_mask": attention_mask, "segment_ids": segment_ids}
        found, cache = super().forward(input_ids, **given, position_ids=position_ids, cache=cache)
        return self.change(found, input_ids, given), cache


def test_no_promise_is_kept_by_nan() -> None:
    model = Decoder()
    model.blocks[1].mlp[2].bias.data[3] = math.nan
    report = check_model(model, token_ids(), raises=False, window=4, **OPTIONS)
    judged = {one.id: one for one in report.outcomes if one.status != "not applicable"}
    assert set(judged) == set(PROMISES) - {"permutation-equivariant"}
    for outcome in judged.values():
        assert outcome.finding is not None
        assert outcome.finding.verdict == "output is not finite: 36 of 36 positions"
        assert outcome.finding.check == outcome.id.replace("-", "_")
    facts = dict(judged["deterministic"].finding.facts)  # type: ignore[union-attr]
    assert facts["first"] == "NaN at output 0 of sequence 0"
    assert facts["layer"] == "blocks.1.mlp.2 returns it first, its bias holds NaN"
    assert facts["maps"] == "weights of 2 layers are finite"
    text = str(report)
    assert text.count("returns it first") == 1
    assert max(map(len, text.splitlines())) <= 80


def test_the_layer_whose_maps_are_nan_first_is_named() -> None:
    model = Decoder()
    model.blocks[1].attn.query.weight.data[2, 3] = math.nan
    with pytest.raises(CheckFailure, match="output is not finite") as caught:
        attncheck.assert_batch_invariant(model, token_ids(), **OPTIONS)
    facts = dict(caught.value.finding.facts)
    assert facts["layer"] == "blocks.1.attn.query returns it first, its weight holds NaN"
    assert facts["maps"].startswith("blocks.1.attn has NaN weights first: sequence 0, head 0, ")


@pytest.mark.parametrize(
    "check",
    [
        attncheck.assert_no_future_leakage,
        attncheck.assert_batch_invariant,
        attncheck.assert_deterministic,
        attncheck.assert_gradients_flow,
    ],
)
def test_a_query_that_sees_no_key_is_told_as_one(check: Any) -> None:
    with pytest.raises(CheckFailure, match="output is not finite: 3 of 36 positions") as caught:
        check(BlindFirst(), token_ids())
    facts = dict(caught.value.finding.facts)
    assert facts["layer"] == "attend returns it first"
    assert facts["maps"] == "attend lets query 0 of sequence 0 see no key"


def test_nan_in_the_inputs_is_named() -> None:
    x = torch.randn(2, 6, 8)
    x[1, 2, 3] = math.nan
    with pytest.raises(CheckFailure, match="output is not finite: 1 of 12 positions") as caught:
        attncheck.assert_deterministic(nn.LayerNorm(8), x)
    facts = dict(caught.value.finding.facts)
    assert facts["first"] == "NaN at output 2 of sequence 1"
    assert facts["inputs"] == "input holds NaN"


def test_infinity_is_meant_only_where_it_rules_out_some_of_an_output() -> None:
    def ruled_out(found: Tensor, *_: Any) -> Tensor:
        return found.masked_fill(torch.arange(16) == 5, -math.inf)

    assert check_model(Changed(ruled_out), token_ids(), **OPTIONS).passed
    with pytest.raises(CheckFailure, match="sees the future"):
        attncheck.assert_no_future_leakage(Changed(ruled_out, "future"), token_ids(), **OPTIONS)
    for value, change in ((math.inf, ruled_out), (-math.inf, torch.zeros_like)):
        model = Changed(lambda found, *_, v=value, c=change: c(found).abs() * 0 + v)
        with pytest.raises(CheckFailure, match="output is not finite"):
            attncheck.assert_deterministic(model, token_ids(), **OPTIONS)


def test_padding_may_hold_anything() -> None:
    def spoiled(found: Tensor, ids: Tensor, given: Any) -> Tensor:
        mask = given.get("attention_mask")
        if mask is None:
            return found
        return found.masked_fill(~mask[:, -ids.shape[1] :, None].bool(), math.nan)

    mask = torch.ones(3, 12, dtype=torch.long)
    mask[1, :4] = 0
    ids = {"input_ids": token_ids(), "attention_mask": mask}
    select = [id for id in PROMISES if id not in ("padding-invariant", "cache-consistent")]
    sound = {**OPTIONS, "select": select}
    assert check_model(Changed(spoiled), ids, **sound).passed
    wrong = check_model(Changed(spoiled, "future"), ids, raises=False, **sound)
    assert "no-future-leakage" in {outcome.id for outcome in wrong.failures}
    attncheck.assert_padding_invariant(Changed(spoiled), token_ids(), **OPTIONS, side="right")


def test_two_nan_are_not_equal() -> None:
    one, two = torch.zeros(1, 4, 2), torch.zeros(1, 4, 2)
    one[0, 1, 0] = two[0, 1, 0] = two[0, 2, 1] = math.nan
    one[0, 3, 0] = two[0, 3, 0] = -math.inf
    moved = distance(one, two)[0].tolist()
    assert list(map(math.isnan, moved)) == [False, True, True, False]
    assert moved[0] == moved[3] == 0
    two[0, 3, 0] = 0
    assert float(distance(one, two)[0, 3]) == math.inf


def test_runs_that_are_nan_both_keep_no_promise() -> None:
    def packed(found: Tensor, _: Any, given: Any) -> Tensor:
        return found if given.get("segment_ids") is None else found * math.nan

    with pytest.raises(CheckFailure, match="output is not finite: 18 of 18 ") as caught:
        attncheck.assert_segments_isolated(Changed(packed), token_ids(), **OPTIONS)
    facts = dict(caught.value.finding.facts)
    assert "tokens 0 to 5" in facts["perturbed"]
    assert facts["layer"] == "the model itself returns it first"


def test_a_run_that_becomes_nan_is_no_dependence() -> None:
    def alone(found: Tensor, *_: Any) -> Tensor:
        return found * math.nan if found.shape[0] == 1 else found

    with pytest.raises(CheckFailure, match="output is not finite: 12 of 12") as caught:
        attncheck.assert_batch_invariant(Changed(alone), token_ids(), **OPTIONS)
    facts = dict(caught.value.finding.facts)
    assert facts["compared"] == "NaN at output 0 of sequence 0: sequence 0 run alone"


def test_a_gradient_of_nan_is_no_leak() -> None:
    class Rooted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > -99, x, (x * 0 - 1).sqrt())

    for check in (attncheck.assert_no_future_leakage, attncheck.assert_batch_invariant):
        with pytest.raises(CheckFailure, match="gradient is not finite: ") as caught:
            check(Rooted(), torch.randn(2, 6, 4))
        assert "NaN at input " in dict(caught.value.finding.facts)["gradient"]


def test_a_leak_beside_nan_is_told_with_it() -> None:
    class Rooted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > -99, x, (x * 0 - 1).sqrt()) + x.mean(1, keepdim=True)

    with pytest.raises(CheckFailure, match="sees the future") as caught:
        attncheck.assert_no_future_leakage(Rooted(), torch.randn(2, 6, 4))
    facts = dict(caught.value.finding.facts)
    assert "allowed" in facts["perturbed"]
    assert facts["gradient"].startswith("NaN at input 3 of sequence 0: of outputs")


def test_nan_is_no_noise_that_hides_the_rest() -> None:
    ids = token_ids()

    def fragile(found: Tensor, given: Tensor, _: Any) -> Tensor:
        return found if bool((given[0, :2] == ids[0, :2]).all()) else found * math.nan

    model = ModelSubject.of(Changed(fragile, "future"), ids, **OPTIONS)
    assert noise_of(model).limit < 1e-3
    with pytest.raises(CheckFailure, match="sees the future"):
        attncheck.assert_no_future_leakage(model)


def test_an_order_that_gives_nan_is_not_noticed() -> None:
    ids = token_ids()

    def fragile(found: Tensor, given: Tensor, _: Any) -> Tensor:
        same = torch.equal(given.sort(1).values, ids.sort(1).values)
        return found * math.nan if same and not torch.equal(given, ids) else found

    with pytest.raises(CheckFailure, match="output is not finite: 3 of 3"):
        attncheck.assert_position_sensitive(Changed(fragile), ids, **OPTIONS)
