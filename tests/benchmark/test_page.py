"""The published tables are those of the result files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from attncheck.benchmark import PLAIN
from benchmarks import _measure, _page


def test_the_page_is_what_was_measured() -> None:
    written = _page.PAGE.read_text(encoding="utf-8")
    assert written == _page.page(), "run make page (python -m benchmarks._page)"


def test_what_writes_a_result_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{_page.BEGIN}\nold\n{_page.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(_page, "PAGE", page)
    monkeypatch.setattr(_measure, "RESULTS", tmp_path)
    found = {"ratio": 1.07, "peak bytes": {PLAIN: 0, "profile": 0}}
    _measure.write_results("profile_without_matrix_model", {"lengths": {"2048": found}})
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "n = 2048 | 1.2 x | 1.07 x | met |" in text
    assert "old" not in text


def test_its_pictures_exist() -> None:
    names = re.findall(r"\]\((img/[^)]+)\)", _page.PAGE.read_text(encoding="utf-8"))
    assert names
    for name in names:
        assert (_page.PAGE.parent / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("measured", "shown"),
    [(1.2, ("1.20 x", "met")), (1.21, ("1.21 x", "**missed**")), (None, ("not measured", "open"))],
)
def test_a_target_is_met_up_to_its_limit(measured: float | None, shown: tuple[str, str]) -> None:
    assert _page.verdict(measured, 1.2) == shown


def test_what_is_left_out_and_what_ran_on_a_gpu_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_measure, "RESULTS", tmp_path)
    machine = {"cpu": "C", "gpu": "G", "torch_threads": 2, "versions": {"torch": "9.9"}}
    row = {"way": PLAIN, "length": 64, "seconds": 0.5, "ratio": 1.0, "peak_bytes": None}
    out = {"way": "capture", "length": 128, "reason": "needs about 9 GiB"}
    common = {"machine": machine, "device": "cuda", "rounds": 7}
    results = {
        "extraction_cuda": {**common, "models": {"gpt2": [row]}, "left_out": {"gpt2": [out]}},
        "column_sums_cuda": {**common, "lengths": {"64": {"ways": {"dense": {"ratio": 2.5}}}}},
    }
    for name, held in results.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(held), encoding="utf-8")
    text = _page.text()
    assert "### GPT-2 small's shape, G\n\nTime by the plain forward" in text
    assert f"| {PLAIN} | 500 ms, 1.00 x |" in text
    assert "From n = 128, capture: needs about 9 GiB." in text
    assert "### Column sums of one layer, G" in text
    assert "| dense | 2.50 x |" in text
    assert text.count("C, 2 threads, torch 9.9; medians of 7 interleaved rounds.") == 2
