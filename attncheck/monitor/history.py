"""`HeadHistory`: what heads did over a training run, one JSON object a line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from attncheck.monitor.sample import HeadAlert, HeadSample

__all__ = ["SCHEMA", "HeadHistory", "HistoryFile"]

SCHEMA: Final = "attncheck.history.1"


class HeadHistory(Sequence[HeadSample]):
    """The samples of a training run, in the order of their steps.

    ``history[measure]`` is an array ``(step, head)``: every name of `attncheck.METRICS`, the mass
    of a pattern by its name, and ``max_logit``, ``output_rms``, ``twin_distance``, ``bad_rows``,
    ``label_mass``; NaN where it was not measured.

    Args:
        samples: In the order in which they were taken. A step that is not beyond the one before
            starts a branch, as a run resumed from an earlier checkpoint does: samples from that
            step on that came before it are dropped.
        about: What the file's first line says of model and run.
        skipped: Lines of a file that could not be read, such as a last one cut short.

    Example:
        >>> from attncheck.models import TinyTransformer, repeated_tokens
        >>> from attncheck import HeadMonitor
        >>> model = TinyTransformer().train()
        >>> with HeadMonitor(model, every=2) as monitor:
        ...     for _ in range(4):
        ...         output = model(repeated_tokens(8))
        >>> monitor.history
        HeadHistory(2 samples, steps 0 to 2, 4 heads, no alerts)
        >>> monitor.history["entropy"].shape  # (step, head)
        (2, 4)
    """

    def __init__(
        self,
        samples: Sequence[HeadSample] = (),
        about: Mapping[str, Any] | None = None,
        skipped: int = 0,
    ) -> None:
        self.about = dict(about or {})
        self.skipped = skipped
        self._samples: list[HeadSample] = []
        for sample in samples:
            self.append(sample)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> HeadHistory:
        """Read what a `HeadMonitor` wrote.

        Lines that cannot be read are skipped and counted: a process that was killed leaves half
        of one.

        Raises:
            ValueError: The file is no history.
            OSError: It cannot be opened.
        """
        return _read(Path(path))[0]

    def append(self, sample: HeadSample) -> None:
        """Add a sample, and drop what it supersedes."""
        while self._samples and self._samples[-1].step >= sample.step:
            self._samples.pop()
        self._samples.append(sample)

    @property
    def steps(self) -> list[int]:
        """Training step of each sample."""
        return [sample.step for sample in self._samples]

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of all heads, in the order of the last sample."""
        known = dict.fromkeys(name for sample in reversed(self._samples) for name in sample.heads)
        return tuple(known)

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of what was measured."""
        return tuple(dict.fromkeys(name for sample in self._samples for name in sample.measures))

    @property
    def alerts(self) -> list[HeadAlert]:
        """All alerts, in order."""
        return [alert for sample in self._samples for alert in sample.alerts]

    def values(self, measure: str) -> NDArray[np.float64]:
        """Return a measure as ``(step, head)``, NaN where there is none.

        Raises:
            KeyError: It was measured at no step.
        """
        if measure not in self.measures:
            raise KeyError(f"no measure {measure!r}; measured were {', '.join(self.measures)}")
        heads = self.heads
        table = np.full((len(self._samples), len(heads)), np.nan)
        for row, sample in zip(table, self._samples, strict=True):
            held = dict(zip(sample.heads, sample.measures.get(measure, ()), strict=False))
            row[:] = [held.get(head, np.nan) for head in heads]
        return table

    def labels(self) -> list[list[str]]:
        """Return what each head was called at each step, ``[step][head]``; empty if not there."""
        found = []
        for sample in self._samples:
            held = dict(zip(sample.heads, sample.labels, strict=True))
            found.append([held.get(head, "") for head in self.heads])
        return found

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, str):
            return self.values(which)
        return self._samples[which]

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[HeadSample]:
        return iter(self._samples)

    def __repr__(self) -> str:
        if not self._samples:
            return "HeadHistory(no samples)"
        alerts = len(self.alerts)
        return (
            f"HeadHistory({_number(len(self), 'sample')}, steps {self.steps[0]} to "
            f"{self.steps[-1]}, {_number(len(self.heads), 'head')}, "
            f"{_number(alerts, 'alert') if alerts else 'no alerts'})"
        )


class HistoryFile:
    """A history on disk: a line is added at once and whole, nothing written is changed.

    Args:
        path: The file. One that is there must be a history and is continued; what is left of a
            line that a crash cut short is closed off.
        about: For the first line of a new file.

    Raises:
        ValueError: The file is something else; it is left as it is.
        OSError: It cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike[str], about: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.history = HeadHistory(about=about)
        if self.path.exists() and self.path.stat().st_size:
            self.history, whole = _read(self.path)
            if not whole:
                self._add("\n")
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._add(_line({"schema": SCHEMA, **about}))

    def append(self, sample: HeadSample) -> None:
        """Write one sample.

        Raises:
            OSError: It cannot be written.
        """
        self._add(_line(sample.to_dict()))

    def _add(self, text: str) -> None:
        """Append in one call and push it to the disk."""
        with self.path.open("ab", buffering=0) as file:
            held = memoryview(text.encode())
            while held:
                held = held[file.write(held) :]
            os.fsync(file.fileno())


def _read(path: Path) -> tuple[HeadHistory, bool]:
    """Return a history, and whether its last line is whole."""
    lines = path.read_bytes().split(b"\n")
    try:
        about = json.loads(lines[0])
        schema = about.pop("schema")
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        raise ValueError(f"path: {path} is no history of a HeadMonitor") from None
    if schema != SCHEMA:
        raise ValueError(f"path: {path} holds schema {schema!r}, expected {SCHEMA!r}")
    samples, skipped = [], 0
    for line in lines[1:]:
        if line.strip():
            try:
                samples.append(HeadSample.from_dict(json.loads(line)))
            except (ValueError, RecursionError):
                skipped += 1
    return HeadHistory(samples, about, skipped), not lines[-1]


def _line(described: Mapping[str, Any]) -> str:
    return json.dumps(described, allow_nan=False, separators=(",", ":")) + "\n"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
