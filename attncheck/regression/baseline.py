"""`Baseline`: the records of one check as a text file that a person can review.

JSON with sorted keys, six digits a number, one head a line: a head that changes is one changed
line in a diff.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from attncheck.errors import BaselineError
from attncheck.regression.environment import Environment
from attncheck.regression.record import SHARES, HeadRecord

__all__ = ["SCHEMA", "Baseline", "WeightsFile"]

FAMILY: Final = "attncheck.heads."
SCHEMA: Final = FAMILY + "1"
HEAD: Final = re.compile(r"L\d+H\d+( call \d+)?")


@dataclass(frozen=True)
class WeightsFile:
    """The weights beside a baseline.

    Attributes:
        file: Name of the safetensors file, in the same folder.
        sha256: Of its bytes.
    """

    file: str
    sha256: str


@dataclass(frozen=True)
class Baseline:
    """Records of all heads, and what they were made from.

    Attributes:
        test: File name and test that own it.
        environment: Device, dtype, versions.
        heads: One record per head.
        runs: How many runs the records are means of.
        input: Hash of shapes and tokens, None where they were not known.
        weights: The weights themselves, where they were asked for.

    Example:
        >>> head = HeadRecord("L0H0", "diagonal", {"entropy": 0.25}, {"by_key": {0: 1.0}})
        >>> made = Baseline("test_it.py::test_x", Environment("cpu", "float32", ()), (head,))
        >>> print(made.to_text())
        {
        "device": "cpu",
        "dtype": "float32",
        "heads": {
        "L0H0": {"by_key": {"0": 1}, "entropy": 0.25, "label": "diagonal"}
        },
        "input": null,
        "runs": 1,
        "schema": "attncheck.heads.1",
        "test": "test_it.py::test_x",
        "versions": {},
        "weights": null
        }
        >>> Baseline.from_text(made.to_text()) == made
        True
    """

    test: str
    environment: Environment
    heads: tuple[HeadRecord, ...]
    runs: int = 1
    input: str | None = None
    weights: WeightsFile | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every head."""
        return tuple(head.name for head in self.heads)

    def to_text(self) -> str:
        """Return the text of the file."""
        heads = ",\n".join(f'"{head.name}": {_line(head)}' for head in self.heads)
        fields = {
            "device": json.dumps(self.environment.device),
            "dtype": json.dumps(self.environment.dtype),
            "heads": "{\n" + heads + "\n}",
            "input": json.dumps(self.input),
            "runs": json.dumps(self.runs),
            "schema": json.dumps(SCHEMA),
            "test": json.dumps(self.test),
            "versions": json.dumps(dict(self.environment.versions), sort_keys=True),
            "weights": json.dumps(
                None if self.weights is None else vars(self.weights), sort_keys=True
            ),
        }
        lines = ",\n".join(f'"{name}": {text}' for name, text in fields.items())
        return "{\n" + lines + "\n}\n"

    @classmethod
    def from_text(cls, text: str) -> Baseline:
        """Read what `to_text` wrote.

        Raises:
            BaselineError: It is cut short, damaged, or no baseline at all.
        """
        if re.search(r"^(<{7}|>{7}) ", text, re.MULTILINE):
            raise BaselineError("holds the conflict markers of a merge")
        try:
            held = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise BaselineError(f"is not readable JSON, cut short or damaged ({error})") from None
        schema = held.get("schema") if isinstance(held, dict) else None
        if not isinstance(schema, str) or not schema.startswith(FAMILY):
            raise BaselineError("is JSON, but no baseline of attncheck")
        if schema != SCHEMA:
            raise BaselineError(f"has schema {schema}, this version reads {SCHEMA}: upgrade")
        try:
            return cls._read(held)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BaselineError(f"is a damaged baseline ({error!r})") from None

    @classmethod
    def _read(cls, held: Mapping[str, Any]) -> Baseline:
        versions = tuple((str(n), str(v)) for n, v in sorted(held["versions"].items()))
        heads = tuple(_head(name, fields) for name, fields in held["heads"].items())
        if not heads:
            raise ValueError("no heads")
        return cls(
            test=_text(held["test"]),
            environment=Environment(_text(held["device"]), _text(held["dtype"]), versions),
            heads=heads,
            runs=int(held["runs"]),
            input=None if held["input"] is None else _text(held["input"]),
            weights=None if held["weights"] is None else WeightsFile(**held["weights"]),
        )


def _line(head: HeadRecord) -> str:
    """Write one head as one line of JSON."""
    fields: dict[str, str] = {"label": json.dumps(head.label)}
    fields |= {name: _number(value) for name, value in head.values.items()}
    for name, bins in head.shares.items():
        fields[name] = _object({str(place): _number(bins[place]) for place in sorted(bins)})
    if head.spread:
        spread = {name: _number(head.spread[name]) for name in sorted(head.spread)}
        fields["spread"] = _object(spread)
    return _object(dict(sorted(fields.items())))


def _object(fields: Mapping[str, str]) -> str:
    return "{" + ", ".join(f'"{name}": {text}' for name, text in fields.items()) + "}"


def _number(value: float) -> str:
    """Write six digits; what JSON has no number for must not get here."""
    if not math.isfinite(value):
        raise ValueError(f"record: {value} is no number that a baseline can hold")
    return f"{value:.6g}" if value else "0"


def _head(name: str, fields: Mapping[str, Any]) -> HeadRecord:
    if not HEAD.fullmatch(name):
        raise ValueError(f"no head is named {name!r}")
    rest = dict(fields)
    label, spread = _text(rest.pop("label")), rest.pop("spread", {})
    shares = {
        share: {int(place): float(mass) for place, mass in rest.pop(share).items()}
        for share in SHARES
        if share in rest
    }
    return HeadRecord(
        name=name,
        label=label,
        values={measure: float(value) for measure, value in rest.items()},
        shares=shares,
        spread={measure: float(value) for measure, value in spread.items()},
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON number")
