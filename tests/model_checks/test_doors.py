"""The doors of the set: reports, pytest items, expected failures."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import attncheck
from attncheck import ModelSubject, check_model
from attncheck.model_checks import PROMISES, ModelReport
from tests.model_checks.decoder import Decoder, step, token_ids


def right() -> ModelSubject:
    return ModelSubject.of(Decoder(), token_ids(), kind="decoder", step=step, output=0)


def wrong() -> ModelSubject:
    return ModelSubject.of(Decoder("future"), token_ids(), kind="decoder", step=step, output=0)


class Raising(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 1:
            raise RuntimeError("a batch of one")
        return x


def test_a_report_is_data_and_text(tmp_path: Path) -> None:
    report = check_model(wrong(), raises=False, select=["mask"])
    report.save(tmp_path / "report.json")
    held = json.loads((tmp_path / "report.json").read_text())
    assert not held["passed"]
    statuses = {outcome["id"]: outcome["status"] for outcome in held["outcomes"]}
    assert statuses["no-future-leakage"] == "failed"
    text = str(report)
    assert text.splitlines()[0] == report.summary()
    assert "blocks.1.attn parts first" in text
    assert max(map(len, text.splitlines())) <= 80


def test_failures_raise_once_with_the_report() -> None:
    with pytest.raises(attncheck.CheckFailure, match="no-future-leakage") as caught:
        check_model(wrong())
    assert isinstance(caught.value.finding, ModelReport)


def test_expected_failures_are_strict() -> None:
    expected = {"no-future-leakage": "sees all, on purpose"}
    report = check_model(wrong(), expected_failures=expected, raises=False)
    assert {o.status for o in report.outcomes if o.id in expected} == {"expected failure"}
    assert not check_model(right(), expected_failures=expected, raises=False).passed
    with pytest.raises(ValueError, match="no promise is called nonsense"):
        check_model(right(), expected_failures={"nonsense": ""})


def test_a_model_that_raises_is_told_apart() -> None:
    report = check_model(Raising(), torch.randn(2, 5, 4), raises=False)
    statuses = {outcome.id: outcome.status for outcome in report.outcomes}
    assert statuses["batch-invariant"] == "error"
    assert statuses["deterministic"] == "passed"
    assert "a batch of one" in str(report)


def test_every_promise_says_why_and_whence() -> None:
    for promise in PROMISES.values():
        assert promise.reason
        assert promise.source
        assert promise.id in promise.tags


@attncheck.parametrize_with_model_checks(
    [wrong],
    select=["causal", "state"],
    expected_failures={"no-future-leakage": "the causal mask of a layer is lost"},
)
def test_items_of_a_wrong_model(model: Any, check: Any) -> None:
    check(model)


def test_items_have_names_and_factories_are_called_once() -> None:
    calls = []

    def factory() -> ModelSubject:
        calls.append(1)
        return right()

    marked = attncheck.parametrize_with_model_checks([factory], select=["mask", "state"])
    assert [item.id for item in marked.args[1]] == [
        "factory-deterministic",
        "factory-dropout-off-in-eval",
        "factory-no-future-leakage",
        "factory-padding-invariant",
        "factory-window-respected",
        "factory-segments-isolated",
    ]
    for item in marked.args[1]:
        made, check = item.values
        with contextlib.suppress(pytest.skip.Exception):
            check(made)
    assert len(calls) == 1


def test_factories_make_models() -> None:
    marked = attncheck.parametrize_with_model_checks([dict], select=["state"])
    made, check = marked.args[1][0].values
    with pytest.raises(TypeError, match=r"made dict; expected a model"):
        check(made)
    for wrong in (dict, 3, None):
        with pytest.raises(TypeError, match=r"factories: is .*; expected a list of functions"):
            attncheck.parametrize_with_model_checks(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="factories: one is str; expected functions"):
        attncheck.parametrize_with_model_checks(["gpt2"])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"select": 3}, "select: 3 is int; expected ids or tags"),
        ({"select": ["mask", None]}, "select: None is NoneType"),
        ({"expected_failures": ["mask"]}, "expected_failures: is list; expected a mapping"),
    ],
)
def test_arguments_of_another_kind_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=f"^{words}"):
        check_model(Decoder(), token_ids(), **arguments)
    with pytest.raises(TypeError, match=f"^{words}"):
        attncheck.parametrize_with_model_checks([Decoder], **arguments)


def test_a_model_without_inputs_is_told_how_to_pass_some() -> None:
    message = r"inputs: missing; pass what Linear .* A factory returns \(model, inputs\), or "
    with pytest.raises(ValueError, match=message):
        check_model(nn.Linear(2, 2))
    decorator = attncheck.parametrize_with_model_checks([lambda: nn.Linear(2, 2)], select=["mask"])
    factory, check = decorator.args[1][0].values
    with pytest.raises(ValueError, match=message):
        check(factory)
