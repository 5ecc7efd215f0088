"""How often heads get their right name: ``python -m benchmarks.detector_accuracy [--quick]``.

Three families of matrices. ``own``: `create_synthetic_attention`, on which thresholds were tuned
(with other seeds). ``judge``: generators that share no code with it (`_pattern_families`).
``classic``: the six generators of tutorials on attention plots, where their pattern holds at least
a tenth of the mass, with the detector that goes with them as a baseline on all three.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import product
from typing import Any, Final

import numpy as np
import torch

from attncheck.patterns import (
    PATTERNS,
    classify_heads,
    create_synthetic_attention,
    tokens_with_repeats,
)
from benchmarks._measure import interleave, median_ratio, write_results
from benchmarks._pattern_families import (
    CLASSIC,
    JUDGES,
    Case,
    classic_case,
    classic_detector,
    classic_signal,
    judge_case,
)

LENGTHS: Final = (8, 12, 16, 32, 64, 128, 256, 512)
NOISES: Final = ("none", "uniform", "dirichlet", "logit")
WITH_TOKENS: Final = ("duplicate_token", "induction", "delimiter")
JUDGED: Final = (*JUDGES, *WITH_TOKENS, "dominated")


def own_case(name: str, n: int, causal: bool, noise: str, rng: np.random.Generator) -> Case:
    """Draw one matrix from the library's own generator, with random options."""
    strength = rng.uniform(0.6, 1) if name in ("mixed", "heterogeneous") else rng.uniform(0.25, 1)
    options: dict[str, Any] = {"strength": strength}
    tokens: list[Any] | None = None
    if name == "offset":
        step = int(rng.integers(2, max(3, min(n // 2, 20))))
        options["offset"] = step if causal or rng.random() < 0.5 else -step
    elif name == "local":
        options["width"] = int(rng.integers(1, max(2, min(8, n // 4) + 1)))
        narrow = causal and options["width"] == 1
        options["decay"] = 1.0 if narrow else rng.uniform(0.6, 1)
    elif name == "broadcast":
        options["column"] = int(rng.integers(1, n // 2))
    elif name == "block":
        options["segments"] = int(rng.integers(2, min(6, n // 4) + 1))
    elif name == "heterogeneous":
        options["keys"] = int(rng.integers(1, 3))
    elif name == "mixed":
        pair = (rng.choice(["first_token", "broadcast"]), rng.choice(["diagonal", "prev"]))
        share = rng.uniform(0.45, 0.55)
        options |= {"patterns": tuple(map(str, pair)), "weights": (share, 1 - share)}
    elif name in ("duplicate_token", "induction"):
        tokens = tokens_with_repeats(n)
    elif name == "delimiter":
        tokens = ["." if rng.random() < 0.2 else "x" for _ in range(n)]
        tokens[n // 3] = tokens[n // 2 + 1] = "."
    level = {"none": 0.0, "uniform": 0.2, "dirichlet": 0.2, "logit": 1.0}[noise]
    weights = create_synthetic_attention(
        n,
        name,
        level * rng.uniform(0.25, 1),
        causal=causal,
        tokens=tokens,
        noise="uniform" if noise == "none" else noise,  # type: ignore[arg-type]
        seed=int(rng.integers(1 << 31)),
        dtype=torch.float64,
        **options,
    )
    return Case(weights.numpy(), name, causal, noise, tokens)


def own_cases(repeats: int, seed: int, lengths: tuple[int, ...] = LENGTHS) -> Iterator[Case]:
    """Yield the grid of the library's own family."""
    names = (*PATTERNS, "mixed", "heterogeneous")
    grid = product(enumerate(names), (False, True), lengths, enumerate(NOISES), range(repeats))
    for (number, name), causal, n, (kind, noise), repeat in grid:
        if not (name == "next_token" and causal):
            rng = np.random.default_rng([seed, number, causal, n, kind, repeat])
            yield own_case(name, n, causal, noise, rng)


def judge_cases(repeats: int, seed: int, lengths: tuple[int, ...] = LENGTHS) -> Iterator[Case]:
    """Yield the grid of the judging family; ``dominated`` cases carry the name of their leader."""
    grid = product(enumerate(JUDGED), (False, True), lengths, enumerate(NOISES), range(repeats))
    for (number, name), causal, n, (kind, noise), repeat in grid:
        if not (name == "next_token" and causal):
            rng = np.random.default_rng([seed, 1000 + number, causal, n, kind, repeat])
            yield judge_case(name, n, causal, noise, rng)


def classic_cases(repeats: int, lengths: tuple[int, ...] = LENGTHS) -> Iterator[Case]:
    """Yield the valid classic matrices whose pattern holds at least a tenth of the mass."""
    for name, n, noise, repeat in product(CLASSIC, lengths, (0.0, 0.05, 0.2), range(repeats)):
        case = classic_case(name, n, noise, np.random.default_rng([n, repeat, int(noise * 100)]))
        if case.weights.min() >= 0 and classic_signal(name, n, noise) >= 0.1:
            yield case


def rejected_share(repeats: int) -> float:
    """Share of the invalid classic matrices (negative weights) that raise an error."""
    raised = total = 0
    for n, noise, repeat in product(LENGTHS, (0.0, 0.05, 0.2), range(repeats)):
        case = classic_case("bos", n, noise, np.random.default_rng([n, repeat]))
        if case.weights.min() < 0:
            total += 1
            try:
                classify_heads(torch.from_numpy(case.weights))
            except ValueError:
                raised += 1
    return raised / total


def label_of(case: Case) -> str:
    """Name a case with attncheck."""
    weights = torch.from_numpy(case.weights)
    return classify_heads(weights, tokens=case.tokens, causal=case.causal)[0].label


def evaluate(cases: Iterator[Case]) -> dict[str, Any]:
    """Name every case with both detectors; return accuracies and the confusion matrix."""
    confusion: dict[str, Counter[str]] = defaultdict(Counter)
    baseline: dict[str, list[bool]] = defaultdict(list)
    cells: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for case in cases:
        label = label_of(case)
        confusion[case.label][label] += 1
        baseline[case.label].append(classic_detector(case.weights) == case.label)
        for key in (f"noise {case.noise}", f"n {case.n}", f"causal {case.causal}"):
            cells[key][case.label].append(label == case.label)
    accuracy = {name: row[name] / row.total() for name, row in confusion.items()}
    return {
        "matrices": sum(row.total() for row in confusion.values()),
        "macro": float(np.mean(list(accuracy.values()))),
        "baseline_macro": float(np.mean([np.mean(held) for held in baseline.values()])),
        "per_pattern": accuracy,
        "cells": {
            key: float(np.mean([np.mean(held) for held in by_label.values()]))
            for key, by_label in cells.items()
        },
        "confusion": {name: dict(row) for name, row in confusion.items()},
    }


def show(title: str, result: dict[str, Any]) -> None:
    """Print accuracies and the confusion matrix."""
    print(
        f"\n{title}: {result['matrices']} matrices, macro accuracy {result['macro']:.3f} "
        f"(classic detector {result['baseline_macro']:.3f})"
    )
    print("  " + "  ".join(f"{key} {value:.3f}" for key, value in result["cells"].items()))
    for name, row in result["confusion"].items():
        ranked = sorted(row.items(), key=lambda item: -item[1])
        told = ", ".join(f"{label} {count}" for label, count in ranked)
        print(f"  {name:16s} {result['per_pattern'][name]:.3f}  {told}")


def false_positives(heads: int) -> dict[str, float]:
    """Share of even heads under logit noise of sigma 1 that get another name than uniform."""
    rates = {}
    for n, causal in product(LENGTHS[:6], (False, True)):
        weights = create_synthetic_attention(
            n, "uniform", 1.0, noise="logit", causal=causal, heads=heads, seed=10_000 + n
        )
        labels = [held.label for held in classify_heads(weights, causal=causal)]
        wrong = sum(label in PATTERNS and label != "uniform" for label in labels)
        rates[f"n {n} {'causal' if causal else 'bidirectional'}"] = wrong / heads
    return rates


def timing(rounds: int) -> dict[str, Any]:
    """Time one call for 144 heads of 512 x 512 against a loop of the classic detector."""
    kinds = ("first_token", "previous_token", "local", "block", "uniform", "heterogeneous")
    weights = torch.cat(
        [create_synthetic_attention(512, kind, 0.2, causal=True, heads=24) for kind in kinds]
    )
    arrays = weights.numpy()
    times = interleave(
        {
            "classify_heads": lambda: classify_heads(weights, causal=True),
            "classic_loop": lambda: [classic_detector(head) for head in arrays],
        },
        rounds,
    )
    return {
        "heads": len(weights),
        "seconds": {name: float(np.median(held)) for name, held in times.items()},
        "ratio": median_ratio(times, "classify_heads", "classic_loop"),
    }


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark, print, and write ``results/detector_accuracy.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small grid, nothing written")
    quick = parser.parse_args(arguments).quick
    start = time.perf_counter()
    lengths = LENGTHS[:5] if quick else LENGTHS
    repeats = 1 if quick else 4
    results: dict[str, Any] = {
        "own": evaluate(own_cases(repeats, seed=2024, lengths=lengths)),
        "judge": evaluate(judge_cases(repeats, seed=2025, lengths=lengths)),
        "classic": evaluate(classic_cases(repeats, lengths=lengths)),
    }
    for family, result in results.items():
        show(family, result)
    results["rejected_invalid"] = rejected_share(repeats)
    results["false_positives"] = false_positives(100 if quick else 1000)
    results["timing"] = timing(1 if quick else 3)
    print(f"\ninvalid classic matrices rejected: {results['rejected_invalid']:.3f}")
    print("even heads named as a pattern:", results["false_positives"])
    print("time:", results["timing"])
    print(f"total {time.perf_counter() - start:.0f} s")
    if not quick:
        print("written:", write_results("detector_accuracy", results))


if __name__ == "__main__":
    main()
