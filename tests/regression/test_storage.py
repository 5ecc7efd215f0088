"""Where baselines lie, which variant serves, and that a write is whole or nothing."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attncheck import BaselineError
from attncheck.regression import (
    Baseline,
    Staged,
    baseline_path,
    choose,
    load_weights,
    open_capture,
    target_of,
    write_staged,
)
from attncheck.regression.environment import Environment
from attncheck.regression.variants import read_baseline

CPU = Environment("cpu", "float32", (("torch", "2.13.0"),))
HOPPER = replace(CPU, device="cuda-9.0")
AMPERE = replace(CPU, device="cuda-8.6")
BLACKWELL = replace(CPU, device="cuda-10.0")


def baseline(environment: Environment = CPU, seed: int = 0) -> Baseline:
    weights = torch.rand(1, 2, 12, 12, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    return Baseline("t.py::test_x", environment, open_capture(weights).records)


def write(path: Path, environment: Environment = CPU, seed: int = 0) -> None:
    write_staged(Staged(path, baseline(environment, seed), "new"))


def test_no_two_tests_share_a_file() -> None:
    tests = [
        "test_x",
        "test_y",
        "TestA::test_x",
        "TestB::test_x",
        "test_x[a]",
        "test_x[A]",
        "test_x[a/b]",
        "test_x[a:b]",
        "test_x[a@b]",
        "test_x[é]",
        f"test_x[{'a' * 300}]",
        f"test_x[{'a' * 301}]",
    ]
    file = Path("tests/test_a.py")
    paths = [baseline_path(file, test, name) for test in tests for name in (None, "late", "early")]
    assert len({str(path).lower() for path in paths}) == len(paths)
    assert all(len(path.name.encode()) < 200 and "@" not in path.name for path in paths)
    assert {path.parent for path in paths} == {Path("tests/__heads__/test_a")}


@pytest.mark.parametrize("name", ["", "a/b", "a.b", "..", "a@b", 7])
def test_names_of_checks_are_words(name: object) -> None:
    with pytest.raises(ValueError, match="expected letters, digits"):
        baseline_path(Path("test_a.py"), "test_x", name)  # type: ignore[arg-type]


def test_the_variant_that_fits_best_serves(tmp_path: Path) -> None:
    plain = tmp_path / "test_x.json"
    assert choose(plain, CPU).baseline is None
    write(plain)
    for variant in ("cuda-9", "bfloat16", "cuda-9-bfloat16"):
        write(tmp_path / f"test_x@{variant}.json", replace(CPU, device=variant))
    half = {"dtype": "bfloat16"}
    expected = [
        (CPU, ""),
        (replace(CPU, **half), "bfloat16"),
        (HOPPER, "cuda-9"),
        (replace(HOPPER, **half), "cuda-9-bfloat16"),
        (AMPERE, ""),
        (replace(AMPERE, **half), "bfloat16"),
        (BLACKWELL, ""),
        (replace(HOPPER, dtype="float16"), "cuda-9"),
    ]
    for here, variant in expected:
        choice = choose(plain, here)
        assert (choice.variant, choice.among) == (variant, 4), here


def test_an_update_leaves_other_machines_alone(tmp_path: Path) -> None:
    plain = tmp_path / "test_x.json"
    write(plain)
    assert target_of(choose(plain, CPU), CPU) == plain
    assert target_of(choose(plain, HOPPER), HOPPER).name == "test_x@cuda-9.json"
    half = replace(HOPPER, dtype="bfloat16")
    assert target_of(choose(plain, half), half).name == "test_x@cuda-9-bfloat16.json"
    write(tmp_path / "test_x@cuda-9.json", HOPPER)
    assert target_of(choose(plain, half), half).name == "test_x@cuda-9-bfloat16.json"
    newer = replace(HOPPER, versions=(("torch", "3.0"),))
    assert target_of(choose(plain, newer), newer).name == "test_x@cuda-9.json"


@pytest.mark.parametrize("broken", ["replace", "fsync", "write"])
def test_a_write_that_breaks_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "test_x.json"
    write(path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if broken == "replace":
        monkeypatch.setattr(Path, "replace", full)
    elif broken == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left"):
        write(path, seed=1)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["test_x.json"]
    write(path, seed=1)
    assert path.read_bytes() != before
    assert oct(path.stat().st_mode & 0o777) == oct(0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_weights_are_kept_beside_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "test_x.json"
    capture = open_capture(torch.eye(12)[None, None])
    written = write_staged(Staged(path, baseline(), "new", capture.maps))
    held = read_baseline(path).weights
    assert held is not None
    assert [one.name for one in written] == ["test_x.json", held.file]
    torch.testing.assert_close(load_weights(path, held)[0][0, 0], torch.eye(12))

    # Killed between weights and baseline: the old baseline still has its own.
    other = open_capture(torch.full((1, 1, 12, 12), 1 / 12))
    with monkeypatch.context() as patched:
        patched.setattr("attncheck.regression.storage.write_text", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_staged(Staged(path, baseline(), "changed", other.maps))
    torch.testing.assert_close(load_weights(path, held)[0][0, 0], torch.eye(12))

    write_staged(Staged(path, baseline(), "changed", other.maps))
    files = sorted(os.listdir(tmp_path))
    assert len(files) == 2
    held = read_baseline(path).weights
    assert held is not None
    file = tmp_path / held.file
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(BaselineError, match="is not the file that was recorded"):
        load_weights(path, held)
    file.unlink()
    with pytest.raises(BaselineError, match="cannot be read"):
        load_weights(path, held)
