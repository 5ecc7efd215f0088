"""The conformance battery judged: mutants killed, false alarms, time, and what the rule lets by.

``python -m benchmarks.conformance [--quick]``. The exit code is 1 when a mutant survives, a correct
implementation fails anything but its known failures, or the battery exceeds its time.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attncheck.conformance import check_attention
from attncheck.conformance.battery import attempt, select_properties
from attncheck.conformance.case import Case
from attncheck.conformance.design import Plan
from attncheck.conformance.examine import agrees
from attncheck.conformance.probe import probe
from attncheck.conformance.subject import Subject, Violation
from benchmarks._measure import write_results
from tests.conformance.extended import RIGHT, WRONG
from tests.conformance.implementations import IMPLEMENTATIONS, einsum_attention
from tests.conformance.mutants import MUTANTS, Mutant

LIMITS = {"quick": 10.0, "default": 60.0}
SLOW = ("flex_attention",)  # not compiled, it takes minutes for what others do in seconds


def killer(mutant: Mutant, effort: str, seed: int = 0) -> str:
    """Return the first property that a mutant fails, without shrinking; empty if it survives."""
    subject = Subject(mutant.make(), mutant.returns_weights)
    plan, failure = probe(subject, Plan(effort, seed))
    if failure:
        return failure.id
    subject.refused, subject.dtypes = plan.refused, plan.dtypes
    for entry in select_properties(None, mutant.returns_weights):
        for case in entry.cases(plan):
            if attempt(entry, subject, case)[0] is not None:
                return entry.id
    return ""


def kill_all(effort: str) -> dict[str, Any]:
    """Try all mutants; count by family."""
    families: dict[str, dict[str, Any]] = defaultdict(
        lambda: {"planted": 0, "killed": 0, "survivors": [], "killers": {}}
    )
    for mutant in MUTANTS.values():
        found = killer(mutant, effort)
        row = families[mutant.family]
        row["planted"] += 1
        row["killed"] += bool(found)
        row["killers"][mutant.id] = found
        if not found:
            row["survivors"].append(mutant.id)
    for name, wrong in WRONG.items():
        row = families[f"extension {name}"]
        for function in wrong:
            report = check_attention(function, extension=name, effort="quick", raises=False)
            row["planted"] += 1
            row["killed"] += not report.passed
            row["survivors"] += [function.__name__] if report.passed else []
    return dict(families)


def alarms(effort: str, seeds: int) -> dict[str, Any]:
    """Run the correct implementations; list failures that are not known."""
    rows: dict[str, Any] = {}
    for name, entry in IMPLEMENTATIONS.items():
        false: list[str] = []
        inputs = 0
        runs = 1 if name in SLOW else seeds
        for seed in range(runs):
            report = check_attention(
                entry.function,
                returns_weights=entry.returns_weights,
                capabilities=entry.capabilities,
                effort="quick" if name in SLOW else effort,
                seed=seed,
                expected_failures=entry.known,
                raises=False,
            )
            inputs += sum(outcome.cases for outcome in report.outcomes)
            false += [f"{failure.id} (seed {seed})" for failure in report.failures]
            false += [
                f"{outcome.id} passes (seed {seed})"
                for outcome in report.outcomes
                if outcome.status == "unexpected pass"
            ]
        rows[name] = {
            "seeds": runs,
            "inputs": inputs,
            "false alarms": false,
            "known failures": dict(entry.known),
            "not supported": dict(report.unsupported.most_common(4)),
        }
        print(f"  {name}: {inputs} inputs, {len(false)} false alarms", flush=True)
    for name, function in RIGHT.items():
        report = check_attention(function, extension=name, effort="quick", raises=False)
        rows[f"extension {name}"] = {"false alarms": [f.id for f in report.failures]}
    return rows


def times(efforts: list[str]) -> dict[str, Any]:
    """Time the battery on a correct CPU implementation: float32 alone, and all dtypes."""
    from attncheck import Capabilities

    rows: dict[str, Any] = {}
    for effort in efforts:
        for label, capabilities in (
            ("float32", Capabilities(dtypes=("float32",))),
            ("all dtypes", Capabilities()),
        ):
            wall, cpu = time.perf_counter(), time.process_time()
            check_attention(einsum_attention, effort=effort, capabilities=capabilities)
            rows[f"{effort}, {label}"] = {
                "wall seconds": round(time.perf_counter() - wall, 2),
                "cpu seconds": round(time.process_time() - cpu, 2),
                "limit": LIMITS.get(effort),
            }
    return rows


def passes_unseen(dtype: str) -> dict[str, float]:
    """Find the largest relative error of each kind that no case of a small design notices."""
    kinds: dict[str, Callable[[float], Callable[..., Tensor]]] = {
        "output times 1 + x": lambda x: lambda *a, **k: einsum_attention(*a, **k) * (1 + x),
        "scale times 1 + x": lambda x: lambda q, *a, **k: einsum_attention(q * (1 + x), *a, **k),
        "one key's value times 1 + x": lambda x: (
            lambda q, k, v, **f: einsum_attention(
                q, k, torch.cat([v[..., :-1, :], v[..., -1:, :] * (1 + x)], -2), **f
            )
        ),
    }
    base = Case(batch=2, kv_heads=2, n_query=33, n_key=33, size=64, value_size=64, dtype=dtype)
    cases = [base, replace(base, content="offset values"), replace(base, content="large")]
    found = {}
    for name, make in kinds.items():
        x = 1e-17
        while x < 1:
            subject = Subject(make(x))
            if any(_fails(subject, case) for case in cases):
                break
            x *= 10**0.25
        found[name] = float(f"{x:.2g}")
    return found


def _fails(subject: Subject, case: Case) -> bool:
    try:
        agrees(subject, case)
    except Violation:
        return True
    return False


def main(argv: list[str] | None = None) -> int:
    """Measure, write ``results/conformance.json``, print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conformance", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="quick effort, two seeds")
    parser.add_argument("--seeds", type=int, help="seeds for each correct implementation")
    chosen = parser.parse_args(argv)
    effort = "quick" if chosen.quick else "default"
    data: dict[str, Any] = {"effort": effort}
    sections: dict[str, Callable[[], Any]] = {
        "smallest error noticed": lambda: {
            d: passes_unseen(d) for d in ("float64", "float32", "float16", "bfloat16")
        },
        "times": lambda: times(["quick"] if chosen.quick else ["quick", "default"]),
        "mutants": lambda: kill_all(effort),
        "correct implementations": lambda: alarms(
            "quick", chosen.seeds or (2 if chosen.quick else 20)
        ),
    }
    for name, measure in sections.items():
        data[name] = measure()
        path = write_results("conformance", data)  # after each: a long run may be cut short
    mutants, timed, correct = data["mutants"], data["times"], data["correct implementations"]
    for family, row in mutants.items():
        print(f"{family:28} {row['killed']:3} / {row['planted']:3}  {', '.join(row['survivors'])}")
    for label, row in timed.items():
        print(f"{label:28} {row['wall seconds']:6.1f} s  (limit {row['limit']})")
    survived = any(row["survivors"] for row in mutants.values())
    alarmed = any(row["false alarms"] for row in correct.values())
    late = any(row["limit"] and row["wall seconds"] > row["limit"] for row in timed.values())
    print(f"false alarms: {sum(len(row['false alarms']) for row in correct.values())}; {path}")
    return int(survived or alarmed or late)


if __name__ == "__main__":
    raise SystemExit(main())
