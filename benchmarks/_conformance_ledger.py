"""Results of finished runs on disk, so that a long sweep can stop and go on."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

__all__ = ["Ledger"]

NO_VERDICT: Final = ("report.py", "pytest_door.py", "reproduce.py", "diagnose.py", "mistakes.py")


class Ledger:
    """Results of finished runs, on disk.

    Args:
        minutes: Time after which no further run is begun.
        root: Where the sources are, and ``build``.
    """

    def __init__(self, minutes: float, root: Path = Path(__file__).parents[1]) -> None:
        digest = hashlib.sha256()
        for folder in ("attncheck/conformance", "tests/conformance"):
            for path in sorted((root / folder).rglob("*.py")):
                if path.name not in NO_VERDICT and not path.name.startswith("test_"):
                    digest.update(path.read_bytes())
        self.folder = root / "build" / "conformance" / digest.hexdigest()[:12]
        self.lasting = self.folder.with_name("lasting")  # keys that carry a fingerprint themselves
        for folder in (self.folder, self.lasting):
            folder.mkdir(parents=True, exist_ok=True)
        self.end = time.monotonic() + 60 * minutes
        self.missing = 0

    def path(self, key: str, lasting: bool = False) -> Path:
        """Return where the result of a key is kept."""
        folder = self.lasting if lasting else self.folder
        return folder / f"{key.replace(' ', '-').replace('/', '-')}.json"

    def run(
        self,
        key: str,
        work: Callable[[], Any],
        lasting: bool = False,
        keep: Callable[[Any], bool] = lambda _: True,
    ) -> Any:
        """Return the result kept under a key, or of the work; None where no time is left.

        Args:
            key: Names the work.
            work: Does it; the result must be JSON.
            lasting: Whether the key carries a fingerprint itself, so that the folder need not.
            keep: Whether a result lasts; one that does not is kept for this battery only.
        """
        path = next((p for p in (self.path(key, lasting), self.path(key)) if p.exists()), None)
        if path is None:
            path = self.path(key, lasting)
            if time.monotonic() > self.end:
                self.missing += 1
                return None
            part = path.with_suffix(f".{os.getpid()}")
            result = work()
            path = path if keep(result) else self.path(key)
            part.write_text(json.dumps(result))
            part.replace(path)
        return json.loads(path.read_text())
