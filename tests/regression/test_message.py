"""The words of a failure."""

from __future__ import annotations

import math

import pytest

from attncheck.regression import HeadChange, Judgement, MeasureMove, Place, change_message
from attncheck.regression.changes import Drift
from attncheck.regression.environment import Environment
from attncheck.regression.message import accept_command, headline, missing_message
from attncheck.regression.record import HeadRecord
from attncheck.regression.tolerance import Limit

HERE = Environment("cpu", "float32", (("torch", "2.13.0"),))
PLACE = Place(
    "tests/__heads__/test_gpt2/test_heads.json", accept_command("tests/test_gpt2.py::test_heads")
)

EXACT = """\
2 of 144 heads changed: L5H1, L7H10

  head   measure     baseline       now   change  allowed
  L5H1   pattern    induction      none
         induction      0.912     0.341   -0.571    0.050
         entropy        0.481     1.932   +1.451    0.100  nats
  L7H10  sink mass      0.803     0.655   -0.148    0.100
  142 of 144 heads match

  baseline  tests/__heads__/test_gpt2/test_heads.json
  recorded  cpu float32 torch 2.13.0;  now the same
  accept    pytest tests/test_gpt2.py::test_heads --attncheck-update"""


def move(measure: str, before: float, after: float, allowed: float) -> MeasureMove:
    return MeasureMove(measure, before, after, Limit(1e-5, allowed, 1.0))


L5H1 = HeadChange(
    "L5H1",
    (
        move("entropy", 0.481, 1.932, 0.1),
        move("effective_keys", 1.6, 6.9, 0.1),
        move("first_token", 0.1, 0.72, 0.05),
        move("induction", 0.912, 0.341, 0.05),
        move("max_weight", 0.9, 0.87, 0.05),
    ),
    "induction",
    "none",
)
L7H10 = HeadChange("L7H10", (move("sink_mass", 0.803, 0.655, 0.1),), "first_token", "first_token")


def judgement(
    changed: tuple[HeadChange, ...], total: int = 144, drift: Drift | None = None, **more: object
) -> Judgement:
    empty = Drift(0, total - len(changed), "", 0.0, 0.0, {}, ())
    fields: dict[str, object] = {"missing": (), "extra": (), "permuted": (), **more}
    return Judgement(total, changed, (), drift=drift or empty, **fields)  # type: ignore[arg-type]


def test_the_failure_word_for_word() -> None:
    assert change_message(judgement((L5H1, L7H10)), PLACE, HERE, HERE) == EXACT


def test_what_else_it_says() -> None:
    gpu = Environment("cuda-9.0", "bfloat16", (("torch", "2.14.0"),))
    place = Place(PLACE.file, accept_command("t.py::test_x[a b]"), "no variant of 2 files")
    drift = Drift(130, 142, "L3H4", 0.0123, 0.004, {}, ())
    swap = ((("L5H1", "L5H3"), ("L5H3", "L5H1")),)
    text = change_message(
        judgement((L5H1, L7H10), drift=drift, permuted=swap), place, HERE, gpu, other_input=True
    )
    assert "  142 of 144 heads match, 130 of them drifted by up to 0.012\n" in text
    assert "  L5H1 and L5H3 swapped\n" in text
    assert (
        "  recorded  cpu float32 torch 2.13.0 (no variant of 2 files);  "
        "now cuda-9.0 bfloat16 torch 2.14.0\n"
    ) in text
    assert "  input     not the one that was recorded\n" in text
    assert text.endswith("  accept    pytest 't.py::test_x[a b]' --attncheck-update")


def test_a_longer_permutation() -> None:
    cycle = ((("L0H0", "L0H1"), ("L0H1", "L0H2"), ("L0H2", "L0H0")),)
    text = change_message(judgement((L5H1,), permuted=cycle), PLACE, HERE, HERE)
    assert "permuted: L0H0 is now L0H1, L0H1 is now L0H2, L0H2 is now L0H0" in text


@pytest.mark.parametrize("n_heads", [1, 7, 140])
def test_many_heads_fit(n_heads: int) -> None:
    long = (
        move("duplicate_token", 0.123, 0.456, 0.015),
        move("mean_distance", 123.4, 5432.1, 1.5),
        MeasureMove("by_key", math.nan, math.nan, Limit(0, 0.015, 1), 0.5),
    )
    changed = tuple(
        HeadChange(f"L{number // 12}H{number % 12}", long, "duplicate_token", "heterogeneous")
        for number in range(n_heads)
    )
    text = change_message(judgement(changed), PLACE, HERE, HERE)
    lines = text.splitlines()
    assert len(lines[0]) <= 48
    assert all(len(line) <= 72 for line in lines), text
    assert len(lines) <= 14
    shown = {line.split()[0] for line in lines[3:8] if line.startswith("  L")}
    if n_heads > len(shown):
        assert f"  +{n_heads - len(shown)} more" in lines


def test_values_that_came_or_went() -> None:
    gone = HeadChange("L0H0", (move("induction", 0.9, math.nan, 0.015),), "induction", "uniform")
    text = change_message(judgement((gone,)), PLACE, HERE, HERE)
    assert [line.split() for line in text.splitlines() if "induction  " in line][-1] == [
        "induction",
        "0.900",
        "none",
        "0.015",
    ]


def test_heads_that_are_not_there() -> None:
    found = judgement((), total=4, missing=("L1H0", "L1H1"), extra=("L2H0",))
    assert headline(found) == "2 of 4 heads are gone"
    text = change_message(found, PLACE, HERE, HERE)
    assert "  gone  L1H0, L1H1\n  not in it  L2H0\n  2 of 4 heads match" in text
    assert headline(judgement((), extra=("L2H0",))) == "1 head is not in the baseline"


def test_a_missing_baseline_shows_what_it_would_hold() -> None:
    heads = [
        HeadRecord(f"L0H{number}", "first_token", {"entropy": 0.5, "max_weight": 0.8}, {})
        for number in range(7)
    ]
    assert missing_message(heads, PLACE, HERE) == (
        "no baseline: 7 heads not compared\n\n"
        "  head  label        entropy  max weight\n"
        + "".join(f"  L0H{n}  first token    0.500       0.800\n" for n in range(5))
        + "  +2 more\n\n"
        "  missing   tests/__heads__/test_gpt2/test_heads.json\n"
        "  now       cpu float32 torch 2.13.0\n"
        "  accept    pytest tests/test_gpt2.py::test_heads --attncheck-update"
    )


def test_small_numbers_do_not_read_as_zero() -> None:
    leak = HeadChange("L0H0", (move("future_mass", 0.0, 2e-5, 1e-5),), "uniform", "uniform")
    text = change_message(judgement((leak,)), PLACE, HERE, HERE)
    assert "future mass     0.000     2e-05   +2e-05    1e-05" in text
