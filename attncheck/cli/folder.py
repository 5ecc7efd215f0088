"""The folder of a scan: what an earlier scan wrote there goes, whatever else lies there stays."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from attncheck.cli.problem import CommandError

__all__ = ["Folder"]

LIST: Final = ".attncheck-scan"
"""Names the files that a scan wrote, one a line; the next scan removes these and no others."""

HEADING: Final = "# attncheck scan wrote these files; its next scan into this folder removes them"

WRITTEN: Final = re.compile(r"profile\.json|\w+\.png", re.ASCII)
"""Names that a scan gives: whatever else a list from somebody may say is not ours to remove."""


class Folder:
    """Where a scan writes, made here so that a wrong one is told before the work.

    Files of an earlier scan stay until this one has something to write: a scan that fails at once
    costs nobody the pictures of the last one. Each file is listed before it is written, so that
    the files of an interrupted scan are known too.

    Args:
        name: As the user gave it.

    Raises:
        CommandError: It cannot be made.
    """

    def __init__(self, name: str) -> None:
        self.path = Path(name)
        self.files: list[Path] = []
        self._cleared = False
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CommandError(f"--out: cannot make the folder {name}: {error.strerror}") from None

    def place(self, name: str) -> Path:
        """Return the path of a file that is written next.

        Raises:
            CommandError: Nothing can be written here, or an earlier scan's file not be removed.
        """
        self.clear()
        try:
            with (self.path / LIST).open("a", encoding="utf-8") as listed:
                listed.write(f"{name}\n")
        except OSError as error:
            raise self.problem(error) from None
        self.files.append(self.path / name)
        return self.files[-1]

    def clear(self) -> None:
        """Remove what an earlier scan wrote, once; nothing of this one.

        Raises:
            CommandError: A file cannot be removed.
        """
        if self._cleared:
            return
        try:
            for name in self._earlier():
                path = self.path / name
                if path.is_file() or path.is_symlink():
                    path.unlink()
            (self.path / LIST).unlink(missing_ok=True)  # if a link, what it leads to stays
            (self.path / LIST).write_text(f"{HEADING}\n", encoding="utf-8")
        except OSError as error:
            raise self.problem(error) from None
        self._cleared = True

    def problem(self, error: OSError) -> CommandError:
        """Say that this folder cannot be written to."""
        return CommandError(f"--out: cannot write to {self.path}: {error.strerror}")

    def _earlier(self) -> list[str]:
        """Names that an earlier scan listed; a path that leads elsewhere is none of them."""
        try:
            lines = (self.path / LIST).read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        return [name for name in lines if WRITTEN.fullmatch(name)]
