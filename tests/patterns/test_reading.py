"""Evidence from damaged files is refused, with the name of what is wrong."""

from __future__ import annotations

import base64
import copy
import json
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attncheck.patterns import PatternEvidence, collect_evidence
from tests.patterns.test_evidence import TOKENS, random_layer

HELD: dict[str, Any] = collect_evidence(random_layer(3), TOKENS).to_dict()
Damage = Callable[[dict[str, Any]], object]


def packed(array: object, dtype: str = "<f8") -> dict[str, Any]:
    held = np.asarray(array, dtype=dtype)
    planes = held.reshape(-1, 1).view(np.uint8).T.tobytes()
    text = base64.b64encode(zlib.compress(planes)).decode()
    return {"shape": list(held.shape), "shared": False, "dtype": dtype, "base64": text}


def truncated(held: dict[str, Any]) -> None:
    lines = held["offsets"]["mass"]
    lines["base64"] = lines["base64"][:40]


DAMAGE: dict[str, tuple[Damage, str]] = {
    "a field lost": (lambda e: e.pop("capacity"), "not pattern evidence, it lacks capacity"),
    "a list too short": (lambda e: e["square"].pop(), "square has shape .2,., expected .3,."),
    "rows of rows": (lambda e: e.update(rows=[[1.0] * 3]), r"rows has shape .1, 3., expected"),
    "ragged": (lambda e: e.update(inverse=[[1.0], 2.0, 3.0]), "inverse holds something else"),
    "a word": (lambda e: e["entropy"].__setitem__(0, "much"), "entropy holds something else"),
    "less than no row": (lambda e: e["rows"].__setitem__(1, -1.0), "rows goes down to -1"),
    "a count that is NaN": (lambda e: e["rows"].__setitem__(0, "NaN"), "rows holds NaN"),
    "a chance that is NaN": (
        lambda e: e["templates"]["induction"]["chance"].__setitem__(0, "NaN"),
        "chance of induction holds NaN",
    ),
    "negative squares": (lambda e: e["square"].__setitem__(0, -2.0), "square goes down to -2"),
    "causality in words": (lambda e: e.update(causal="no"), "causal is 'no', expected true or"),
    "no spans": (lambda e: e.update(spans=None), "spans is NoneType, expected a mapping"),
    "spans without counts": (lambda e: e["spans"].pop("count"), "not spans, it lacks count"),
    "counts of other spans": (lambda e: e["spans"]["count"][0].pop(), "count of spans holds"),
    "half a span": (lambda e: e["spans"]["bounds"][0].__setitem__(0, 0.5), "no stretches"),
    "a span that ends first": (lambda e: e["spans"].update(bounds=[[9, 2, 9]]), "no stretches"),
    "a span too long": (lambda e: e["spans"].update(bounds=[[0, 1e300, 9]]), "no stretches"),
    "offsets of strangers": (
        lambda e: e["offsets"].update(mass=packed(np.ones((2, 19)))),
        r"mass of offsets has shape \[2, 19\], expected \[3, any\]",
    ),
    "fewer lines": (
        lambda e: e["offsets"].update(rows=packed(np.ones((3, 5)))),
        r"offsets has \[5, 19\] lines, zero at 9",
    ),
    "a shape in words": (lambda e: e["columns"]["mass"].update(shape="3x9"), "shape 3x9"),
    "no shape": (lambda e: e["columns"]["mass"].pop("shape"), "mass of columns, it lacks shape"),
    "a shape that lies": (
        lambda e: e["columns"]["mass"].update(shape=[3, 10**9]),
        "24000000000 bytes expected, 240 found",
    ),
    "truncated": (truncated, "mass of offsets is damaged"),
    "not base64": (
        lambda e: e["offsets"]["mass"].update(base64="\u00e9!"),
        "mass of offsets is damaged",
    ),
    "not compressed": (
        lambda e: e["offsets"]["mass"].update(base64="AAAA"),
        "mass of offsets is damaged",
    ),
    "too much": (
        lambda e: e["offsets"]["mass"].update(base64=packed(np.zeros(9999))["base64"]),
        "456 bytes expected, more found",
    ),
    "integers": (lambda e: e["columns"]["rows"].update(dtype="<i8"), "dtype '<i8', expected one"),
    "objects": (lambda e: e["columns"]["rows"].update(dtype=["O"]), "expected one of"),
    "zero far out": (lambda e: e["offsets"].update(zero=99), "zero at 99"),
    "zero in words": (lambda e: e["offsets"].update(zero="9"), "zero of offsets is '9'"),
    "NaN rows of columns": (
        lambda e: e["columns"].update(rows=packed(np.full((3, 10), np.nan))),
        "rows of columns holds NaN",
    ),
    "an unknown template": (
        lambda e: e["templates"].update(novelty=e["templates"]["induction"]),
        "templates are .*novelty",
    ),
    "templates in a list": (lambda e: e.update(templates=[]), "templates is list, expected"),
    "resting lost": (lambda e: e["resting"].pop("induction"), "resting .* expected"),
    "blocks lost": (lambda e: e["templates"].pop("block"), "attention without distances"),
    "beside lost": (lambda e: e["beside"].pop("mass"), "not beside, it lacks mass"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named(what: str) -> None:
    held = copy.deepcopy(HELD)
    damage, message = DAMAGE[what]
    damage(held)
    with pytest.raises(ValueError, match=f"held: .*{message}"):
        PatternEvidence.from_dict(held)


def test_no_mapping_is_no_evidence() -> None:
    for held in (None, [], 3, "evidence"):
        with pytest.raises(ValueError, match="held: pattern evidence is"):
            PatternEvidence.from_dict(held)  # type: ignore[arg-type]


def test_rounding_below_zero_is_no_damage() -> None:
    held = copy.deepcopy(HELD)
    held["beside"]["variance"][0] = -2.4e-17
    assert PatternEvidence.from_dict(held).beside.variance[0] == -2.4e-17


def places(held: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested dicts and lists."""
    if not isinstance(held, dict | list):
        return []
    inner = held.items() if isinstance(held, dict) else enumerate(held)
    return [p for key, value in inner for p in ((*path, key), *places(value, (*path, key)))]


JUNK = [None, True, -1, 1.5, "x", "NaN", [], {}, [[]], {"a": 1}, 2**80, "Infinity"]


@settings(max_examples=400)
@given(place=st.sampled_from(places(HELD)), junk=st.sampled_from(JUNK))
def test_whatever_stands_in_a_place_is_read_or_a_value_error(
    place: tuple[Any, ...], junk: Any
) -> None:
    held = json.loads(json.dumps(HELD))
    spot = held
    for key in place[:-1]:
        spot = spot[key]
    spot[place[-1]] = junk
    message = ""
    try:
        PatternEvidence.from_dict(held)
    except ValueError as error:
        message = str(error)
    assert not message or message.startswith("held: ")
