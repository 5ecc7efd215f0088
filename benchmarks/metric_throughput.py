"""Speed of the measures and generators against the classic way, one matrix and one loop at a time.

Run ``python -m benchmarks.metric_throughput [--quick] [--threads 2]``; it prints a table and writes
``results/metric_throughput.json``, also of a CUDA device if there is one. The classic functions are
written out here: NumPy statistics of a single matrix and the name of its pattern (wrong for causal
heads, half precision and padding, see the README), called in a loop over heads, and a generator
that fills its matrix cell by cell. Row measures are told twice: as `measure_layer` runs them, by
compiled loops where numba is installed, and block by block with torch and NumPy.

How near to ``weights.sum()`` torch and NumPy can come is measured in the same run: the floor reads
every weight once and takes, of what a causal head sees, the logarithm and the two products that
entropy and participation need, in blocks that stay in cache, with nothing checked and no row
summed in float64.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attncheck.attention import as_attention
from attncheck.evaluate import profile_attention
from attncheck.metrics import (
    METRICS,
    Metric,
    compute_attention_statistics,
    head_similarity,
    measure_layer,
)
from attncheck.metrics.metric import measure_in_blocks
from attncheck.patterns import classify_heads, collect_evidence, create_synthetic_attention
from benchmarks._measure import (
    cuda_available,
    interleave,
    machine,
    median_ratio,
    peak_memory,
    write_results,
)

MODELS = ((1, 4, 512), (4, 9, 512), (12, 12, 512))
"""Layers, heads, positions: from 4 heads to those of a small language model, 144."""

LARGE = (12, 12, 2048)
"""Also on a GPU: 2.4 GB, beside which a launch counts for little; no loops over heads."""

SUM = "weights.sum()"
"""One pass over memory, the least that any measure can cost."""

CLASSIC_STATISTICS = "classic statistics, loop over heads"
CLASSIC = "classic statistics and names, loop over heads"

FLOOR = "floor: one read, one logarithm of visible keys"
FLOOR_ROWS = 128
"""Queries in a block of the floor."""

Functions = dict[str, Callable[[], object]]


def classic_statistics(attention: Tensor) -> dict[str, float]:
    """Eleven statistics of one matrix: log with an epsilon, Gini over the flattened matrix."""
    a = attention.cpu().numpy()
    entropy = -np.sum(a * np.log(a + 1e-10), axis=1)
    flat = np.sort(a.flatten())
    ranks = np.arange(1, flat.size + 1)
    highest = float(np.log(a.shape[1]))
    diagonal = np.diag(a)
    return {
        "mean": float(a.mean()),
        "std": float(a.std()),
        "max": float(a.max()),
        "min": float(a.min()),
        "diagonal_mean": float(diagonal.mean()),
        "diagonal_std": float(diagonal.std()),
        "mean_entropy": float(entropy.mean()),
        "max_entropy": highest,
        "normalized_entropy": float(entropy.mean()) / highest,
        "sparsity_gini": float(
            2 * np.sum(ranks * flat) / (flat.size * flat.sum()) - (flat.size + 1) / flat.size
        ),
        "effective_tokens": float(np.exp(entropy).mean()),
    }


def classic_name(attention: Tensor) -> str:
    """Name the pattern of one matrix by fixed thresholds on means."""
    a = attention.cpu().numpy()
    n = a.shape[0]
    diagonal, first = np.mean(np.diag(a)), np.mean(a[:, 0])
    beside = np.mean(a[~np.eye(n, dtype=bool)])
    near = np.abs(np.arange(n)[:, None] - np.arange(n)) <= 2
    local = np.sum(a[near]) / np.sum(a)
    highest = np.max(np.sum(a, axis=0)) / n
    if diagonal > 0.5 and diagonal > 3 * beside:
        return "diagonal"
    if first > 0.4:
        return "beginning_of_sequence"
    if highest > 0.6:
        return "broadcast"
    if local > 0.8:
        return "local"
    return "uniform" if np.std(a) < 0.1 else "mixed"


def classic_local(n: int) -> Tensor:
    """A local pattern, one cell at a time."""
    attention = torch.zeros(n, n)
    for query in range(n):
        for key in range(n):
            attention[query, key] = {0: 0.4, 1: 0.25, 2: 0.1}.get(abs(query - key), 0.01)
    return attention / attention.sum(dim=1, keepdim=True)


def classic_loop(layers: list[Tensor]) -> list[dict[str, float]]:
    return [classic_statistics(head) for layer in layers for head in layer[0]]


def classic_functions(layers: list[Tensor]) -> list[Any]:
    """Both classic functions of every head."""
    heads = [head for layer in layers for head in layer[0]]
    return [(classic_statistics(head), classic_name(head)) for head in heads]


def least_work(layers: list[Tensor]) -> list[Any]:
    """One read of all weights; one logarithm and two products of those that a causal head sees."""
    found: list[Any] = []
    for layer in layers:
        n, heads = layer.shape[-1], layer.shape[1]
        for row in range(0, n, FLOOR_ROWS):
            end = min(row + FLOOR_ROWS, n)
            rows = layer[0, :, row:end]
            seen, held = rows[..., :end], torch.empty(heads, end - row, end)
            logs = torch.clamp_min(seen, 1e-38, out=held).numpy()
            np.log(logs, out=logs)
            weights = seen.numpy()
            found += [rows[..., end:].sum(), np.einsum("hqk,hqk->hq", logs, weights)]
            found += [np.einsum("hqk,hqk->hq", weights, weights)]
    return found


def random_model(layers: int, heads: int, n: int, device: str) -> list[Tensor]:
    """Causal attention weights of random scores."""
    future = torch.full((n, n), -torch.inf, device=device).triu(1)
    torch.manual_seed(0)
    return [
        torch.softmax(torch.randn(1, heads, n, n, device=device) * 3 + future, -1)
        for _ in range(layers)
    ]


def compare(
    title: str, functions: Functions, reference: str, rounds: int, device: str = "cpu"
) -> dict[str, Any]:
    """Time functions, print them, and describe them against the reference."""
    times = interleave(functions, rounds, device)
    print(f"\n{title}, {device}, {rounds} rounds")
    described = {}
    for name, function in functions.items():
        median = statistics.median(times[name])
        ratio = median_ratio(times, name, reference)
        peak = peak_memory(function, device)
        described[name] = {
            "median_s": median,
            "ratio_to_reference": ratio,
            "ratio_to_sum": median_ratio(times, name, SUM) if SUM in times else None,
            "peak_bytes": peak or None,
        }
        memory = f"  peak {peak / 2**20:.0f} MiB" if peak else ""
        sums = f"{median_ratio(times, name, SUM):>8.1f} sums" if SUM in times else ""
        print(f"  {name:<44}{median * 1e3:>12.3f} ms{ratio:>11.4f} x{sums}{memory}")
    return {"device": device, "reference": reference, "rounds": rounds, "functions": described}


def model_functions(model: list[Tensor]) -> Functions:
    maps = as_attention(model)
    unsorted = [metric for metric in METRICS.values() if not metric.sorts]

    def measure(metrics: Iterable[Metric], way: Any = measure_layer) -> None:
        for layer in maps.layers:
            way(layer, metrics)

    def collect() -> None:
        for layer in maps.layers:
            collect_evidence(layer)

    return {
        SUM: lambda: [layer.sum() for layer in model],
        CLASSIC_STATISTICS: lambda: classic_loop(model),
        CLASSIC: lambda: classic_functions(model),
        **({FLOOR: lambda: least_work(model)} if model[0].device.type == "cpu" else {}),
        "compute_attention_statistics": lambda: compute_attention_statistics(model),
        f"the {len(unsorted)} row measures that do not sort": lambda: measure(unsorted),
        "the same, block by block": lambda: measure(unsorted, measure_in_blocks),
        f"all {len(METRICS)} row measures, Gini with them": lambda: measure(METRICS.values()),
        "pattern evidence": collect,
        "classify_heads": lambda: classify_heads(model),
        "profile_attention (measures and patterns)": lambda: profile_attention(model),
        "head_similarity within layers": lambda: head_similarity(model, within_layers=True),
    }


def measure_models(quick: bool, rounds: int) -> dict[str, Any]:
    results = {}
    cases = [(case, "cpu") for case in (((2, 4, 128),) if quick else MODELS)]
    if cuda_available():
        cases += [(case, "cuda") for case, _ in cases] + ([] if quick else [(LARGE, "cuda")])
    for (layers, heads, n), device in cases:
        functions = model_functions(random_model(layers, heads, n, device))
        reference = CLASSIC_STATISTICS
        if (layers, heads, n) == LARGE:
            reference, slow = SUM, (CLASSIC_STATISTICS, CLASSIC)
            functions = {name: run for name, run in functions.items() if name not in slow}
        results[f"{layers * heads} heads of {n}x{n}, {device}"] = compare(
            f"{layers * heads} heads of {n} x {n}", functions, reference, rounds, device
        )
    return results


def measure_single_matrices(quick: bool, rounds: int) -> dict[str, Any]:
    results = {}
    for n in (64,) if quick else (16, 64, 256, 1024):
        head = random_model(1, 1, n, "cpu")[0][0, 0]
        functions: Functions = {
            "classic statistics": lambda head=head: classic_statistics(head),
            "compute_attention_statistics": lambda head=head: compute_attention_statistics(head),
        }
        results[f"one matrix, {n}"] = compare(
            f"one matrix {n} x {n}", functions, "classic statistics", rounds
        )
    return results


def measure_generators(quick: bool, rounds: int) -> dict[str, Any]:
    results = {}
    for n in (64,) if quick else (64, 256, 512):
        functions: Functions = {
            "classic local, cell by cell": lambda n=n: classic_local(n),
            "create_synthetic_attention('local')": lambda n=n: create_synthetic_attention(
                n, "local", noise_level=0.0
            ),
        }
        results[f"local pattern, {n}"] = compare(
            f"local pattern {n} x {n}", functions, "classic local, cell by cell", rounds
        )
    return results


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds, no file")
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    options = parser.parse_args()
    quick = options.quick
    if options.threads:
        torch.set_num_threads(options.threads)
    rounds = 3 if quick else 7
    with torch.inference_mode():
        results = {
            "models": measure_models(quick, rounds),
            "single_matrices": measure_single_matrices(quick, 5 * rounds),
            "generators": measure_generators(quick, rounds),
        }
    found = machine()
    print(f"\n{found['cpu']}, torch {found['versions']['torch']}, gpu {found['gpu']}")
    if not quick:
        print(f"written to {write_results('metric_throughput', results)}")


if __name__ == "__main__":
    main()
