"""The sweep behind the published table: it goes on where it ended, and counts what was run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attncheck.conformance import PROPERTIES
from attncheck.conformance.design import Plan
from attncheck.conformance.subject import Subject
from benchmarks import _conformance_alarms as correct
from benchmarks import conformance as sweep
from benchmarks._conformance_joint import probed, run_jointly, unit_key
from benchmarks._conformance_page import tables
from benchmarks.conformance import Ledger, alarms, kill_all, kill_jointly, verdict
from tests.conformance.implementations import IMPLEMENTATIONS
from tests.conformance.mutants import MUTANTS


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for name in ("attncheck/conformance/case.py", "tests/conformance/implementations.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("first")
    return tmp_path


def refuse() -> None:
    raise AssertionError("was run again")


def test_a_finished_run_is_not_run_again(sources: Path) -> None:
    assert Ledger(1, sources).run("correct-a/b c", lambda: {"inputs": 3}) == {"inputs": 3}
    later = Ledger(0, sources)  # no time left
    assert later.run("correct-a/b c", refuse) == {"inputs": 3}
    assert later.run("another", refuse) is None
    assert later.missing == 1


def test_false_and_empty_results_count_as_finished(sources: Path) -> None:
    ledger = Ledger(1, sources)
    for key, result in (("survivor", ""), ("passes", False), ("none", [])):
        assert ledger.run(key, type(result)) == result
        assert Ledger(0, sources).run(key, refuse) == result


def test_a_run_that_is_cut_off_leaves_nothing(sources: Path) -> None:
    ledger = Ledger(1, sources)
    with pytest.raises(KeyboardInterrupt):
        ledger.run("cut", _interrupt)
    assert list(ledger.folder.iterdir()) == []
    assert ledger.run("cut", lambda: 7) == 7


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_another_battery_starts_anew_but_not_for_words(sources: Path) -> None:
    first = Ledger(1, sources).folder
    (sources / "attncheck/conformance/report.py").write_text("words of the verdict")
    (sources / "tests/conformance/test_report.py").write_text("a test")
    assert Ledger(1, sources).folder == first
    (sources / "attncheck/conformance/case.py").write_text("second")
    assert Ledger(1, sources).folder != first


def test_one_seed_of_everything_comes_before_the_second(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, int]] = []

    def one(name: str, effort: str, seed: int) -> dict[str, Any]:
        ran.append((name, seed))
        false = ["cried wolf"] if (name, seed) == ("NumPy", 1) else []
        return {"inputs": 5, "false alarms": false}

    names = ("einsum", "NumPy")
    monkeypatch.setattr(correct, "CORRECT", {name: IMPLEMENTATIONS[name] for name in names})
    monkeypatch.setattr(correct, "ALONE", names)
    monkeypatch.setattr(correct, "one_alarm", one)
    monkeypatch.setattr(correct, "jointly", lambda *_: {})
    monkeypatch.setattr(correct, "_extension_alarms", lambda *_: [])
    monkeypatch.setattr(correct, "SLOW", ())
    for part in ((0, 2), (1, 2)):
        alarms(Ledger(1, sources), {"default": 2}, part)
    assert [seed for _, seed in ran[:1] + ran[2:3]] == [0, 0]
    rows = alarms(Ledger(0, sources), {"default": 2, "quick": 1}, (0, 1))
    assert len(ran) == 4
    assert rows["NumPy"]["seeds"] == {"default": 2}
    assert rows["NumPy"]["inputs"] == 10
    assert rows["NumPy"]["false alarms"] == ["cried wolf"]
    assert rows["einsum"]["false alarms"] == []
    assert verdict({"alarms": rows}, 0) == 1
    assert verdict({"alarms": {"einsum": rows["einsum"]}}, 2) == 3
    assert verdict({"alarms": {"einsum": rows["einsum"]}}, 0) == 0


def test_a_joint_run_gives_each_its_own_verdict() -> None:
    mutant = MUTANTS["scale-ignored"]
    subjects = {
        "right": Subject(IMPLEMENTATIONS["einsum"].function),
        "wrong": Subject(mutant.make()),
    }
    for subject in subjects.values():
        subject.dtypes = ("float32",)
    found = run_jointly(PROPERTIES["scale-given"], Plan("quick"), subjects)
    assert not found["right"]["failure"]
    assert found["right"]["inputs"] > found["wrong"]["inputs"] > 0
    assert "output is wrong" in found["wrong"]["failure"]
    assert all(subject.references is None for subject in subjects.values())


def test_a_unit_is_known_by_its_inputs_and_by_who_is_tried() -> None:
    some = {name: IMPLEMENTATIONS[name] for name in ("einsum", "NumPy")}
    _, plan = probed(some, "quick", 0)
    entry = PROPERTIES["scale-zero"]
    key = unit_key(entry, plan, some)
    assert key == unit_key(entry, plan, some)
    others = {"einsum": some["einsum"]}
    assert key != unit_key(entry, plan, others)
    assert key != unit_key(entry, Plan("quick", 1), some)


def test_failures_do_not_outlive_the_battery(sources: Path) -> None:
    ledger = Ledger(1, sources)
    for key, failure in (("good", ""), ("bad", "wrong")):
        ledger.run(key, lambda f=failure: {"a": {"failure": f}}, lasting=True,
                   keep=correct._all_pass)  # fmt: skip
    assert [path.stem for path in ledger.lasting.iterdir()] == ["good"]
    assert ledger.run("bad", refuse, lasting=True)["a"]["failure"] == "wrong"
    (sources / "attncheck/conformance/case.py").write_text("second")
    assert Ledger(0, sources).run("bad", refuse, lasting=True) is None
    assert Ledger(0, sources).run("good", refuse, lasting=True) is not None


def test_mutants_not_tried_are_not_counted_as_killed(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ["scale-missing", "scale-ignored", "scale-absolute"]
    found = {("scale-missing", 0): "scale-default", ("scale-missing", 1): "scale-default",
             ("scale-ignored", 0): "scale-given", ("scale-ignored", 1): ""}  # fmt: skip

    def some(_ledger: Ledger, mutants: Any, _effort: str, seed: int, _share: Any) -> dict[str, str]:
        return {m.id: found[m.id, seed] for m in mutants if (m.id, seed) in found}

    monkeypatch.setattr(sweep, "WRONG", {})
    monkeypatch.setattr(sweep, "kill_jointly", some)
    monkeypatch.setattr(sweep, "MUTANTS", {id: MUTANTS[id] for id in chosen})
    row = kill_all(Ledger(0, sources), "default", 2)["scale"]
    assert row == {
        "planted": 3, "tried": 2, "killed": 1, "runs": 4, "survivors": ["scale-ignored, seed 1"]
    }  # fmt: skip
    assert verdict({"mutants": {"scale": row}}, 0) == 1


def test_mutants_die_together_as_they_die_alone(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [PROPERTIES[id] for id in ("scale-default", "scale-given", "state-inputs-untouched")]
    monkeypatch.setattr(sweep, "select_properties", lambda *_: few)
    ids = ("scale-missing", "scale-ignored", "state-scales-in-place", "dropout-ignored")
    mutants = [MUTANTS[id] for id in ids]
    ledger = Ledger(1, sources)
    found = kill_jointly(ledger, mutants, "quick", 0, (0, 1))
    assert found["scale-missing"] == "scale-default"
    assert found["scale-ignored"] == "scale-given"
    assert found["state-scales-in-place"]
    assert found["dropout-ignored"] == ""
    ledger.end = 0.0
    assert kill_jointly(ledger, mutants, "quick", 0, (0, 1)) == found
    assert kill_jointly(ledger, mutants, "quick", 1, (0, 1)) == {}


def test_a_late_battery_fails() -> None:
    timed = {"quick, float32": {"wall seconds": 11.0, "limit": 10.0}}
    assert verdict({"times": timed}, 0) == 1
    timed["quick, float32"]["wall seconds"] = 9.0
    assert verdict({"times": timed}, 0) == 0


def test_the_published_table_is_the_measured_one() -> None:
    root = Path(__file__).parents[2]
    data = json.loads((root / "benchmarks/results/conformance.json").read_text())
    assert tables(data) in (root / "docs/conformance.md").read_text()
    assert not any(row["false alarms"] for row in data["alarms"].values())
    assert not any(row["survivors"] for row in data["mutants"].values())
