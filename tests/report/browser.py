"""A real Chromium without a window, driven through its debugging pipe: no driver to install."""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
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
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
HELPERS = """
const rest = () => new Promise((done) => setTimeout(done, 20));
const until = async (check) => { for (let i = 0; i < 250 && !check(); i += 1) await rest(); };
const press = (node, key) =>
  node.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
const shown = () => [...document.querySelectorAll(".card")]
  .filter((card) => !card.hidden).map((card) => card.id);
const look = (text) => {
  const find = document.getElementById("find");
  find.value = text;
  find.dispatchEvent(new Event("input"));
};
const choose = (id, value) => {
  const list = document.getElementById(id);
  list.value = value;
  list.dispatchEvent(new Event("change"));
};
"""


def executable() -> str:
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


class Browser:
    """One browser with a profile of its own, gone when the context ends."""

    def __enter__(self) -> Browser:
        program = executable()
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
        # The browser reads file 3 and writes file 4; nothing of ours may lie there.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]
        os.close(theirs_in)
        os.close(theirs_out)
        start = f'exec "$0" "$@" 3<&{ends[0]} 4>&{ends[1]}'
        profile = f"--user-data-dir={self._profile.name}"
        self._process = subprocess.Popen(
            ["bash", "-c", start, program, *FLAGS, profile],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in ends:
            os.close(end)
        self._to, self._from, self._rest = ours_out, ours_in, b""
        self._last, self._shown = 0, ""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._to)
        os.close(self._from)
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._profile.cleanup()

    def open(
        self,
        page: Path,
        place: str = "",
        *,
        size: tuple[int, int] = (1200, 900),
        scripts: bool = True,
        dark: bool = False,
    ) -> Tab:
        """Open a page, close the one before it, and wait until it has loaded."""
        if self._shown:
            self.call("Target.closeTarget", targetId=self._shown)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._shown = target
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session)
        width, height = size
        tab.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.call("Emulation.setEmulatedMedia", features=[scheme])
        tab.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        tab.call("Page.enable")
        tab.call("Page.bringToFront")
        tab.call("Page.navigate", url=page.as_uri() + place)
        self.wait("Page.loadEventFired", session)
        return tab

    def call(self, method: str, session: str = "", **arguments: Any) -> Any:
        """Send a command and return its result."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": arguments}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._last:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def wait(self, event: str, session: str) -> None:
        """Wait for an event of a tab."""
        while True:
            message = self._read()
            if message.get("method") == event and message.get("sessionId") == session:
                return

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._from, 1 << 20)
            assert more, "the browser has gone"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        held: dict[str, Any] = json.loads(message)
        return held


class Tab:
    """One page in the browser."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def call(self, method: str, **arguments: Any) -> Any:
        """Send a command to this tab."""
        return self._browser.call(method, self._session, **arguments)

    def run(self, script: str) -> dict[str, Any]:
        """Run a script, which may ``await`` and fills the object ``seen``; return that."""
        code = f"(async () => {{ const seen = {{}}; {HELPERS} {script}; return seen; }})()"
        answer = self.call(
            "Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        seen: dict[str, Any] = answer["result"]["value"]
        return seen

    def picture(self) -> Any:
        """Return what the window shows, ``(row, column, channel)`` from 0 to 1."""
        from matplotlib.image import imread

        held = self.call("Page.captureScreenshot", format="png")["data"]
        return imread(io.BytesIO(base64.b64decode(held)))
