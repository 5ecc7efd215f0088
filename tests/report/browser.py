"""A real Chromium without a window: what a page becomes in it, and how it looks."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from html import unescape
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=4000",
)


def chromium() -> str:
    """Return the browser: of ``ATTNCHECK_CHROMIUM``, else the first one that is installed."""
    given = os.environ.get("ATTNCHECK_CHROMIUM")
    if given:
        assert Path(given).is_file(), f"ATTNCHECK_CHROMIUM: no file {given}"
        return given
    for name in NAMES:
        found = shutil.which(name)
        if found:
            return found
    pytest.skip("no Chromium here; install one or set ATTNCHECK_CHROMIUM to its path")


def _browse(address: str, *flags: str) -> str:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [chromium(), *FLAGS, f"--user-data-dir={profile}", *flags, address]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=60, encoding="utf-8", check=False
        )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def dump(page: Path, *flags: str, place: str = "") -> str:
    """Return the document as it stands after scripts have run."""
    return _browse(page.as_uri() + place, "--dump-dom", "--window-size=1200,900", *flags)


def picture(page: Path, to: Path, *flags: str, size: str = "1200,900") -> Any:
    """Return a screenshot, ``(row, column, channel)`` from 0 to 1."""
    from matplotlib.image import imread

    _browse(page.as_uri(), f"--screenshot={to}", f"--window-size={size}", *flags)
    return imread(to)


def drive(page: Path, script: str, *flags: str, place: str = "") -> dict[str, Any]:
    """Run a script in the page, without the page's own policy, and return what it notes.

    Args:
        page: The page; a copy beside it is used.
        script: Fills the object ``seen``; may ``await``.
        place: The address after the file, such as ``#L5H1``.
    """
    text = page.read_text(encoding="utf-8")
    text, policies = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert policies == 1
    code = """
    <script>
    const seen = {};
    const rest = () => new Promise((done) => setTimeout(done, 50));
    const press = (node, key) =>
      node.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
    const shown = () => [...document.querySelectorAll(".card")]
      .filter((card) => !card.hidden).map((card) => card.id);
    addEventListener("load", async () => {
      await rest();
      try { %s } catch (error) { seen.error = String(error.stack); }
      const note = document.createElement("meta");
      note.name = "seen";
      note.content = JSON.stringify(seen);
      document.head.append(note);
    });
    </script></body>"""
    driven = page.with_name(f"driven-{page.name}")
    driven.write_text(text.replace("</body>", code % script), encoding="utf-8")
    found = re.search(r'<meta name="seen" content="([^"]*)">', dump(driven, *flags, place=place))
    assert found is not None
    seen: dict[str, Any] = json.loads(unescape(found[1]))
    assert "error" not in seen, seen["error"]
    return seen
