"""The conformance battery judged: mutants killed, false alarms, time, and what the rule lets by.

``python -m benchmarks.conformance [--quick]``. Finished runs are kept in ``build/conformance``,
under a fingerprint of the battery and of what it is tried on, so that an interrupted sweep goes on
where it ended: ``--only alarms --minutes 8`` does some, and says so with exit code 3. The exit code
is 1 when a mutant survives, a correct implementation fails anything but its known failures, or the
battery exceeds its time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch import Tensor

from attncheck.conformance import PROPERTIES, Capabilities, check_attention
from attncheck.conformance.battery import select_properties
from attncheck.conformance.case import Case
from attncheck.conformance.design import Plan
from attncheck.conformance.examine import agrees
from attncheck.conformance.extensions import EXTENSIONS
from attncheck.conformance.probe import probe
from attncheck.conformance.properties.bias import accuracy_bias
from attncheck.conformance.run import attempt
from attncheck.conformance.subject import Subject, Violation
from benchmarks._conformance_alarms import alarms
from benchmarks._conformance_joint import run_jointly
from benchmarks._conformance_ledger import Ledger
from benchmarks._conformance_page import write_page
from benchmarks._measure import RESULTS, write_results
from tests.conformance.extended import WRONG
from tests.conformance.implementations import einsum_attention
from tests.conformance.mutants import MUTANTS, Mutant

SECTIONS: Final = ("errors", "times", "mutants", "alarms")
DTYPES: Final = ("float64", "float32", "float16", "bfloat16")
LIMITS = {"quick": 10.0, "default": 60.0}


def kill_jointly(
    ledger: Ledger, mutants: Sequence[Mutant], effort: str, seed: int, share: tuple[int, int]
) -> dict[str, str]:
    """Return the first property that each mutant fails, empty if it survives them all.

    Those about which nothing can be said yet, as time ran out, are left out.
    """
    killed: dict[str, str] = {}
    subjects: dict[str, Subject] = {}
    for mutant in mutants:
        subject = Subject(mutant.make(), mutant.returns_weights)
        plan, failure = probe(subject, Plan(effort, seed))
        subject.refused, subject.dtypes = plan.refused, plan.dtypes
        if failure is None:
            subjects[mutant.id] = subject
        else:
            killed[mutant.id] = failure.id
    everything = replace(Plan(effort, seed), accepted=Plan().dtypes)
    slow_last = sorted(
        select_properties(None, True),
        key=lambda entry: (
            entry.id.startswith(("design", "accuracy-bias")),
            entry.family == "design",
        ),
    )
    for entry in slow_last:
        alive = {id: subject for id, subject in subjects.items() if id not in killed}
        key = f"mutants-{effort}-{seed}-{share[0]}-{share[1]}-{entry.id}"
        found = ledger.run(key, partial(run_jointly, entry, everything, alive))
        if found is None:
            return killed
        killed |= {id: entry.id for id, row in found.items() if row["failure"] and id in alive}
    return {mutant.id: killed.get(mutant.id, "") for mutant in mutants}


def kill_all(
    ledger: Ledger, effort: str, seeds: int, share: tuple[int, int] = (0, 1)
) -> dict[str, Any]:
    """Try all mutants with some seeds; count by family. Killed is who dies with every seed tried.

    Args:
        ledger: Keeps what is done.
        effort: Of the battery.
        seeds: Every mutant is tried with the first before any with the second.
        share: Which part of the mutants, and of how many, when several processes share the work.
    """
    families: dict[str, dict[str, Any]] = defaultdict(
        lambda: {"planted": 0, "tried": 0, "killed": 0, "runs": 0, "survivors": []}
    )
    for name, wrong in WRONG.items():
        row = families[f"extension {name}"]
        for function in wrong[share[0] :: share[1]]:
            found = ledger.run(f"{function.__name__}-quick", partial(_fails_one, function, name))
            row["planted"] += 1
            row["tried"] += found is not None
            row["killed"] += bool(found)
            row["runs"] += found is not None
            row["survivors"] += [function.__name__] if found is False else []
    mine = list(MUTANTS.values())[share[0] :: share[1]]
    runs: dict[str, dict[int, str]] = {mutant.id: {} for mutant in mine}
    for seed in range(seeds):
        for id, found in kill_jointly(ledger, mine, effort, seed, share).items():
            runs[id][seed] = found
    for mutant in mine:
        row, tried = families[mutant.family], runs[mutant.id]
        row["planted"] += 1
        row["tried"] += bool(tried)
        row["killed"] += bool(tried) and all(tried.values())
        row["runs"] += len(tried)
        row["survivors"] += [f"{mutant.id}, seed {s}" for s, found in tried.items() if not found]
    return dict(families)


def _fails_one(function: Callable[..., Any], name: str) -> bool:
    """Whether an implementation of an extension fails anything at quick effort."""
    extension = EXTENSIONS[name]
    entries = [*extension.properties, *(PROPERTIES[id] for id in extension.select)]
    for variant in extension.variants:
        subject = Subject(
            variant.adapt(function),
            capabilities=extension.capabilities,
            rules=variant.rules,
            original=function,
        )
        plan, failure = probe(subject, Plan("quick"))
        subject.refused, subject.dtypes = plan.refused, plan.dtypes
        if failure or any(
            attempt(entry, subject, case)[0] is not None
            for entry in entries
            for case in entry.cases(plan)
        ):
            return True
    return False


def times(ledger: Ledger, efforts: list[str]) -> dict[str, Any]:
    """Time the battery on a correct CPU implementation: float32 alone, and all dtypes."""
    rows: dict[str, Any] = {}
    for effort in efforts:
        for label, capabilities in (
            ("float32", Capabilities(dtypes=("float32",))),
            ("all dtypes", Capabilities()),
        ):
            found = ledger.run(f"time-{effort}-{label}", partial(one_time, effort, capabilities))
            if found is not None:
                rows[f"{effort}, {label}"] = found | {
                    "limit": LIMITS.get(effort) if label == "float32" else None
                }
    return rows


def one_time(effort: str, capabilities: Capabilities) -> dict[str, float]:
    """Time one run of the battery."""
    wall, cpu = time.perf_counter(), time.process_time()
    check_attention(einsum_attention, effort=effort, capabilities=capabilities)
    return {
        "wall seconds": round(time.perf_counter() - wall, 2),
        "cpu seconds": round(time.process_time() - cpu, 2),
        "threads": torch.get_num_threads(),
    }


def passes_unseen(dtype: str) -> dict[str, float]:
    """Find the largest relative error of each kind that no case of a small design notices."""

    def planted(change: Callable[[Any], Any], finish: Callable[[Tensor], Tensor]) -> Any:
        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            wide = torch.float64 if q.dtype == torch.float64 else torch.float32
            call = SimpleNamespace(q=q.to(wide), k=k.to(wide), v=v.to(wide), f=q.shape[-1] ** -0.5)
            change(call)
            return finish(einsum_attention(call.q, call.k, call.v, scale=call.f)).to(q.dtype)

        return attention

    kinds: dict[str, Callable[[float], Callable[..., Tensor]]] = {
        "output times 1 + x": lambda x: planted(lambda _: None, lambda out: out * (1 + x)),
        "scale times 1 + x": lambda x: planted(
            lambda c: setattr(c, "f", c.f * (1 + x)), lambda out: out
        ),
        "one key's value times 1 + x": lambda x: planted(
            lambda c: c.v[..., -1, :].mul_(1 + x), lambda out: out
        ),
    }
    base = Case(batch=2, kv_heads=4, n_query=64, n_key=64, size=64, value_size=64, dtype=dtype)
    cases = [base, replace(base, content="offset values"), replace(base, content="positive")]
    found = {}
    for name, make in kinds.items():
        x = 1e-15
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
        accuracy_bias(subject, case)
    except Violation:
        return True
    return False


def main(argv: list[str] | None = None) -> int:
    """Measure, write ``results/conformance.json``, print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conformance", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="quick effort, two seeds")
    parser.add_argument("--only", choices=SECTIONS, help="measure one section")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no run after this time")
    parser.add_argument("--default-seeds", type=int, default=20, help="of correct implementations")
    parser.add_argument("--share", default="0/1", help="which part of the runs, as 0/2 or 1/2")
    chosen = parser.parse_args(argv)
    efforts = {"quick": 2} if chosen.quick else {"default": chosen.default_seeds, "quick": 20}
    effort = "quick" if chosen.quick else "default"
    part, parts = (int(number) for number in chosen.share.split("/"))
    ledger = Ledger(chosen.minutes)
    sections: dict[str, Callable[[], Any]] = {
        "errors": lambda: {d: passes_unseen(d) for d in DTYPES},
        "times": lambda: times(ledger, ["quick"] if chosen.quick else ["quick", "default"]),
        "mutants": lambda: kill_all(ledger, effort, 1 if chosen.quick else 3, (part, parts)),
        "alarms": lambda: alarms(ledger, efforts, (part, parts)),
    }
    path = RESULTS / "conformance.json"
    data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    data.pop("machine", None)
    for name in [chosen.only] if chosen.only else SECTIONS:
        data[name] = sections[name]()
        write_results("conformance", data)  # after each: a long run may be cut short
    write_page(json.loads(path.read_text()))  # in the order in which the file has it
    return verdict(data, ledger.missing)


def verdict(data: Mapping[str, Any], missing: int) -> int:
    """Print the table; return the exit code."""
    for family, row in data.get("mutants", {}).items():
        count = f"{row['killed']:3} / {row['tried']:3} of {row['planted']:3}"
        print(f"{family:28} {count}  {', '.join(row['survivors'])}")
    for name, row in data.get("alarms", {}).items():
        print(f"{name:28} {dict(row['seeds'])}  {len(row['false alarms'])} false alarms")
    timed = data.get("times", {})
    for label, row in timed.items():
        print(f"{label:28} {row['wall seconds']:6.1f} s  (limit {row['limit']})")
    survived = any(row["survivors"] for row in data.get("mutants", {}).values())
    alarmed = any(row["false alarms"] for row in data.get("alarms", {}).values())
    late = any(row["limit"] and row["wall seconds"] > row["limit"] for row in timed.values())
    if missing and not (survived or alarmed):
        print(f"{missing} runs are left: start again")
        return 3
    return int(survived or alarmed or late)


if __name__ == "__main__":
    raise SystemExit(main())
