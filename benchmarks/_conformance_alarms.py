"""Correct implementations through the battery: whatever fails is a false alarm, or a known bug."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from attncheck.conformance import check_attention
from attncheck.conformance.battery import select_properties
from benchmarks._conformance_joint import probed, run_jointly, unit_key
from benchmarks._conformance_ledger import Ledger
from tests.conformance.extended import RIGHT
from tests.conformance.implementations import IMPLEMENTATIONS
from tests.conformance.unusual import UNUSUAL

__all__ = ["CORRECT", "alarms", "planned"]

SLOW: Final = ("flex_attention",)  # not compiled, it takes minutes for what others do in seconds
ALONE: Final = (
    "flex_attention", "multi_head_attention_forward", "nn.MultiheadAttention",
    "transformers eager", "transformers sdpa",
)  # fmt: skip
"""Implementations that support too little to be given the inputs of all others."""
CORRECT: Final = {**IMPLEMENTATIONS, **UNUSUAL}


def alarms(ledger: Ledger, efforts: Mapping[str, int], share: tuple[int, int]) -> dict[str, Any]:
    """Run the correct implementations; list failures that are not known, by implementation.

    Args:
        ledger: Keeps what is done.
        efforts: Seeds by effort.
        share: Which part of the runs, and of how many, when several processes share the work.
    """
    rows: dict[str, Any] = {
        name: {"seeds": Counter(), "inputs": 0, "false alarms": [],
               "known failures": dict(entry.known)}
        for name, entry in CORRECT.items()
    }  # fmt: skip
    for name, function in list(RIGHT.items())[share[0] :: share[1]]:
        found = ledger.run(f"right-{name}", partial(_extension_alarms, function, name))
        seeds = {} if found is None else {"quick": 1}
        rows[f"extension {name}"] = {"seeds": seeds, "false alarms": found or []}
    for effort, seed in planned(efforts)[share[0] :: share[1]]:
        for name, found in jointly(ledger, effort, seed).items():
            _enter(rows[name], effort, found)
    alone = [(name, *run) for run in planned(efforts) for name in ALONE]
    for name, effort, seed in alone[share[0] :: share[1]]:
        if name in SLOW and (effort, seed) != ("quick", 0):
            continue
        work = partial(one_alarm, name, effort, seed)
        if (found := ledger.run(f"correct-{name}-{effort}-{seed}", work)) is not None:
            _enter(rows[name], effort, found)
    return rows


def planned(efforts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return efforts and seeds, one of the long runs after every seven short ones.

    Example:
        >>> planned({"default": 1, "quick": 2})
        [('default', 0), ('quick', 0), ('quick', 1)]
    """
    runs = [(effort, seed) for effort, seeds in efforts.items() for seed in range(seeds)]
    return sorted(runs, key=lambda run: (run[1] * (7 if run[0] == "default" else 1), run[0]))


def _all_pass(rows: Mapping[str, Any]) -> bool:
    return not any(row["failure"] for row in rows.values())


def _enter(row: dict[str, Any], effort: str, found: Mapping[str, Any]) -> None:
    row["seeds"][effort] += 1
    row["inputs"] += found["inputs"]
    row["false alarms"] += found["false alarms"]


def jointly(ledger: Ledger, effort: str, seed: int) -> dict[str, dict[str, Any]]:
    """Run all implementations that go together once; nothing where time ran out before the end."""
    together = {name: entry for name, entry in CORRECT.items() if name not in ALONE}
    whole = ledger.path(f"together-{effort}-{seed}")
    if whole.exists():
        return dict(json.loads(whole.read_text()))
    if time.monotonic() > ledger.end:
        ledger.missing += 1
        return {}
    subjects, plan = probed(together, effort, seed)
    units = {}
    for entry in select_properties(None, True):
        key = unit_key(entry, plan, together)
        units[entry.id] = ledger.run(
            key, partial(run_jointly, entry, plan, subjects), keep=_all_pass, lasting=True
        )
        if units[entry.id] is None:
            return {}
    found = {}
    for name, implementation in together.items():
        mine = {id: unit[name] for id, unit in units.items() if name in unit}
        false = [
            f"{id} ({effort}, seed {seed}): {row['failure']}"
            for id, row in mine.items()
            if row["failure"] and id not in implementation.known
        ] + [
            f"{id} passes ({effort}, seed {seed})"
            for id in implementation.known
            if not mine[id]["failure"]
        ]
        found[name] = {"inputs": sum(r["inputs"] for r in mine.values()), "false alarms": false}
        print(f"  {name}; {effort}, seed {seed}: {len(false)} false alarms", *false, flush=True)
    whole.write_text(json.dumps(found))
    return found


def one_alarm(name: str, effort: str, seed: int) -> dict[str, Any]:
    """Run one correct implementation once."""
    entry = CORRECT[name]
    report = check_attention(
        entry.function,
        returns_weights=entry.returns_weights,
        capabilities=entry.capabilities,
        effort=effort,
        seed=seed,
        expected_failures=entry.known,
        raises=False,
    )
    false = [f"{f.id} ({effort}, seed {seed}): {f.violated}; {f.input}" for f in report.failures]
    false += [
        f"{outcome.id} passes ({effort}, seed {seed})"
        for outcome in report.outcomes
        if outcome.status == "unexpected pass"
    ]
    print(f"  {report.summary()}; {effort}, seed {seed}: {len(false)} false alarms", flush=True)
    return {"inputs": sum(o.cases for o in report.outcomes), "false alarms": false}


def _extension_alarms(function: Callable[..., Any], name: str) -> list[str]:
    report = check_attention(function, extension=name, effort="quick", raises=False)
    return [failure.id for failure in report.failures]
