"""The page in a real browser: drawn, searched, addressed, driven by keys, looked at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps

from attncheck import as_attention
from attncheck.report import Report, render_page, write_page
from tests.report.browser import Browser
from tests.report.samples import entry_of, maps_of, report_of
from tests.report.test_page import hostile_report


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    return write_page(report_of(12, 12, failed={"L3H4", "L7H1"}), folder / "page.html")


def test_search_filters_order_and_keys(browser: Browser, page: Path) -> None:
    seen = browser.open(page).run(
        """
        const count = () => document.getElementById("count").textContent;
        seen.cards = shown().length;
        seen.first = shown().slice(0, 3);
        look("L5 diag"); seen.found = [shown(), count()];
        seen.faded = document.querySelectorAll(".map a.out").length;
        look("nothing"); seen.nothing = count();
        press(document.body, "Escape");
        seen.cleared = [shown().length, document.getElementById("find").value];
        choose("status", "failing"); seen.failing = shown(); choose("status", "all");
        const chip = document.querySelector('.legend button[data-label="local"]');
        chip.click(); seen.local = [shown().length, chip.getAttribute("aria-pressed")];
        chip.click(); seen.again = shown().length;
        choose("sort", "layer"); seen.layer = shown().slice(0, 2);
        choose("sort", "entropy"); seen.entropy = shown()[0];
        press(document.body, "/"); seen.slash = document.activeElement.id;
        const cells = [...document.querySelectorAll(".map.heads a")];
        seen.stops = cells.filter((cell) => cell.tabIndex === 0).length;
        cells[0].focus();
        for (const key of ["ArrowRight", "ArrowDown", "ArrowDown", "ArrowUp", "ArrowLeft"])
          press(document.activeElement, key);
        press(document.activeElement, "ArrowLeft");
        seen.walked = document.activeElement.hash;
        """
    )
    assert seen["cards"] == 144
    assert seen["first"] == ["L3H4", "L7H1", "L0H0"]
    assert seen["found"] == [["L5H0", "L5H6"], "2 of 144 heads"]
    assert seen["faded"] == 142
    assert seen["nothing"] == "no head matches; Escape clears"
    assert seen["cleared"] == [144, ""]
    assert seen["failing"] == ["L3H4", "L7H1"]
    assert seen["local"] == [24, "true"]
    assert seen["again"] == 144
    assert seen["layer"] == ["L0H0", "L0H1"]
    assert seen["entropy"] in {f"L{layer}H{head}" for layer in range(12) for head in (3, 9)}
    assert seen["slash"] == "find"
    assert seen["stops"] == 1
    assert seen["walked"] == "#L1H0"


def test_an_address_shows_its_head(browser: Browser, page: Path) -> None:
    seen = browser.open(page, "#L10H1").run(
        """
        const card = document.getElementById("L10H1");
        seen.there = [card.classList.contains("target"), document.activeElement === card];
        await rest();
        const box = card.getBoundingClientRect();
        seen.visible = box.top < innerHeight && box.bottom > 0;
        look("L0");
        location.hash = "#L11H11"; await rest();
        seen.moved = [document.querySelector(".card.target").id, shown().length];
        seen.find = document.getElementById("find").value;
        """
    )
    assert seen["there"] == [True, True]
    assert seen["visible"]
    assert seen["moved"] == ["L11H11", 144]
    assert seen["find"] == ""


def test_cells_can_be_read_by_keys_and_have_the_colour_of_their_weight(
    browser: Browser, page: Path
) -> None:
    seen = browser.open(page).run(
        """
        const card = document.getElementById("L0H1");
        const canvas = card.querySelector("canvas");
        const line = card.querySelector(".at");
        canvas.focus(); seen.start = line.textContent;
        press(canvas, "ArrowDown"); seen.down = line.textContent;
        press(canvas, "ArrowRight"); seen.right = line.textContent;
        press(canvas, "ArrowRight"); seen.future = line.textContent;
        const pixel = (x, y) => [...canvas.getContext("2d").getImageData(x, y, 1, 1).data];
        seen.pixels = [pixel(0, 1), pixel(1, 1), pixel(2, 1)];
        seen.size = [canvas.width, canvas.height];
        """
    )
    assert seen["start"] == "query 0 't0' → key 0 't0': 1"
    assert seen["down"].startswith("query 1 't1' → key 0 't0': 0.9")
    assert seen["right"].startswith("query 1 't1' → key 1 't1': 0.0")
    assert seen["future"] == "query 1 't1' → key 2 't2': not visible"
    high, low, hidden = seen["pixels"]
    assert high[:3] == pytest.approx([0xFD, 0xE7, 0x25], abs=24)
    assert low[:3] == pytest.approx([0x44, 0x01, 0x54], abs=24)
    assert hidden[3] == 0
    assert seen["size"] == [24, 24]


def test_colours_reach_to_the_largest_weight_or_to_1(browser: Browser, tmp_path: Path) -> None:
    even = entry_of(as_attention(torch.full((1, 1, 16, 16), 1 / 16)))
    page = write_page(Report("even", models=[even]), tmp_path / "page.html")
    seen = browser.open(page).run(
        """
        const canvas = document.querySelector("canvas").getContext("2d");
        const pixel = () => [...canvas.getImageData(3, 3, 1, 1).data];
        seen.own = pixel(); choose("scale", "one"); seen.one = pixel();
        """
    )
    assert seen["own"] == [0xFD, 0xE7, 0x25, 255]
    expected = 255 * np.array(colormaps["viridis"](1 / 16))
    assert seen["one"] == pytest.approx(expected, abs=5)


def test_heads_are_drawn_when_they_come_near(browser: Browser, page: Path) -> None:
    seen = browser.open(page).run(
        """
        const last = document.getElementById("L11H11");
        const drawn = () => document.querySelectorAll("canvas[data-drawn]").length;
        seen.before = [last.querySelectorAll("canvas").length, drawn()];
        last.scrollIntoView();
        await until(() => last.querySelector("canvas"));
        seen.after = [last.querySelectorAll("canvas").length, drawn()];
        """
    )
    assert seen["before"][0] == 0
    assert 9 <= seen["before"][1] < 60
    assert seen["after"][0] == 1
    assert seen["after"][1] < 110


def test_hostile_text_stays_text(browser: Browser, tmp_path: Path) -> None:
    page = write_page(hostile_report(), tmp_path / "page.html")
    seen = browser.open(page).run(
        """
        seen.scripts = document.scripts.length;
        seen.images = [...document.images].filter((one) => !one.src.startsWith("data:")).length;
        seen.title = document.title;
        seen.model = document.querySelector(".model h2").textContent;
        const card = document.querySelector(".card.bad");
        card.querySelector("canvas").focus();
        seen.cell = card.querySelector(".at").textContent;
        seen.layer = card.querySelector("small").textContent;
        """
    )
    assert seen["scripts"] == 2
    assert seen["images"] == 0
    assert seen["title"] == "</script><img src=x onerror=alert(1)>"
    assert seen["model"] == "<script>alert(1)</script>"
    assert seen["cell"].startswith("query 0 '<script>alert(1)</script>' → key 0")
    assert seen["layer"] == "</script><img src=x onerror=alert(1)>"


def test_the_policy_stops_any_other_script(browser: Browser, tmp_path: Path) -> None:
    text = render_page(report_of(1, 2))
    path = tmp_path / "page.html"
    strange = "<script>document.documentElement.dataset.strange = 1</script></main>"
    path.write_text(text.replace("</main>", strange))
    seen = browser.open(path).run("seen.data = {...document.documentElement.dataset}")
    assert seen["data"] == {"ready": "1"}


def test_scripts_off_still_shows_heads(browser: Browser, page: Path) -> None:
    tab = browser.open(page, "#L11H11", scripts=False)
    seen = tab.run(
        """
        const images = [...document.querySelectorAll("noscript img.cells")];
        seen.images = images.filter((image) => image.naturalWidth >= 240).length;
        seen.rows = document.querySelectorAll("tr[id]").length;
        seen.ready = document.documentElement.dataset.ready || "";
        """
    )
    assert seen == {"images": 12, "rows": 144, "ready": ""}


def test_a_thousand_heads_stay_fluid(browser: Browser, tmp_path: Path) -> None:
    path = write_page(report_of(32, 32), tmp_path / "page.html")
    assert path.stat().st_size < 4_000_000
    seen = browser.open(path).run(
        """
        const timed = (work) => {
          const start = performance.now();
          work();
          document.body.getBoundingClientRect();
          return performance.now() - start;
        };
        seen.search = timed(() => look("L5 d"));
        seen.clear = timed(() => look(""));
        seen.sort = timed(() => choose("sort", "entropy"));
        seen.cards = shown().length;
        seen.drawn = document.querySelectorAll("canvas").length;
        """
    )
    assert seen["cards"] == 1024
    assert 0 < seen["drawn"] < 100
    assert max(seen["search"], seen["clear"], seen["sort"]) < 2000  # a busy machine; 60 when idle


def test_light_and_dark(browser: Browser, page: Path) -> None:
    light = browser.open(page).picture()
    tab = browser.open(page, dark=True)
    dark = tab.picture()
    assert np.median(light[..., :3]) > 0.95
    assert np.median(dark[..., :3]) < 0.15
    assert light[..., :3].std() > 0.05
    seen = tab.run(
        """
        const paper = () => getComputedStyle(document.body).backgroundColor;
        seen.before = paper(); document.getElementById("theme").click(); seen.after = paper();
        """
    )
    assert (seen["before"], seen["after"]) == ("rgb(15, 19, 24)", "rgb(255, 255, 255)")


def test_a_narrow_window_scrolls_nothing_sideways(browser: Browser, tmp_path: Path) -> None:
    report = hostile_report()
    report.models = [entry_of(maps_of(2, 12), "a" * 300), *report.models]
    page = write_page(report, tmp_path / "page.html")
    tab = browser.open(page, size=(360, 700))
    seen = tab.run("seen.widths = [document.documentElement.scrollWidth, innerWidth]")
    assert seen["widths"] == [360, 360]
