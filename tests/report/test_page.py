"""The page as text: whole, escaped, of one piece, and readable before any script runs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from attncheck import profile_attention
from attncheck.checks import check_causal
from attncheck.report import Report, describe_failure, describe_model, render_page, write_page
from tests.report.samples import HOSTILE, entry_of, maps_of, report_of


class Reader(HTMLParser):
    """Tags with their attributes, and the text of each element."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"<{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.append((self._open[-1], data))

    def close(self) -> None:
        super().close()
        assert self._open == []


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


def data_of(page: str) -> Any:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def hostile_report() -> Report:
    n = len(HOSTILE)
    maps = maps_of(1, 2, n)
    for layer in maps.layers:
        object.__setattr__(layer, "name", HOSTILE[1])
    maps.tokens = (HOSTILE,)
    weights = torch.eye(n).expand(1, 2, n, n).clone()
    weights[0, 1, 2, 5] = 0.5
    finding = check_causal(weights, tokens=list(HOSTILE), name=HOSTILE[0])
    entry = entry_of(maps, HOSTILE[0], failed={"L0H1"})
    return Report(
        HOSTILE[1],
        [(word, word) for word in HOSTILE],
        [entry],
        [describe_failure(finding, f"test_it.py::test[{HOSTILE[0]}]"), *_messages()],
        HOSTILE,
    )


def _messages() -> list[Any]:
    return [describe_failure(None, word, f"{word}\nsecond line") for word in HOSTILE]


def test_whatever_comes_from_outside_is_text() -> None:
    page = render_page(hostile_report())
    page.encode("utf-8")
    reader = read(page)
    tags = [tag for tag, _ in reader.tags]
    assert tags.count("script") == 2
    assert not [attrs for _, attrs in reader.tags if any(name.startswith("on") for name in attrs)]
    assert {attrs["src"][:22] for tag, attrs in reader.tags if tag == "img"} == {
        "data:image/png;base64,"
    }
    for separator in "\u2028\u2029\u202e\x00":
        assert separator not in page
    assert ("dd", HOSTILE[0]) in reader.texts
    assert ("dd", "${hash}$title") in reader.texts
    assert ("li", "\\ud800") in reader.texts


def test_the_data_block_is_json_that_nothing_ends() -> None:
    page = render_page(hostile_report())
    held = data_of(page)
    assert held["schema"] == "attncheck.report.1"
    tokens = held["models"][0]["tokens"]
    assert tokens[:4] == list(HOSTILE[:4])
    assert tokens[4:7] == ["\\u2028\\u2029", "\\ud800", "\\u202e"]
    assert held["models"][0]["name"] == HOSTILE[0]
    block = re.search(r'type="application/json">(.*?)</script>', page, re.DOTALL)
    assert block is not None
    assert block[1].isascii()
    assert not set(block[1]) & set("<>&")


def test_nothing_is_loaded_from_anywhere() -> None:
    page = render_page(report_of(2, 3))
    assert "://" not in page
    reader = read(page)
    assert not [tag for tag, _ in reader.tags if tag in ("link", "iframe", "object", "base")]
    policy = next(attrs["content"] for tag, attrs in reader.tags if attrs.get("http-equiv", ""))
    assert "default-src 'none'" in policy
    script = page.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_without_scripts_every_link_leads_somewhere() -> None:
    reader = read(render_page(report_of(3, 4, failed={"L1H2"})))
    places = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(places) == len(set(places))
    links = [attrs["href"] for tag, attrs in reader.tags if tag == "a" and "href" in attrs]
    assert {link[1:] for link in links} <= set(places)
    assert {f"#L{layer}H{head}" for layer in range(3) for head in range(4)} <= set(links)
    failed = [attrs for tag, attrs in reader.tags if tag == "tr" and attrs.get("class") == "bad"]
    assert [attrs["id"] for attrs in failed] == ["L1H2"]
    pictures = [attrs["alt"] for tag, attrs in reader.tags if tag == "img"]
    assert pictures[0].startswith("L1H2: ")
    assert pictures[0].endswith("(fails)")
    assert len(pictures) == 12


def test_failures_come_first_and_say_where() -> None:
    weights = torch.eye(6)
    weights[1, 4] = 0.25
    failure = describe_failure(check_causal(weights), "test_it.py::test_causal")
    entry = entry_of(maps_of(1, 2))
    page = render_page(Report("a report", models=[entry], failures=[failure]))
    assert page.index('id="failures"') < page.index('class="model"')
    reader = read(page)
    assert ("a", "not causal: 1 of 15 future weights > 1e-05") in reader.texts
    assert ("code", "test_it.py::test_causal") in reader.texts
    assert 'id="test:test_it.py::test_causal"' in page
    assert 'href="#test%3Atest_it.py%3A%3Atest_causal"' in page
    alts = [attrs["alt"] for tag, attrs in reader.tags if tag == "img"]
    assert alts[0] == "L0H0: not causal: 1 of 15 future weights > 1e-05"
    assert '<a href="#L0H0">L0H0</a>' in page
    entry["tests"] = ["test_it.py::another"]
    page = render_page(Report("a report", models=[entry], failures=[failure]))
    assert 'heads <a href="#L0H0">' not in page


def test_a_second_model_has_addresses_of_its_own() -> None:
    models = [entry_of(maps_of(1, 2), name) for name in ("one", "two")]
    page = render_page(Report("a report", models=models))
    assert 'id="L0H1"' in page
    assert 'id="2.L0H1"' in page
    assert "2. two" in page


def test_numbers_that_are_none_and_patterns_of_ones_own() -> None:
    entry = describe_model("short", profile_attention(torch.eye(3)))
    assert entry["heads"][0]["label"] == "undetermined"
    assert entry["heads"][0]["maps"] == []
    entry["heads"][0]["label"] = "<my pattern>"
    page = render_page(Report("a report", models=[entry]))
    assert "&lt;my pattern&gt;" in page
    assert "NaN" not in json.dumps(data_of(page))


def test_ragged_layers_leave_gaps() -> None:
    maps = [torch.eye(12).expand(1, heads, 12, 12) for heads in (3, 1)]
    page = render_page(Report("a report", models=[describe_model("x", profile_attention(maps))]))
    rows = re.findall(r'<tr><th scope="row" title=.*?</tr>', page)
    assert [row.count("<td>") for row in rows] == [3, 3]
    assert [row.count("<a ") for row in rows] == [3, 1]


def test_data_stand_in_the_page_once() -> None:
    report = report_of(4, 8)
    page = render_page(report)
    codes = report.models[0]["heads"][0]["maps"][0]["codes"]
    assert page.count(codes) == sum(
        one["codes"] == codes for head in report.models[0]["heads"] for one in head["maps"]
    )


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a" / "page.html"
    report = report_of(1, 2)
    assert write_page(report, target) == target
    before = target.read_bytes()
    assert before == render_page(report).encode()
    assert target.stat().st_mode & 0o777 == 0o644

    def broken(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OSError, match="No space"):
        write_page(Report("other"), target)
    assert target.read_bytes() == before
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]
