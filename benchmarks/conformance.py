"""The conformance battery judged: mutants killed, false alarms, time, and what the rule lets by.

``python -m benchmarks.conformance [--quick]``. Finished runs are kept in ``build/conformance``,
under a fingerprint of the battery and of what it is tried on, so that an interrupted sweep goes on
where it ended: ``--only alarms --minutes 8`` does some, and says so with exit code 3. The exit code
is 1 when a mutant survives, a correct implementation fails anything but its known failures, or the
battery exceeds its time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch import Tensor

from attncheck.conformance import Capabilities, check_attention
from attncheck.conformance.battery import select_properties
from attncheck.conformance.case import Case
from attncheck.conformance.design import Plan
from attncheck.conformance.examine import agrees
from attncheck.conformance.probe import probe
from attncheck.conformance.properties.bias import accuracy_bias
from attncheck.conformance.run import attempt
from attncheck.conformance.subject import Subject, Violation
from benchmarks._conformance_joint import probed, run_jointly, unit_key
from benchmarks._measure import RESULTS, write_results
from tests.conformance.extended import RIGHT, WRONG
from tests.conformance.implementations import IMPLEMENTATIONS, einsum_attention
from tests.conformance.mutants import MUTANTS, Mutant
from tests.conformance.unusual import UNUSUAL

SECTIONS: Final = ("errors", "times", "mutants", "alarms")
DTYPES: Final = ("float64", "float32", "float16", "bfloat16")
NO_VERDICT: Final = ("report.py", "pytest_door.py", "reproduce.py", "diagnose.py", "mistakes.py")
LIMITS = {"quick": 10.0, "default": 60.0}
SLOW: Final = ("flex_attention",)  # not compiled, it takes minutes for what others do in seconds
ALONE: Final = (
    "flex_attention", "multi_head_attention_forward", "nn.MultiheadAttention",
    "transformers eager", "transformers sdpa",
)  # fmt: skip
"""Implementations that support too little to be given the inputs of all others."""
CORRECT: Final = {**IMPLEMENTATIONS, **UNUSUAL}


class Ledger:
    """Results of finished runs, on disk.

    Args:
        minutes: Time after which no further run is begun.
        root: Where the sources are, and ``build``.
    """

    def __init__(self, minutes: float, root: Path = Path(__file__).parents[1]) -> None:
        digest = hashlib.sha256()
        for folder in ("attncheck/conformance", "tests/conformance"):
            for path in sorted((root / folder).rglob("*.py")):
                if path.name not in NO_VERDICT and not path.name.startswith("test_"):
                    digest.update(path.read_bytes())
        self.folder = root / "build" / "conformance" / digest.hexdigest()[:12]
        self.lasting = self.folder.with_name("lasting")  # keys that carry a fingerprint themselves
        for folder in (self.folder, self.lasting):
            folder.mkdir(parents=True, exist_ok=True)
        self.end = time.monotonic() + 60 * minutes
        self.missing = 0

    def path(self, key: str, lasting: bool = False) -> Path:
        """Return where the result of a key is kept."""
        folder = self.lasting if lasting else self.folder
        return folder / f"{key.replace(' ', '-').replace('/', '-')}.json"

    def run(self, key: str, work: Callable[[], Any], lasting: bool = False) -> Any:
        """Return the result kept under a key, or of the work; None where no time is left."""
        path = self.path(key, lasting)
        if not path.exists():
            if time.monotonic() > self.end:
                self.missing += 1
                return None
            part = path.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(work()))
            part.replace(path)
        return json.loads(path.read_text())


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
        for mutant in mine:
            work = partial(killer, mutant, effort, seed)
            found = ledger.run(f"{mutant.id}-{effort}-{seed}", work)
            if found is not None:
                runs[mutant.id][seed] = found
    for mutant in mine:
        row, tried = families[mutant.family], runs[mutant.id]
        row["planted"] += 1
        row["tried"] += bool(tried)
        row["killed"] += bool(tried) and all(tried.values())
        row["runs"] += len(tried)
        row["survivors"] += [f"{mutant.id}, seed {s}" for s, found in tried.items() if not found]
    return dict(families)


def _fails_one(function: Callable[..., Any], extension: str) -> bool:
    return not check_attention(function, extension=extension, effort="quick", raises=False).passed


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
        units[entry.id] = ledger.run(key, partial(run_jointly, entry, plan, subjects), lasting=True)
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
                rows[f"{effort}, {label}"] = found | {"limit": LIMITS.get(effort)}
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
