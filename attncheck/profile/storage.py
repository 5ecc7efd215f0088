"""`HeadProfile` on disk: one JSON file with a schema, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

__all__ = ["SCHEMA", "plain", "read_json", "require_schema", "write_json", "write_text"]

SCHEMA: Final = "attncheck.profile.1"


def write_json(described: Mapping[str, Any], path: Path) -> Path:
    """Write to ``path``, making missing folders; a crash half-way leaves what was there before."""
    return write_text(json.dumps(described, allow_nan=False, separators=(",", ":")) + "\n", path)


def write_text(text: str, path: Path) -> Path:
    """Write a file whole or not at all: to a part beside it first, and then in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def plain(value: Any) -> Any:
    """Name what JSON has no number for; ``numpy.array(..., dtype=float)`` reads the names back.

    Example:
        >>> plain({"sum": [1.5, float("nan"), float("-inf")]})
        {'sum': [1.5, 'NaN', '-Infinity']}
    """
    if isinstance(value, Mapping):
        return {key: plain(held) for key, held in value.items()}
    if isinstance(value, list):
        return [plain(held) for held in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: It holds something else, or is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"path: {path} is not readable JSON ({error})") from None


def require_schema(held: Any) -> None:
    """Raise ValueError unless ``held`` says that it is a profile of this version."""
    schema = held.get("schema") if isinstance(held, Mapping) else None
    if schema != SCHEMA:
        raise ValueError(f"holds schema {schema!r}, expected {SCHEMA!r}: not a saved HeadProfile")
