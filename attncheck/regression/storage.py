"""Where baselines lie and how they are written: whole or not at all, and only what was asked."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from attncheck.attention import AttentionMaps
from attncheck.errors import BaselineError
from attncheck.profile.storage import write_text
from attncheck.regression.baseline import Baseline, WeightsFile

__all__ = ["FOLDER", "Staged", "baseline_path", "load_weights", "weights_size", "write_staged"]

FOLDER: Final = "__heads__"
LONGEST: Final = 120
"""Characters of a file's stem; file systems allow 255 bytes."""

SAFE: Final = re.compile(r"[a-z0-9_.\-]*")
NAME: Final = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Staged:
    """A baseline that will be written if its test passes.

    Attributes:
        path: The file.
        baseline: What it will hold.
        why: ``"new"``, ``"changed"``, or ``"refreshed"`` for one that had drifted.
        maps: The weights to store beside it, on the CPU.
    """

    path: Path
    baseline: Baseline
    why: Literal["new", "changed", "refreshed"]
    maps: AttentionMaps | None = None


def baseline_path(test_file: Path, test: str, name: str | None = None) -> Path:
    """Return the file of a check.

    Args:
        test_file: Of the test.
        test: What follows the file in its node id, such as ``"TestA::test_x[gpt2]"``.
        name: Of the check, where a test makes several.

    Raises:
        ValueError: ``name`` is no plain word.

    Example:
        >>> baseline_path(Path("tests/test_gpt2.py"), "TestA::test_x[gpt2]", "late").as_posix()
        'tests/__heads__/test_gpt2/TestA.test_x[gpt2].late.json'
        >>> baseline_path(Path("test_a.py"), "test_x[a/B]").name
        'test_x[a_B]-34ac6a00.json'
    """
    if name is not None and not (isinstance(name, str) and NAME.fullmatch(name)):
        raise ValueError(f"name: got {name!r}; expected letters, digits, _ and - only")
    function, bracket, parameters = test.partition("[")
    parameters = parameters[:-1]
    stem = function.replace("::", ".")
    if bracket:
        stem += f"[{re.sub(r'[^A-Za-z0-9_.-]', '_', parameters)}]"
    # Two tests never share a file, also where case does not count.
    if len(stem) > LONGEST or not SAFE.fullmatch(parameters):
        digest = hashlib.sha256(test.encode(errors="surrogatepass")).hexdigest()[:8]
        stem = f"{stem[:LONGEST]}-{digest}"
    stem += f".{name}" if name else ""
    return test_file.parent / FOLDER / test_file.stem / f"{stem}.json"


def weights_size(maps: AttentionMaps) -> int:
    """Bytes that the weights take."""
    return sum(layer.weights.numel() * layer.weights.element_size() for layer in maps.layers)


def write_staged(staged: Staged) -> list[Path]:
    """Write a baseline, and its weights first; return the files.

    The weights' name holds their hash: until the baseline is in place the old one keeps its own.

    Raises:
        OSError: The disk did not take it; the old files are as they were.
    """
    staged.path.parent.mkdir(parents=True, exist_ok=True)
    baseline, written = staged.baseline, []
    if staged.maps is not None:
        weights = _write_weights(staged.maps, staged.path)
        baseline = replace(baseline, weights=weights)
        written.append(staged.path.with_name(weights.file))
    write_text(baseline.to_text(), staged.path)
    kept = baseline.weights.file if baseline.weights else None
    for path in weights_beside(staged.path):
        if path.name != kept:
            path.unlink(missing_ok=True)
    return [staged.path, *written]


def weights_beside(path: Path) -> list[Path]:
    """Files that hold weights of a baseline, also of earlier ones."""
    form = re.compile(re.escape(path.stem) + r"\.[0-9a-f]{8}\.safetensors")
    return sorted(one for one in path.parent.iterdir() if form.fullmatch(one.name))


def load_weights(path: Path, held: WeightsFile) -> AttentionMaps:
    """Read the weights of a baseline.

    Args:
        path: The baseline's file.
        held: What it says of its weights.

    Raises:
        BaselineError: They are gone, damaged, or others.
    """
    file = path.with_name(Path(held.file).name)
    advice = "restore it from version control, or delete the baseline and record it again"
    try:
        if hashlib.sha256(file.read_bytes()).hexdigest() != held.sha256:
            raise BaselineError(
                f"baseline: {file} is not the file that was recorded (a Git LFS pointer?): {advice}"
            )
        return AttentionMaps.load(file)
    except OSError as error:
        raise BaselineError(f"baseline: {file} cannot be read ({error}): {advice}") from None


def _write_weights(maps: AttentionMaps, path: Path) -> WeightsFile:
    part = path.with_name(f".{path.stem}.{os.getpid()}.part.safetensors")
    try:
        maps.save(part)
        digest = hashlib.sha256(part.read_bytes()).hexdigest()
        name = f"{path.stem}.{digest[:8]}.safetensors"
        part.replace(path.with_name(name))
    finally:
        part.unlink(missing_ok=True)
    return WeightsFile(name, digest)
