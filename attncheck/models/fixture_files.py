"""Where the shipped data lies: `fixtures/` of a source checkout, `_fixtures/` of an install."""

from __future__ import annotations

from pathlib import Path

__all__ = ["fixture_path"]

PACKAGE = Path(__file__).resolve().parents[1]
FOLDERS = (PACKAGE / "_fixtures", PACKAGE.parent / "fixtures")


def fixture_path(name: str) -> Path:
    """Return the path of a shipped data file.

    Args:
        name: File name, such as ``"tiny_transformer.safetensors"``.

    Raises:
        FileNotFoundError: The file is in neither folder: the installation is incomplete.

    Example:
        >>> fixture_path("manifest.json").name
        'manifest.json'
    """
    for folder in FOLDERS:
        if (folder / name).is_file():
            return folder / name
    searched = " nor ".join(str(folder) for folder in FOLDERS)
    raise FileNotFoundError(
        f"name: no shipped file {name!r}, neither in {searched}; reinstall attncheck, or in a "
        "source checkout run `python fixtures/train_tiny.py`"
    )
