"""Whole models against attention's promises: architectures, planted bugs, time.

``python -m benchmarks.model_checks [--quick] [--only NAME ...] [--lines FILE]``

Every architecture runs small, with random weights, in float32 and bfloat16, in its own backend and
in eager, and is told nothing but the model. Every planted bug must be caught by the promise that it
breaks; the models that bugs are planted in must pass without them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

from benchmarks._measure import RESULTS, write_results

SECONDS: Final = 60
"""Most time for one architecture."""

QUICK: Final = ("llama", "gpt2", "bert", "t5", "vit", "mistral", "falcon", "modernbert")
ROUNDS: Final = 3
SHORT: Final = {"float32": "f32", "bfloat16": "bf16"}
BROKEN: Final = ("failed", "error")


def main(argv: list[str] | None = None) -> int:
    """Run all; 1 if a planted bug is missed or a sound model alarms."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model_checks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="eight architectures")
    parser.add_argument("--only", nargs="*", default=None, help="architectures by name")
    parser.add_argument("--lines", type=Path, default=RESULTS / "model_checks.jsonl")
    chosen = parser.parse_args(argv)
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    from benchmarks._promises_sweep import FAMILIES

    torch.set_num_threads(1)
    names = chosen.only or (QUICK if chosen.quick else FAMILIES)
    rows = _architectures(list(names), chosen.lines)
    mutants, sound = _mutants()
    times = _times()
    print(_table(rows))
    print(_mutant_table(mutants))
    print("seconds for the whole set:", times)
    if chosen.only is None and not chosen.quick:
        held = {"architectures": rows, "mutants": mutants, "sound": sound, "seconds": times}
        write_results("model_checks", {**held, "totals": _totals(rows, mutants)})
    missed = [m["bug"] for m in mutants if not m["caught"]]
    return int(bool(missed) or any(sound.values()))


def _architectures(names: list[str], lines: Path) -> list[dict[str, Any]]:
    """Judge architectures; what the file of lines holds is not run again."""
    from benchmarks._promises_sweep import swept

    held = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    found = {row["family"]: row for row in held}

    def late(*_: object) -> None:
        raise TimeoutError(f"takes more than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    for name in names:
        if name in found:
            continue
        signal.alarm(SECONDS)
        try:
            row = swept(name)
        except Exception as error:
            row = {"family": name, "built": "", "why": f"{type(error).__name__}: {error}"[:200]}
        finally:
            signal.alarm(0)
        found[name] = row
        with lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return [found[name] for name in names]


def _mutants() -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Plant every bug; also judge each model without any."""
    from attncheck import check_model
    from benchmarks._promises_mutants import MUTANTS
    from benchmarks._promises_planting import sound

    families = list(dict.fromkeys(mutant.family for mutant in MUTANTS))
    clean = {
        family: [outcome.id for outcome in check_model(sound(family), raises=False).failures]
        for family in families
    }
    rows = []
    for mutant in MUTANTS:
        model = sound(mutant.family)
        mutant.plant(model)
        report = check_model(model, raises=False)
        alarms = [outcome.id for outcome in report.failures if outcome.status == "failed"]
        layers = [
            dict(outcome.finding.facts).get("layer", "")
            for outcome in report.failures
            if outcome.id == mutant.promise and outcome.finding is not None
        ]
        rows.append(
            {
                "bug": mutant.name,
                "model": mutant.family,
                "promise": mutant.promise,
                "caught": mutant.promise in alarms,
                "alarms": alarms,
                "layer": layers[0].removesuffix(" parts first") if layers else "",
            }
        )
    return rows, clean


def _times() -> dict[str, float]:
    """Median seconds of the whole set on each small model."""
    from attncheck import check_model
    from benchmarks._promises_planting import SIZES, sound

    found = {}
    for family in SIZES:
        model, spent = sound(family), []
        check_model(model, raises=False)
        for _ in range(ROUNDS):
            start = time.perf_counter()
            check_model(model, raises=False)
            spent.append(time.perf_counter() - start)
        found[family] = round(statistics.median(spent), 3)
    return found


def _totals(rows: list[dict[str, Any]], mutants: list[dict[str, Any]]) -> dict[str, Any]:
    """Count what came out."""
    built = [row for row in rows if row["built"]]
    promises: dict[str, Counter[str]] = {}
    for row in built:
        for run in row["runs"].values():
            for name, outcome in run["outcomes"].items():
                promises.setdefault(name, Counter())[outcome["status"]] += 1
    return {
        "architectures": len(built),
        "not built": [row["family"] for row in rows if not row["built"]],
        "runs": sum(bool(run["outcomes"]) for row in built for run in row["runs"].values()),
        "with alarms": [row["family"] for row in built if _alarms(row)],
        "promises": {name: dict(counts) for name, counts in promises.items()},
        "bugs planted": len(mutants),
        "bugs caught": sum(mutant["caught"] for mutant in mutants),
    }


def _alarms(row: dict[str, Any]) -> dict[str, list[str]]:
    """Promises that an architecture breaks, with the runs in which it does."""
    found: dict[str, list[str]] = {}
    for run, held in row.get("runs", {}).items():
        for name, outcome in held["outcomes"].items():
            if outcome["status"] in BROKEN:
                found.setdefault(name, []).append(" ".join(SHORT.get(w, w) for w in run.split()))
    return found


def _table(rows: list[dict[str, Any]]) -> str:
    """One line for each architecture: how many promises it makes, and what it breaks."""
    lines = []
    for row in rows:
        if not row["built"]:
            lines.append(f"{row['family']:22} not built: {row['why'][:60]}")
            continue
        statuses = [o["status"] for r in row["runs"].values() for o in r["outcomes"].values()]
        passed = statuses.count("passed")
        alarms = "; ".join(f"{name} ({', '.join(runs)})" for name, runs in _alarms(row).items())
        lines.append(f"{row['family']:22} {len(row['runs'])} runs, {passed:3} kept  {alarms}")
    return "\n".join(lines)


def _mutant_table(mutants: list[dict[str, Any]]) -> str:
    return "\n".join(
        f"{'caught' if m['caught'] else 'MISSED':7} {m['bug']:52} {m['model']:8} "
        f"{', '.join(m['alarms'])}"
        for m in mutants
    )


if __name__ == "__main__":
    sys.exit(main())
