"""A decoder is known by how it attends, an encoder is not taken for one, and doubt is seen."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attncheck
from attncheck import CheckFailure, ModelSubject, UncheckedWarning, check_model
from attncheck.model_checks.causality import guess_causality
from tests.model_checks.decoder import Decoder, token_ids

FUTURE: Any = {"select": ["no-future-leakage"]}

Hidden = Callable[[Tensor], Tensor]
"""From how far a key lies behind its query to where it is hidden."""


class Reader(nn.Module):
    """Layers of attention under a mask for each, without a word on what it is."""

    def __init__(self, *hidden: Hidden, pooled: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.pooled = hidden, pooled
        self.embed, self.place = nn.Embedding(40, 16), nn.Embedding(64, 16)
        self.layers = nn.ModuleList(
            nn.MultiheadAttention(16, 2, batch_first=True) for _ in self.hidden
        )

    def forward(self, ids: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        places = torch.arange(ids.shape[1])
        x = self.embed(ids) + self.place(places)
        for attend, hidden in zip(self.layers, self.hidden, strict=True):
            mask = hidden(places[:, None] - places)
            mixed = attend(x, x, x, key_padding_mask=padding_mask, attn_mask=mask)[0]
            x = x + mixed
        return x[:, -1] if self.pooled else x


def causal(back: Tensor) -> Tensor:
    return back < 0


def one_ahead(back: Tensor) -> Tensor:
    return back < -1


def nothing(back: Tensor) -> Tensor:
    return back < -99


def windowed(back: Tensor) -> Tensor:
    return (back < -1) | (back > 3)


def outcome(model: Any, inputs: Any = None, **options: Any) -> Any:
    given = token_ids(16) if inputs is None else inputs
    return check_model(model, given, raises=False, **FUTURE, **options).outcomes[0]


@pytest.mark.parametrize("mask", [one_ahead, windowed])
def test_a_mask_off_by_one_is_found_without_a_kind(mask: Hidden) -> None:
    with pytest.raises(CheckFailure, match="sees the future") as caught:
        check_model(Reader(causal, mask), token_ids(16), **FUTURE)
    (broken,) = caught.value.finding.failures
    assert broken.id == "no-future-leakage"
    facts = dict(broken.finding.facts)
    assert facts["kind"].startswith("inferred: decoder")
    assert "pass kind= to decide" in facts["kind"]
    assert facts["layer"] == "layers.1 parts first"


def test_the_door_for_suites_finds_it_too() -> None:
    def load() -> Any:
        return Reader(one_ahead), token_ids(16)

    marked = attncheck.parametrize_with_model_checks([load], select=["causal"])
    made, check = marked.args[1][0].values
    with pytest.raises(CheckFailure, match="sees the future"):
        check(made)


@pytest.mark.parametrize(
    "masks",
    [(causal,), (causal, causal), (lambda back: (back < 0) | (back > 1),)],
    ids=["one", "two", "narrow window"],
)
def test_a_sound_decoder_passes_and_says_that_it_was_inferred(masks: tuple[Hidden, ...]) -> None:
    found = outcome(Reader(*masks))
    assert found.status == "passed"
    assert found.note.startswith("inferred: decoder")
    report = check_model(Reader(*masks), token_ids(16), **FUTURE)
    assert "sees no future: 4 trials; inferred: decoder" in " ".join(str(report).split())


@pytest.mark.parametrize(
    ("masks", "told"),
    [
        ((nothing, nothing), "no head attends as a decoder's"),
        ((lambda back: back.abs() > 1,), "no head attends as a decoder's"),
        ((lambda back: back.abs() > 3,), "no head attends as a decoder's"),
        ((lambda back: back < -2,), "no head attends as a decoder's"),
        ((lambda back: back > 0,), "no head attends as a decoder's"),
        ((causal, nothing), "L1H0 (layers.1) sees later tokens, 2 of 4 heads do not"),
    ],
    ids=["encoder", "neighbours", "local", "two ahead", "backwards", "one layer"],
)
def test_what_may_be_no_decoder_is_left_alone_but_seen(
    masks: tuple[Hidden, ...], told: str
) -> None:
    model = Reader(*masks)
    found = outcome(model)
    assert (found.status, found.finding) == ("not checked", None)
    assert found.note == f"{told}{found.note.removeprefix(told)}"
    assert "pass kind='decoder'" in found.note
    with pytest.warns(UncheckedWarning, match=r"^Reader: no-future-leakage was not checked: "):
        report = check_model(model, token_ids(16), **FUTURE)
    assert report.passed
    assert "1 not checked" in report.summary()
    assert "no-future-leakage was not checked" in str(report)
    assert max(map(len, str(report).splitlines())) <= 80
    for kind in ("encoder", "unknown"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_model(model, token_ids(16), kind=kind, raises=kind == "encoder", **FUTURE)
    assert outcome(model, kind="encoder").status == "not applicable"


def test_the_door_for_suites_warns_and_skips() -> None:
    def load() -> Any:
        return Reader(nothing), token_ids(16)

    marked = attncheck.parametrize_with_model_checks([load], select=["causal"])
    made, check = marked.args[1][0].values
    with (
        pytest.warns(UncheckedWarning, match="no-future-leakage was not checked"),
        pytest.raises(pytest.skip.Exception, match="not checked: "),
    ):
        check(made)


def test_padding_makes_no_decoder() -> None:
    """Keys that the padding hides are zeros far ahead, of an encoder too."""
    hides = torch.zeros(3, 16, dtype=torch.bool)
    hides[:, 3:] = True
    inputs = {"ids": token_ids(16), "padding_mask": hides}
    assert outcome(Reader(nothing), inputs).status == "not checked"
    assert outcome(Reader(causal), inputs).status == "passed"


def test_what_can_not_be_told() -> None:
    def guess(model: nn.Module, inputs: Any) -> str:
        found = guess_causality(ModelSubject.of(model, inputs))
        assert not found.made
        return found.note

    assert "5 positions are too few" in guess(Reader(causal), token_ids(5))
    assert "its attention was not all captured" in guess(nn.Linear(4, 4), torch.randn(2, 8, 4))
    spoiled = Reader(causal)
    spoiled.embed.weight.data.fill_(torch.nan)
    assert "hold NaN" in guess(spoiled, token_ids(16))
    both = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    pair = {"src": torch.randn(2, 8, 8), "tgt": torch.randn(2, 8, 8)}
    assert "attends to another sequence" in guess(both, pair)


def test_layers_that_were_not_captured_may_see_everything() -> None:
    class SelfAttention(nn.Module):
        def __init__(self, axis: int) -> None:
            super().__init__()
            self.axis = axis

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
            scores = (x @ x.mT).masked_fill(hidden, -1e4)
            found: Tensor = scores.softmax(self.axis) @ x  # over queries: no capture takes it
            return found

    torch.manual_seed(0)
    first, second = SelfAttention(-1), SelfAttention(-2)
    vectors = torch.randn(2, 16, 8)
    assert outcome(first, vectors).status == "passed"
    found = outcome(nn.Sequential(first, second), vectors)
    assert (found.status, found.note[:34]) == ("not checked", "its attention was not all captured")


def test_outputs_without_positions_promise_nothing() -> None:
    found = outcome(Reader(causal, pooled=True))
    assert found.status == "not applicable"
    assert "does not follow the positions" in found.note


def test_a_declared_kind_is_taken_at_its_word() -> None:
    options = {"output": 0, "kind": "decoder"}
    assert outcome(Decoder(), token_ids(), **options).note == ""
    assert outcome(Decoder("future"), token_ids(), **options).status == "failed"
    assert outcome(Decoder("future"), token_ids(), output=0).status == "not checked"
