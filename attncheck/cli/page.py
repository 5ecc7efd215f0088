"""The page of a scan: heatmaps are taken while layers come in, so that none of them is kept."""

from __future__ import annotations

from pathlib import Path

import torch

from attncheck import __version__
from attncheck.attention import LayerAttention
from attncheck.cli.problem import CommandError
from attncheck.cli.report import ScanResult
from attncheck.report import FailureEntry, Heatmap, Report, describe_model, heatmaps_of, write_page

__all__ = ["Page", "require_page", "write_report"]


class Page:
    """The page that ``--report`` asks for.

    Args:
        path: Where to write it.

    Raises:
        CommandError: It cannot be there; told before the work.
    """

    def __init__(self, path: str) -> None:
        self.path = require_page(path)
        self.heatmaps: dict[str, list[Heatmap]] = {}

    def layer(self, layer: LayerAttention) -> None:
        """Take the heatmaps of one layer."""
        for name, heatmap in heatmaps_of(layer):
            self.heatmaps.setdefault(name, []).append(heatmap)

    def write(self, result: ScanResult) -> str:
        """Write the page and return its path."""
        names = {label.name for label in result.labels}
        failures = [_failure(found, names) for found in result.findings]
        entry = describe_model(
            result.model,
            result.profile,
            self.heatmaps,
            tokens=result.tokens[0] if result.tokens else None,
            facts=[("prompt", result.note)] if result.note else (),
            failed={name for failure in failures for name in failure["heads"]},
            labels=result.labels,
        )
        several = result.tokens is not None and len(result.tokens) > 1
        notes = ["Heatmaps show the first sequence; measures are over all."] if several else []
        return write_report(self.path, Report("attncheck scan", _FACTS, [entry], failures, notes))


_FACTS = (("attncheck", __version__), ("torch", torch.__version__))


def require_page(path: str) -> Path:
    """Return the path of a page that can be written."""
    target = Path(path)
    if not path or target.is_dir():
        raise CommandError(f"--report: {path or 'empty'}: expected a file such as heads.html")
    return target


def write_report(path: Path, report: Report) -> str:
    """Write a page; says plainly why it cannot be.

    Raises:
        CommandError: It cannot be written.
    """
    try:
        return str(write_page(report, path))
    except OSError as error:
        raise CommandError(f"--report: cannot write {path}: {error.strerror}") from None


def _failure(found: str, names: set[str]) -> FailureEntry:
    head = found.partition(":")[0]
    return {
        "where": "validity of the weights",
        "text": found,
        "heads": [head] if head in names else [],
        "images": [],
    }
