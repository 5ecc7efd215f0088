"""The published tables are those of the result files."""

from __future__ import annotations

import re

import pytest

from benchmarks import _page


def test_the_page_is_what_was_measured() -> None:
    written = _page.PAGE.read_text(encoding="utf-8")
    assert written == _page.page(), "run python -m benchmarks._page"


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
