"""The tables of docs/conformance.md, out of ``results/conformance.json``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

__all__ = ["tables", "write_page"]

PAGE: Final = Path(__file__).parent.parent / "docs" / "conformance.md"
BEGIN: Final = "<!-- measured: begin (python -m benchmarks.conformance writes this) -->"
END: Final = "<!-- measured: end -->"


def tables(data: Mapping[str, Any]) -> str:
    """Return the tables of mutants, of correct implementations, and of times."""
    return "\n\n".join(
        [
            _table(
                ("family", "killed", "tried", "planted", "runs"),
                _mutant_rows(data.get("mutants", {})),
            ),
            _table(
                ("correct implementation", "default", "quick", "inputs", "false alarms"),
                _alarm_rows(data.get("alarms", {})),
            ),
            _table(
                ("time of one run", "wall", "of CPU", "limit"), _time_rows(data.get("times", {}))
            ),
        ]
    )


def _mutant_rows(families: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    total: Counter[str] = Counter()
    rows: list[tuple[Any, ...]] = []
    for family, row in sorted(families.items()):
        counts = {name: row[name] for name in ("killed", "tried", "planted", "runs")}
        total.update(counts)
        rows.append((family, *counts.values()))
    return [*rows, ("all", *(total[name] for name in ("killed", "tried", "planted", "runs")))]


def _alarm_rows(implementations: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (
            name,
            row["seeds"].get("default", 0),
            row["seeds"].get("quick", 0),
            row.get("inputs", ""),
            len(row["false alarms"]),
        )
        for name, row in sorted(implementations.items(), key=lambda item: item[0].lower())
    ]


def _time_rows(timed: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (
            label,
            f"{row['wall seconds']:.1f} s",
            f"{row['cpu seconds']:.1f} s",
            f"{row['limit']:.0f} s" if row.get("limit") and "float32" in label else "",
        )
        for label, row in timed.items()
    ]


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write_page(data: Mapping[str, Any], page: Path = PAGE) -> None:
    """Put the tables between the marks of the page."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n\n{tables(data)}\n\n{END}{after}", encoding="utf-8")
