"""The battery as a whole: verdicts, capabilities, reports, scripts, repeatability."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attncheck
from attncheck.conformance import Capabilities, check_attention
from attncheck.conformance.case import Case
from attncheck.conformance.design import Plan
from attncheck.conformance.diagnose import MISTAKES, likely_mistake
from attncheck.conformance.oracle import attend
from attncheck.conformance.probe import probe
from attncheck.conformance.registry import PROPERTIES
from attncheck.conformance.reproduce import oracle_script
from attncheck.conformance.run import run_property
from attncheck.conformance.subject import Subject, Violation
from tests.conformance.implementations import IMPLEMENTATIONS, einsum_attention
from tests.conformance.mutants import MUTANTS

FAST = ("torch default", "torch math", "einsum with weights", "tiled online softmax", "NumPy")
"""Others, and more seeds, are run by the benchmark."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FAST)
def test_correct_implementations_pass(name: str) -> None:
    entry = IMPLEMENTATIONS[name]
    report = check_attention(
        entry.function,
        returns_weights=entry.returns_weights,
        capabilities=entry.capabilities,
        effort="quick",
        seed=len(name),
        select=["scale", "mask", "causal", "gqa", "gradient", "state", "softmax", "weights"],
        expected_failures=_selected(entry.known),
        raises=False,
    )
    assert report.passed, str(report)


def _selected(known: Mapping[str, str]) -> dict[str, str]:
    return {id: reason for id, reason in known.items() if PROPERTIES[id].family != "shape"}


def test_real_bugs_of_torch_are_real() -> None:
    """The scripts of docs/conformance.md, with torch alone."""
    q, k, v = torch.randn(3, 1, 1, 4, 8)
    future = torch.ones(4, 4).triu(1).bool()
    for scale in (0.0, -1.0):
        scores = (q @ k.mT * scale).masked_fill(future, -torch.inf)
        want = scores.softmax(-1) @ v
        got = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        assert got.isnan().any()
        assert not want.isnan().any()


def test_the_same_seed_gives_the_same_verdict() -> None:
    wrong = MUTANTS["scale-missing"].make()
    reports = [
        check_attention(wrong, effort="quick", select=["scale", "design-small"], raises=False)
        for _ in range(2)
    ]
    first, second = (
        [(f.id, f.input, f.evidence, f.script) for f in report.failures] for report in reports
    )
    assert first == second
    assert first


def test_one_error_lists_all_failures_worst_first() -> None:
    wrong = MUTANTS["causal-bottom-right"].make()
    with pytest.raises(attncheck.CheckFailure) as caught:
        check_attention(wrong, effort="quick", select=["causal", "scale"])
    report = caught.value.finding
    severities = [failure.severity for failure in report.failures]
    assert severities == sorted(severities, reverse=True)
    assert {"causal-rectangular", "causal-no-leak"} <= {failure.id for failure in report.failures}
    for failure in report.failures:
        assert failure.id in str(caught.value)


def test_the_report_is_json(tmp_path: Path) -> None:
    report = check_attention(
        MUTANTS["mask-empty-row-nan"].make(), effort="quick", select=["mask"], raises=False
    )
    report.save(tmp_path / "report.json")
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["passed"] is False
    failed = [outcome for outcome in data["outcomes"] if outcome["status"] == "failed"]
    assert any(outcome["failure"]["severity"] == "inf" for outcome in failed)
    assert failed[0]["failure"]["case"]["mask"] == "bool"


@pytest.mark.parametrize(
    ("mutant", "select", "words"),
    [
        ("scale-one-over-d", "scale-default", "1/d"),
        ("scale-ignored", "scale-given", "given scale ignored"),
        ("causal-bottom-right", "causal-rectangular", "bottom-right"),
        ("causal-strict", "causal-square", "hides the diagonal"),
        ("gqa-repeat", "gqa-ratios", "repeat instead of repeat_interleave"),
        ("mask-inverted", "mask-bool", "inverted"),
        ("mask-first-head", "mask-bool", "first head"),
        ("softmax-over-queries", "scale-default", "over queries"),
        ("mask-empty-row-mean", "mask-empty-rows-bool", "finite number"),
        ("gradient-key-sign", "gradient-values", "wrong sign"),
        ("gradient-weights-detached", "gradient-values", "cut off"),
    ],
)
def test_the_mechanism_is_named(mutant: str, select: str, words: str) -> None:
    report = check_attention(
        MUTANTS[mutant].make(), effort="default", select=[select], raises=False
    )
    assert words in report.failures[0].mechanism, str(report)


def test_a_right_answer_matches_no_mistake() -> None:
    inputs = Case(batch=2, kv_heads=2, n_query=4, n_key=6, causal=True).build()
    violation = Violation("none", inputs=inputs, got=attend(inputs)[0].float())
    assert likely_mistake([violation]) == ""
    assert len(MISTAKES) > 40


SCRIPTED = {
    "scale-missing": "scale-default",
    "mask-bool-added": "mask-bool",
    "gqa-first-head": "gqa-ratios",
    "causal-ignored": "causal-no-leak",
    "gradient-query-unscaled": "gradient-values",
    "weights-are-scores": "weights-rows",
    "dropout-on-output": "dropout-not-on-output",
    "dropout-fixed-seed": "dropout-seeded",
    "state-scales-in-place": "state-inputs-untouched",
    "state-returns-value": "state-output-own-memory",
    "state-reseeds": "state-globals",
    "layout-view-of-storage": "layout-strides",
    "mask-finite-fill": "mask-empty-rows-bool",
    "softmax-one": "relation-logit-shift",
}


@pytest.mark.parametrize(("mutant", "select"), SCRIPTED.items())
def test_scripts_reproduce(mutant: str, select: str) -> None:
    planted = MUTANTS[mutant]
    subject = Subject(planted.make(), planted.returns_weights)
    plan, _ = probe(subject, Plan())
    subject.refused = plan.refused
    failure = run_property(PROPERTIES[select], subject, plan).failure
    assert failure is not None, mutant
    assert len(failure.script.splitlines()) < 15, failure.script
    assert "attncheck" not in failure.script
    assert run_script(failure.script, planted.make()) or not failure.repeats, failure.script
    assert not run_script(failure.script, _right(planted.returns_weights)), failure.script


def _right(returns_weights: bool) -> Any:
    name = "einsum with weights" if returns_weights else "einsum"
    return IMPLEMENTATIONS[name].function


def run_script(script: str, attention: Any) -> bool:
    """Run a script with another function; say whether it shows a failure."""
    lines = [line for line in script.splitlines() if not line.startswith(("from ", "attention ="))]
    scope: dict[str, Any] = {"attention": attention}
    with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            exec("\n".join(lines), scope)
        except (AssertionError, RuntimeError):
            return True
    words = printed.getvalue().split()
    if lines[-1].startswith("print((got - want)"):
        return not float(words[0].strip("tensor(),")) < 1e-3
    return False


def test_a_script_computes_what_the_oracle_computes() -> None:
    case = Case(
        batch=2, kv_heads=2, ratio=2, n_query=3, n_key=5, mask="bool", mask_shape="b11k",
        pattern="empty rows", scale="given", layout="heads last", dtype="float64",
    ).legal()  # fmt: skip
    script = oracle_script(case, Subject(einsum_attention))
    scope: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(script, scope)
    torch.testing.assert_close(scope["want"], attend(case.build())[0])
    assert "from tests.conformance.implementations import einsum_attention" in script


def narrow(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None) -> Tensor:
    """Supports float32 and boolean masks, and says so."""
    if query.dtype != torch.float32:
        raise TypeError("float32 only")
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        raise NotImplementedError("boolean masks only")
    return einsum_attention(query, key, value, attn_mask)  # type: ignore[no-any-return]


def test_refusals_are_listed_and_do_not_fail() -> None:
    report = check_attention(narrow, effort="quick", select=["scale", "mask", "gqa"])
    assert report.passed
    assert report.unsupported["NotImplementedError: boolean masks only"] >= 1
    statuses = {outcome.id: outcome.status for outcome in report.outcomes}
    assert statuses["mask-float"] == "not supported"
    assert statuses["mask-bool"] == "passed"


def test_a_broken_promise_fails() -> None:
    declared = Capabilities(mask="float")
    report = check_attention(
        narrow, effort="quick", select=["mask-float"], capabilities=declared, raises=False
    )
    assert "declares as supported" in report.failures[0].violated


@pytest.mark.parametrize(
    ("declared", "refuses", "status"),
    [(None, True, "not supported"), (False, True, "not supported"), (True, True, "failed"),
     (None, False, "failed"), (False, False, "not supported"), (True, False, "failed")],
)  # fmt: skip
def test_dropout_that_is_declared_or_not(declared: bool | None, refuses: bool, status: str) -> None:
    def never_drops(query: Tensor, key: Tensor, value: Tensor, **flags: Any) -> Tensor:
        if flags.pop("dropout_p", 0) and refuses:
            raise NotImplementedError("no dropout")
        return F.scaled_dot_product_attention(query, key, value, **flags)

    report = check_attention(
        never_drops,
        effort="quick",
        select=["dropout-weights"],
        capabilities=Capabilities(dropout=declared),
        raises=False,
    )
    assert [outcome.status for outcome in report.outcomes] == [status]


def test_a_crash_is_a_failure() -> None:
    def crashes(query: Tensor, key: Tensor, value: Tensor, **flags: Any) -> Tensor:
        if query.shape[-2] == 17:
            raise IndexError("tuple index out of range")
        return F.scaled_dot_product_attention(query, key, value, **flags)

    report = check_attention(crashes, effort="quick", select=["lengths-blocks"], raises=False)
    assert "IndexError" in report.failures[0].violated
    assert report.failures[0].case["n_query"] == 17


@pytest.mark.parametrize(
    "id", ["gradient-direction", "gradient-accumulation", "accuracy-bias-gradient", "design-small"]
)
def test_an_output_of_the_wrong_shape_is_a_failure(id: str) -> None:
    def cuts(query: Tensor, key: Tensor, value: Tensor, **flags: Any) -> Tensor:
        output = F.scaled_dot_product_attention(query, key, value, **flags)
        return output[..., :1] if query.shape[-1] > 1 else output

    report = check_attention(cuts, effort="quick", select=[id], raises=False)
    assert [failure.id for failure in report.failures] == ["plain-input"]

    def grows(query: Tensor, key: Tensor, value: Tensor, **flags: Any) -> Tensor:
        output = F.scaled_dot_product_attention(query, key, value, **flags)
        return output if query.shape[-2] == 4 else torch.cat([output, output[..., :1]], -1)

    report = check_attention(grows, effort="quick", select=[id], raises=False)
    assert [failure.id for failure in report.failures] == [id]
    assert "shape of the output" in report.failures[0].violated


def test_what_can_not_be_judged_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(subject: Any, case: Any) -> None:
        raise RuntimeError("sizes do not match")

    entry = replace(PROPERTIES["scale-given"], examine=breaks)
    outcome = run_property(entry, Subject(F.scaled_dot_product_attention), Plan("quick"))
    assert outcome.failure is not None
    assert outcome.failure.violated == (
        "what it returned could not be judged (RuntimeError: sizes do not match)"
    )


def test_refusing_everything_is_a_failure() -> None:
    def never(*args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError("later")

    report = check_attention(never, effort="quick", raises=False)
    assert [failure.id for failure in report.failures] == ["plain-input"]


def test_expected_failures_are_strict() -> None:
    report = check_attention(
        F.scaled_dot_product_attention,
        effort="quick",
        select=["scale-zero-causal", "scale-zero"],
        expected_failures={"scale-zero-causal": "real", "scale-zero": "not at all"},
        raises=False,
    )
    statuses = {outcome.id: outcome.status for outcome in report.outcomes}
    assert statuses == {"scale-zero-causal": "expected failure", "scale-zero": "unexpected pass"}
    assert not report.passed
    assert "expected to fail (not at all), but passes" in str(report)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="effort"):
        check_attention(einsum_attention, effort="much")
    with pytest.raises(ValueError, match="nothing is called scael"):
        check_attention(einsum_attention, select=["scael"])
    with pytest.raises(ValueError, match="expected_failures"):
        check_attention(einsum_attention, expected_failures={"nonsense": "x"})
    with pytest.raises(ValueError, match="extension"):
        check_attention(einsum_attention, extension="nonsense")
    with pytest.raises(ValueError, match="mask"):
        Capabilities(mask="boolean")


def test_state_kept_between_calls_is_told() -> None:
    report = check_attention(
        MUTANTS["state-every-50th-call"].make(), effort="quick", select=["mask-bool"], raises=False
    )
    assert report.failures
    assert not report.failures[0].repeats
    assert "state is kept between calls" in str(report)


def test_float32_arithmetic_for_float64_is_one_failure() -> None:
    def float32_only(q: Tensor, k: Tensor, v: Tensor, **flags: Any) -> Tensor:
        mask = flags.pop("attn_mask", None)
        mask = mask.float() if mask is not None and mask.dtype == torch.float64 else mask
        if q.dtype == torch.float64:
            return einsum_attention(q.float(), k.float(), v.float(), mask, **flags).double()  # type: ignore[no-any-return]
        return einsum_attention(q, k, v, mask, **flags)  # type: ignore[no-any-return]

    report = check_attention(
        float32_only, effort="quick", select=["scale", "softmax"], raises=False
    )
    assert [failure.id for failure in report.failures] == ["accuracy-float64"]


def test_threads_are_left_as_they_were() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        check_attention(einsum_attention, effort="quick", select=["scale-default"])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"select": 3}, "select: 3 is int; expected ids, families or tags"),
        ({"select": [1]}, "select: 1 is int"),
        ({"expected_failures": ["scale"]}, "expected_failures: is list; expected a mapping"),
        ({"capabilities": {"gqa": False}}, "capabilities: is dict; expected attncheck.Capab"),
        ({"capabilities": ()}, "capabilities: is tuple"),
    ],
)
def test_arguments_of_another_kind_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=f"^{words}"):
        check_attention(einsum_attention, effort="quick", **arguments)
    with pytest.raises(TypeError, match=f"^{words}"):
        attncheck.parametrize_with_checks([einsum_attention], **arguments)


def test_lists_that_are_none_are_named() -> None:
    with pytest.raises(TypeError, match="functions: expected a list of callables, got int"):
        attncheck.parametrize_with_checks(3)  # type: ignore[arg-type]
    for arguments in ({"dtypes": "float32"}, {"dtypes": 3}, {"ranks": 4}):
        with pytest.raises(TypeError, match=r"^(dtypes|ranks): expected a list, got"):
            Capabilities(**arguments)  # type: ignore[arg-type]
