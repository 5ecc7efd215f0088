"""Capture the attention of every model family that can be built offline, and judge each capture.

``python -m benchmarks.capture_sweep [--quick] [--only NAME ...] [--zoo transformers|timm|none]``

Each family runs once in its default backend and once in eager. A verdict is one of

* exact: strict capture passes, eager's weights equal those that the model returns to 1e-5;
* faithful: strict capture passes, the model returns no weights to compare with;
* no attention: the model computes no softmax attention, and capture says so;
* refused: strict capture raises and says why;
* wrong: capture passes but differs from the model, or misses attention that the kernels show;
* not buildable: no small model could be made and run here.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from benchmarks._measure import RESULTS, write_results

SECONDS: Final = 90
"""Most time for one family."""

QUICK: Final = (
    *("albert", "bart", "bert", "bloom", "clip_vision_model", "deberta-v2", "deepseek_v3"),
    *("deit", "distilbert", "falcon", "gemma2", "gpt2", "gpt_neo", "gpt_oss"),
    *("gptj", "llama", "longformer", "mamba", "mistral", "mixtral", "modernbert"),
    *("olmo2", "opt", "phi3", "qwen3", "roberta", "swin", "t5"),
    *("vit", "whisper", "wav2vec2", "xlnet"),
)
"""Families of the quick sweep."""

ZOOS: Final = ("transformers", "timm", "without")


def main(argv: list[str] | None = None) -> int:
    """Run the sweep; 1 if a capture is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capture_sweep", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about thirty families")
    parser.add_argument("--only", nargs="*", default=None, help="families by name")
    parser.add_argument("--zoo", nargs="*", default=list(ZOOS), choices=ZOOS)
    parser.add_argument(
        "--lines",
        type=Path,
        default=RESULTS / "capture_sweep.jsonl",
        help="progress, one family a line; what it holds is not run again",
    )
    parser.add_argument("--worker", nargs="*", help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    if chosen.worker is not None:
        return _work(chosen.worker)
    there = [zoo for zoo in chosen.zoo if zoo == "without" or find_spec(zoo)]
    for zoo in sorted({*chosen.zoo} - {*there}):
        print(f"{zoo}: left out, not installed")
    wanted = [
        (zoo, name)
        for zoo in there
        for name in _names(zoo)
        if (chosen.only is None or name in chosen.only)
        and (not chosen.quick or zoo != "transformers" or name in QUICK)
    ]
    found = _swept(wanted, chosen.lines)
    table = _table(found)
    print(table)
    if chosen.only is None:
        kept = {"families": found, "totals": _totals(found)}
        write_results("capture_sweep", kept)
    return int(any(row["verdict"] == "wrong" for row in found))


def _names(zoo: str) -> list[str]:
    """Ask a worker, so that this process imports neither torch nor the zoos."""
    ran = subprocess.run(
        [*_command(), "--worker", "names", zoo], capture_output=True, text=True, check=True
    )
    return [str(name) for name in json.loads(ran.stdout.strip().splitlines()[-1])]


def _command() -> list[str]:
    return [sys.executable, "-m", "benchmarks.capture_sweep"]


def _work(arguments: list[str]) -> int:
    """Be a worker: judge families, print one line for each."""
    from benchmarks._families_run import names, run

    if arguments[0] == "names":
        print(json.dumps(names(arguments[1])))
        return 0
    for argument in arguments:
        zoo, name = argument.split("=", 1)
        try:
            row = run(zoo, name)
        except Exception as error:
            row = {
                "zoo": zoo,
                "family": name,
                "verdict": "wrong",
                "why": f"{type(error).__name__}: {error}"[:300],
            }
        print(f"ROW {json.dumps(row)}", flush=True)
    return 0


def _swept(wanted: list[tuple[str, str]], lines: Path) -> list[dict[str, Any]]:
    """Judge families in worker processes; what hangs or crashes one costs only itself."""
    lines.parent.mkdir(exist_ok=True)
    held = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    found = {(row["zoo"], row["family"]): row for row in held}
    left = [item for item in wanted if item not in found]
    while left:
        done, why = _batch(left, found, lines)
        if done < len(left) and why:
            zoo, name = left[done]
            row = {"zoo": zoo, "family": name, "verdict": "not buildable", "why": why}
            _note(row, found, lines)
            done += 1
        left = left[done:]
    return [found[item] for item in wanted]


def _batch(
    left: list[tuple[str, str]], found: dict[tuple[str, str], dict[str, Any]], lines: Path
) -> tuple[int, str]:
    """Run one worker until it ends, hangs or dies; return how many it judged, and what ended it."""
    work = [f"{zoo}={name}" for zoo, name in left[:40]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    worker = subprocess.Popen(
        [*_command(), "--worker", *work],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    assert worker.stdout is not None
    os.set_blocking(worker.stdout.fileno(), False)
    done, text, since = 0, b"", time.monotonic()
    while True:
        ended = worker.poll() is not None
        text += worker.stdout.read() or b""
        *whole, text = text.split(b"\n")
        for line in whole:
            if line.startswith(b"ROW "):
                _note(json.loads(line[4:]), found, lines)
                done, since = done + 1, time.monotonic()
        if ended:
            return done, "" if done == len(work) else f"its process ended with {worker.returncode}"
        if time.monotonic() - since > SECONDS:
            worker.kill()
            worker.wait()
            return done, f"takes more than {SECONDS} s"
        time.sleep(0.05)


def _note(row: dict[str, Any], found: dict[tuple[str, str], dict[str, Any]], lines: Path) -> None:
    found[row["zoo"], row["family"]] = row
    with lines.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, sort_keys=True) + "\n")


def _totals(found: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    totals: dict[str, collections.Counter[str]] = {}
    for row in found:
        totals.setdefault(row["zoo"], collections.Counter())[row["verdict"]] += 1
    return {zoo: dict(counts) for zoo, counts in totals.items()}


def _table(found: list[dict[str, Any]]) -> str:
    """One line for each family that was judged, and the totals."""
    lines = []
    for row in found:
        if row["verdict"] == "not buildable":
            continue
        runs = [row[b] for b in ("default", "eager") if b in row and "layers" in row[b]]
        layers = "/".join(str(run["layers"]) for run in runs)
        why = str(row.get("why", "")).splitlines()[:1]
        lines.append(
            f"{row['zoo']:12} {row['family']:32} {row['verdict']:12} {layers:>7} "
            f"{why[0][:90] if why else ''}".rstrip()
        )
    lines += [f"{zoo}: {counts}" for zoo, counts in _totals(found).items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
