"""The tables of docs/benchmarks.md, out of the result files: ``python -m benchmarks._page``.

Every benchmark that writes a result file writes them anew; after a merge, or an edit by hand, do so
with this command (or ``make page``). A test compares them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from attncheck.benchmark import PLAIN
from benchmarks import _measure

PAGE: Final = Path(__file__).parent.parent / "docs" / "benchmarks.md"
BEGIN: Final = "<!-- measured: begin (python -m benchmarks._page writes this) -->"
END: Final = "<!-- measured: end -->"
NAMES: Final = {"gpt2": "GPT-2 small's shape", "llama": "Llama with grouped queries"}
LAYER_LIMITS: Final = {"causal": 1.2, "grouped keys": 1.5, "padding": 1.5, "window": 1.5}
NOT_MEASURED: Final = "not measured"


def held(name: str) -> Any:
    path = _measure.RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def verdict(measured: float | None, limit: float, unit: str = " x") -> tuple[str, str]:
    """What was measured, and whether it is at most the limit."""
    if measured is None:
        return NOT_MEASURED, "open"
    return f"{measured:.2f}{unit}", "met" if measured <= limit else "**missed**"


def targets() -> list[tuple[str, str, str, str]]:
    """Each target: what, limit, measured, verdict."""
    rows: list[tuple[str, str, str, str]] = []
    model = held("profile_without_matrix_model").get("lengths", {})
    layer = held("profile_without_matrix_layer").get("lengths", {})
    for n, limit in ((1024, 1.2), (2048, 1.2), (8192, 1.35)):
        found = model.get(str(n))
        name = f"profile by plain forward, GPT-2 small's shape, n = {n}"
        rows.append((name, f"{limit} x", *verdict(found and found["ratio"], limit)))
        if found and n <= 2048:
            peaks = found["peak bytes"]
            above = (peaks["profile"] - peaks[PLAIN]) / 1e6
            what = f"its memory above the plain forward, n = {n}"
            rows.append((what, "8 MB", *verdict(above, 8, " MB")))
    for n in (2048, 8192):
        for name, limit in LAYER_LIMITS.items():
            found = layer.get(str(n), {}).get(name)
            what = f"measures of one layer by its attention call, {name}, n = {n}"
            rows.append((what, f"{limit} x", *verdict(found and found["ratio"], limit)))
    return [*rows, *dense_targets(), *gpu_targets()]


def dense_targets() -> list[tuple[str, str, str, str]]:
    case = held("metric_throughput").get("models", {}).get("144 heads of 512x512, cpu", {})
    functions = case.get("functions", {})
    nine = functions.get("the 9 row measures that do not sort")
    rows = []
    name = "row measures that do not sort by one `weights.sum()`, 144 heads of 512 x 512"
    rows.append((name, "5 x", *verdict(nine and nine["ratio_to_sum"], 5)))
    classic = functions.get("classic statistics and names, loop over heads")
    faster = classic["median_s"] / nine["median_s"] if nine and classic else None
    shown = (NOT_MEASURED, "open")
    if faster is not None:
        shown = f"{faster:.1f} x", "met" if faster >= 30 else "**missed**"
    rows.append(("the same, faster than the classic functions", "at least 30 x", *shown))
    return rows


def gpu_targets() -> list[tuple[str, str, str, str]]:
    lengths = held("profile_without_matrix_layer_cuda").get("lengths", {})
    if not lengths:
        what = "GPU: profile by flash attention, bfloat16, n = 8k to 128k"
        return [(what, "2 x", NOT_MEASURED, "open (no result on a GPU yet)")]
    return [
        (
            f"GPU: measures of one layer by flash attention, bfloat16, n = {n}",
            "2 x",
            *verdict(found["causal"]["ratio"], 2),
        )
        for n, found in lengths.items()
    ]


def text() -> str:
    """The whole measured part."""
    lines = ["", "| target | at most | measured | |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in targets()]
    for kind in ("", "_cuda"):
        lines += extraction(f"extraction{kind}")
    for kind in ("", "_cuda"):
        lines += column_sums(held(f"column_sums{kind}"))
    return "\n".join([*lines, ""])


def extraction(file: str) -> list[str]:
    """Time and memory of each way on each model."""
    data, lines = held(file), []
    for name, costs in data.get("models", {}).items():
        lengths = sorted({cost["length"] for cost in costs})
        ways = dict.fromkeys(cost["way"] for cost in costs)
        by = {(cost["way"], cost["length"]): cost for cost in costs}
        where = "" if data["device"] == "cpu" else f", {data['machine']['gpu']}"
        lines += ["", f"### {NAMES[name]}{where}", ""]
        lines += ["Time by the plain forward, and peak memory of the call:", ""]
        lines += table(
            [f"n = {n}" for n in lengths],
            {way: [cell(by.get((way, n))) for n in lengths] for way in ways},
        )
        for left in data.get("left_out", {}).get(name, []):
            lines += ["", f"From n = {left['length']}, {left['way']}: {left['reason']}."]
        lines += ["", f"![time and memory against the length](img/{file}_{name}.png)"]
    return [*lines, "", origin(data)] if data else []


def column_sums(data: Any) -> list[str]:
    """Time of each way of summing columns."""
    if not data:
        return []
    found = data["lengths"]
    ways = dict.fromkeys(way for one in found.values() for way in one["ways"])
    ratios = {
        way: [
            f"{one['ways'][way]['ratio']:.2f} x" if way in one["ways"] else ""
            for one in found.values()
        ]
        for way in ways
    }
    where = "" if data["device"] == "cpu" else f", {data['machine']['gpu']}"
    lines = ["", f"### Column sums of one layer{where}", ""]
    lines += ["Time by one call of attention:", ""]
    return [*lines, *table([f"n = {n}" for n in found], ratios), "", origin(data)]


def table(columns: list[str], rows: dict[str, list[str]]) -> list[str]:
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    return lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]


def origin(data: Any) -> str:
    """Where and with what a result was measured."""
    machine = data["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if k in SHOWN)
    rounds = data.get("rounds", 5)
    return (
        f"{machine['cpu']}, {machine['torch_threads']} threads, {versions}; "
        f"medians of {rounds} interleaved rounds."
    )


SHOWN: Final = ("torch", "transformers")


def cell(cost: dict[str, Any] | None) -> str:
    if cost is None:
        return ""
    seconds = f"{1e3 * cost['seconds']:.0f} ms, " if cost["way"] == PLAIN else ""
    memory = "" if cost["peak_bytes"] is None else f", {cost['peak_bytes'] / 1e6:.0f} MB"
    return f"{seconds}{cost['ratio']:.2f} x{memory}"


def page() -> str:
    """The page with its measured part anew."""
    old = PAGE.read_text(encoding="utf-8")
    return old[: old.index(BEGIN) + len(BEGIN)] + "\n" + text() + "\n" + old[old.index(END) :]


def write() -> None:
    """Write the page anew."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write()
