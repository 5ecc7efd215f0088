"""The page in a real browser: drawn, searched, addressed, driven by keys, looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attncheck.report import Report, render_page, write_page
from tests.report.browser import chromium, drive, dump, picture
from tests.report.samples import entry_of, maps_of, report_of
from tests.report.test_page import hostile_report

pytestmark = pytest.mark.usefixtures("_browser")


@pytest.fixture
def _browser() -> None:
    chromium()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    return write_page(report_of(12, 12, failed={"L3H4", "L7H1"}), folder / "page.html")


def test_search_filters_order_and_keys(page: Path) -> None:
    seen = drive(
        page,
        """
        const find = document.getElementById("find");
        const look = (text) => { find.value = text; find.dispatchEvent(new Event("input")); };
        const choose = (id, value) => {
          const list = document.getElementById(id);
          list.value = value;
          list.dispatchEvent(new Event("change"));
        };
        const count = () => document.getElementById("count").textContent;
        seen.cards = shown().length;
        seen.first = shown().slice(0, 3);
        seen.drawn = document.querySelectorAll("canvas[data-drawn]").length;
        look("L5 diag"); seen.found = [shown(), count()];
        look("nothing"); seen.nothing = count();
        press(document.body, "Escape"); seen.cleared = [shown().length, find.value];
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
        seen.walked = document.activeElement.textContent && document.activeElement.hash;
        """,
    )
    assert seen["cards"] == 144
    assert seen["first"] == ["L3H4", "L7H1", "L0H0"]
    assert 0 < seen["drawn"] < 60
    assert seen["found"] == [["L5H0", "L5H6"], "2 of 144 heads"]
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


def test_an_address_shows_its_head_and_cells_can_be_read(page: Path) -> None:
    seen = drive(
        page,
        """
        const card = document.getElementById("L10H1");
        seen.there = [card.classList.contains("target"), document.activeElement === card];
        const box = card.getBoundingClientRect();
        seen.visible = box.top < innerHeight && box.bottom > 0;
        const canvas = card.querySelector("canvas");
        const line = card.querySelector(".at");
        canvas.focus(); seen.start = line.textContent;
        press(canvas, "ArrowDown"); seen.down = line.textContent;
        press(canvas, "ArrowRight"); seen.right = line.textContent;
        press(canvas, "ArrowRight"); seen.future = line.textContent;
        const pixel = () => [...canvas.getContext("2d").getImageData(0, 1, 1, 1).data];
        seen.pixel = pixel();
        seen.hidden = canvas.getContext("2d").getImageData(2, 1, 1, 1).data[3];
        const find = document.getElementById("find");
        find.value = "L0"; find.dispatchEvent(new Event("input"));
        location.hash = "#L11H11"; await rest();
        seen.moved = [document.querySelector(".card.target").id, find.value, shown().length];
        const dark = () => getComputedStyle(document.body).backgroundColor;
        seen.light = dark(); document.getElementById("theme").click(); seen.dark = dark();
        """,
        place="#L10H1",
    )
    assert seen["there"] == [True, True]
    assert seen["visible"]
    assert seen["start"] == "query 0 't0' → key 0 't0': 1"
    assert seen["down"].startswith("query 1 't1' → key 0 't0': 0.9")
    assert seen["right"].startswith("query 1 't1' → key 1 't1': 0.0")
    assert seen["future"] == "query 1 't1' → key 2 't2': not visible"
    assert seen["pixel"][:2] == pytest.approx([0xF0, 0xE3], abs=16)
    assert seen["hidden"] == 0
    assert seen["moved"] == ["L11H11", "", 144]
    assert seen["light"] == "rgb(255, 255, 255)"
    assert seen["dark"] == "rgb(15, 19, 24)"


def test_heads_are_drawn_when_they_come_near(page: Path) -> None:
    seen = drive(
        page,
        """
        const last = document.getElementById("L11H11");
        seen.before = last.querySelectorAll("canvas").length;
        last.scrollIntoView();
        for (let i = 0; i < 40 && !last.querySelector("canvas"); i += 1) await rest();
        seen.after = last.querySelectorAll("canvas").length;
        seen.all = document.querySelectorAll("canvas").length;
        const canvas = document.querySelector("#L0H4 canvas");
        const red = () => canvas.getContext("2d").getImageData(18, 20, 1, 1).data.join();
        seen.own = red();
        const list = document.getElementById("scale");
        list.value = "one"; list.dispatchEvent(new Event("change"));
        seen.one = red();
        """,
    )
    assert (seen["before"], seen["after"]) == (0, 1)
    assert seen["all"] < 100
    assert seen["own"] != seen["one"]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    page = write_page(hostile_report(), tmp_path / "page.html")
    seen = drive(
        page,
        """
        seen.scripts = document.scripts.length;
        seen.images = [...document.images].filter((image) => !image.src.startsWith("data:")).length;
        seen.title = document.title;
        seen.model = document.querySelector(".model h2").textContent;
        const canvas = document.querySelector(".card.bad canvas");
        canvas.focus();
        seen.cell = document.querySelector(".card.bad .at").textContent;
        """,
    )
    assert seen["scripts"] == 3  # the data, the page's own, and this test's
    assert seen["images"] == 0
    assert seen["title"] == "</script><img src=x onerror=alert(1)>"
    assert seen["model"] == "<script>alert(1)</script>"
    assert seen["cell"].startswith("query 0 '<script>alert(1)</script>' → key 0")


def test_the_policy_stops_any_other_script(tmp_path: Path) -> None:
    text = render_page(report_of(1, 2))
    path = tmp_path / "page.html"
    strange = "<script>document.documentElement.dataset.strange = 1</script></main>"
    path.write_text(text.replace("</main>", strange))
    found = dump(path)
    assert 'data-ready="1"' in found
    assert "data-strange" not in found


def test_scripts_off_still_shows_heads(page: Path) -> None:
    frame = page.with_name("frame.html")
    frame.write_text(
        """<iframe sandbox="allow-same-origin" src="page.html"></iframe>
        <script>
        const frame = document.querySelector("iframe");
        frame.onload = () => {
          const page = frame.contentDocument;
          const images = [...page.querySelectorAll("noscript img.cells")];
          document.title = [
            page.documentElement.dataset.ready,
            images.filter((image) => image.naturalWidth >= 240).length,
            page.querySelectorAll("tr[id]").length,
            page.querySelectorAll(".map a").length,
          ].join();
        };
        </script>"""
    )
    assert "<title>,12,144,144</title>" in dump(frame, "--allow-file-access-from-files")


def test_a_thousand_heads_stay_fluid(tmp_path: Path) -> None:
    path = write_page(report_of(32, 32), tmp_path / "page.html")
    assert path.stat().st_size < 4_000_000
    seen = drive(
        path,
        """
        const find = document.getElementById("find");
        const times = ["L5", "diagonal", ""].map((text) => {
          const start = performance.now();
          find.value = text; find.dispatchEvent(new Event("input"));
          document.body.getBoundingClientRect();
          return performance.now() - start;
        });
        seen.cards = shown().length;
        seen.drawn = document.querySelectorAll("canvas").length;
        seen.wide = document.documentElement.scrollWidth <= innerWidth;
        """,
    )
    assert seen["cards"] == 1024
    assert 0 < seen["drawn"] < 100
    assert seen["wide"]


def test_looks(page: Path, tmp_path: Path) -> None:
    light = picture(page, tmp_path / "light.png")
    dark = picture(page, tmp_path / "dark.png", "--force-dark-mode")
    assert np.median(light[..., :3]) > 0.95
    assert np.median(dark[..., :3]) < 0.15
    assert light[..., :3].std() > 0.05


def test_a_narrow_window_scrolls_nothing_sideways(tmp_path: Path) -> None:
    entry = entry_of(maps_of(2, 12), "a" * 300)
    page = write_page(Report("t" * 200, models=[entry]), tmp_path / "page.html")
    script = "seen.widths = [document.documentElement.scrollWidth, innerWidth];"
    seen = drive(page, script, "--window-size=360,800")
    assert seen["widths"][1] <= 500
    assert seen["widths"][0] <= seen["widths"][1]
