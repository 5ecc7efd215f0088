"""Text of findings: widths, escapes, and the form of the message."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from attncheck.attention import AttentionMaps, LayerAttention
from attncheck.checks import (
    Finding,
    Offender,
    Position,
    check_attention_close,
    check_causal,
    check_row_stochastic,
    render,
)
from attncheck.checks.text import clip, clip_start, columns_of, count, number, safe, token
from tests.checks.samples import causal_weights, random_weights

NASTY = [
    "<script>alert(1)</script>",
    "\x1b[31m\n\r\t",
    "\u9375" * 60,
    "e\u0301" * 90,
    "\ud800",
    "",
    "\u200b",
    "\u202e abc",
]


def test_numbers_keep_their_digits() -> None:
    assert number(0.5) == "0.5000"
    assert number(0.00099) == "9.9e-04"
    assert number(-2.25) == "-2.2500"
    assert number(1e9) == "1.0e+09"
    assert number(float("inf")) == "inf"
    assert number(12) == "12"
    assert count(9_999) == "9999"
    assert count(999_499) == "999k"
    assert count(999_500) == "1M"
    assert count(1_000_000) == "1M"


@given(st.text(), st.integers(4, 40))
@example("鍵鍵鍵鍵鍵", 7)
def test_clip_never_exceeds(text: str, columns: int) -> None:
    clipped = clip(text, columns)
    assert columns_of(clipped) <= columns
    assert clipped == text or clipped.endswith("...")
    if columns_of(text) <= columns:
        assert clipped == text


@given(st.text())
def test_safe_text_prints_on_one_line(text: str) -> None:
    assert safe(text).isprintable()
    assert len(safe(text).splitlines()) <= 1
    safe(text).encode()


def test_tokens() -> None:
    assert token("\n") == "'\\n'"
    assert token("x" * 40) == "'" + "x" * 13 + "...'"
    assert token(5) == "(token 5)"


def test_a_module_path_keeps_its_end() -> None:
    weights = random_weights(1, 1, 4, 4)
    layer = LayerAttention(weights, name="model.language_model.decoder.layers.31.self_attn")
    assert check_causal(layer).subject.endswith("(batch, head, query, key), ...layers.31.self_attn")
    assert clip_start("short.path", 24) == "short.path"
    assert clip_start("x" * 30, 24) == "..." + "x" * 21


def test_ids_read_as_ids() -> None:
    weights = causal_weights(1, 1, 4)
    weights[0, 0, 1, 3] = 0.5
    text = render(check_causal(weights, tokens=[101, 28, 7, 28]))
    assert "  worst  query 1 (token 28) -> key 3 (token 28)\n" in text


def test_long_places_are_never_cut() -> None:
    weights = random_weights(11, 3, 130, 130)
    named = AttentionMaps([LayerAttention(weights, index=31, heads=(50, 51, 52), call=12)])
    weights = weights.clone()
    weights[10, 2, 121] *= 1.00234
    for finding in (
        check_causal(named),
        check_row_stochastic(weights),
        check_attention_close(
            named, AttentionMaps([LayerAttention(weights.flip(-1), heads=(50, 51, 52))])
        ),
    ):
        lines = render(finding).splitlines()
        at = finding.offenders[0].at
        place = [one for one in (at.batch, at.query, at.key) if one is not None]
        row = next(line for line in lines if line.startswith(f"  {finding.offenders[0].head}"))
        long = f"at batch {at.batch}, query {at.query}"
        assert long in row or f"at [{','.join(map(str, place))}]" in row
        assert not any(line.endswith("...") for line in lines)
    assert "worst at [batch,query]" in render(check_row_stochastic(weights))


@given(name=st.text(), tokens=st.lists(st.text(), min_size=6, max_size=6), batch=st.integers(1, 2))
@example(name=NASTY[0], tokens=NASTY[:6], batch=1)
@example(name=NASTY[1], tokens=NASTY[2:], batch=2)
def test_messages_stay_within_72_columns(name: str, tokens: list[str], batch: int) -> None:
    weights = random_weights(batch, 7, 6, 6)
    text = render(check_causal(weights, tokens=tokens, name=name))
    lines = text.split("\n")
    assert all(columns_of(line) <= 72 for line in lines)
    assert all(line.isprintable() for line in lines)
    assert len(lines) <= 15
    assert "+2 more" in text


@given(
    st.builds(
        Finding,
        check=st.just("x"),
        passed=st.just(False),
        verdict=st.text(),
        name=st.text(),
        subject=st.text(max_size=300),
        rule=st.text(max_size=300),
        columns=st.just(("a", "b")),
        offenders=st.lists(
            st.builds(
                Offender,
                head=st.text(),
                values=st.tuples(st.floats() | st.text(max_size=90)),
                worst=st.floats() | st.text(),
                at=st.builds(Position, query=st.none() | st.integers(0, 10**9)),
            ),
            max_size=7,
        ).map(tuple),
        hints=st.lists(st.text(max_size=200), max_size=2).map(tuple),
    )
)
def test_any_finding_renders_within_72_columns(finding: Finding) -> None:
    lines = render(finding).split("\n")
    assert all(columns_of(line) <= 72 for line in lines)
    assert all(line.isprintable() for line in lines)
    json.dumps(finding.to_dict(), allow_nan=False)


def test_verdicts_fit_the_summary_line() -> None:
    for n in (2, 32, 200):
        verdict = check_causal(random_weights(2, 12, n, n)).verdict
        assert verdict.startswith("not causal: ")
        assert len(verdict) <= 48
    assert verdict == "not causal: 478k of 478k future weights > 1e-05"
    verdict = check_causal(random_weights(4, 12, 300, 300)).verdict
    assert verdict == "not causal: 2.15M of 2.15M future > 1e-05"


def test_the_table_is_worst_first_and_short() -> None:
    finding = check_causal(random_weights(1, 9, 6, 6))
    lines = render(finding).splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("  head"))
    rows = lines[start + 1 : start + 6]
    assert [row.split()[0] for row in rows] == [one.head for one in finding.offenders[:5]]
    assert lines[start + 6] == "  +4 more"
    assert lines[start + 7] == "  0 of 9 heads pass"
    assert len({row.index(" at ") for row in rows}) == 1


def test_a_finding_that_passed_renders_too() -> None:
    assert render(check_causal(causal_weights())).splitlines() == [
        "causal: 224 future weights <= 1e-05",
        "",
        "  attn   f32[2,4,8,8] (batch, head, query, key)",
        "  rule   attn[..., query, key] <= 1e-05 where key > query",
        "  4 of 4 heads pass",
    ]


def test_subjects_of_every_rank() -> None:
    weights = random_weights(2, 3, 4, 4)
    for ndim, text in ((2, "f32[4,4] (query, key)"), (3, "f32[3,4,4] (head, query, key)")):
        given_weights = weights[0, 0] if ndim == 2 else weights[0]
        assert check_causal(given_weights).subject == text
        assert check_causal(given_weights.numpy()).subject == text
    assert check_causal(weights.bfloat16()).subject == "bf16[2,3,4,4] (batch, head, query, key)"
    assert check_causal([weights, weights]).subject.startswith("2 layers of f32[2,3,4,4] ")
    assert check_causal(torch.stack([weights, weights])).n_total == 6


def test_finding_as_json_has_no_nan_and_no_arrays() -> None:
    weights = causal_weights()
    weights[0, 1, 2, 5] = float("nan")
    described = check_causal(weights).to_dict()
    assert "evidence" not in described
    assert json.loads(json.dumps(described, allow_nan=False))["offenders"][0]["worst"] == "NaN"


def test_name_must_be_text() -> None:
    with pytest.raises(TypeError, match="name: got int"):
        check_causal(causal_weights(), name=3)  # type: ignore[arg-type]
    assert "  blocks.3  f32" in render(check_causal(causal_weights(), name="blocks.3"))
    finding = check_causal(causal_weights())
    assert "only 0" not in render(replace(finding, offenders=()))
