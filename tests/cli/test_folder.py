"""The folder of `attncheck scan`: it shows the last scan, and keeps what is somebody else's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attncheck.cli import main
from attncheck.cli.folder import Folder
from attncheck.cli.problem import CommandError

HERE = "tests.cli.factories"


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def lies_in(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()} - {".attncheck-scan"}


def scanned(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> set[str]:
    """Scan into ``out``; returns the names that the scan said it wrote."""
    assert main(["scan", "--json", "--out", "out", *arguments]) == code
    files = json.loads(capsys.readouterr().out)["files"] if code < 2 else []
    return {Path(name).name for name in files}


def test_a_second_scan_leaves_no_picture_of_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    first = scanned(capsys)
    assert {"layer_00.png", "layer_01.png", "L0H1_previous_token.png"} < first
    second = scanned(capsys, "--layers", "0")
    assert "layer_01.png" not in second
    assert lies_in("out") == second
    assert scanned(capsys, "--no-plots") == lies_in("out") == {"profile.json"}


def test_attention_that_is_not_valid_leaves_nothing_of_the_last_scan(
    capsys: pytest.CaptureFixture[str],
) -> None:
    scanned(capsys)
    assert scanned(capsys, f"{HERE}:nan", code=1) == set()
    assert lies_in("out") == set()


def test_a_scan_that_fails_at_once_costs_no_picture_of_the_last(
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = scanned(capsys)
    for wrong in (["--layers", "nix"], [f"{HERE}:wrong_inputs"], ["--tokens", "99"]):
        scanned(capsys, *wrong, code=2)
        assert lies_in("out") == first


def test_what_else_lies_there_stays(capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    own = {"layer_07.png", "L9H9_induction.png", "notes.txt"}
    for name in own:
        Path("out", name).write_text("mine")
    first = scanned(capsys)
    Path("out", "layer_01.png").rename("out/kept.png")
    assert scanned(capsys, "--layers", "0") < first
    assert lies_in("out") - first == own | {"kept.png"}
    assert {Path("out", name).read_text() for name in own} == {"mine"}


def test_files_of_a_scan_that_was_interrupted_are_known() -> None:
    Folder("out").place("layer_00.png").write_text("half a scan")
    assert lies_in("out") == {"layer_00.png"}
    Folder("out").place("profile.json")
    assert lies_in("out") == set()


def test_a_list_that_leads_elsewhere_removes_nothing_there() -> None:
    Path("out/sub").mkdir(parents=True)
    for name in ("beside.png", "out/sub/below.png"):
        Path(name).write_text("mine")
    names = ("../beside.png", "sub/below.png", str(Path("beside.png").resolve()), "..", "sub", "")
    Path("out/.attncheck-scan").write_text("\n".join(names))
    Folder("out").clear()
    assert Path("beside.png").exists()
    assert Path("out/sub/below.png").exists()


def test_a_list_that_names_what_no_scan_writes_removes_none_of_it() -> None:
    names = {"pyproject.toml", "main.py", "a b.png", ".png", "profile.json.bak", "-rf.png"}
    Path("out").mkdir()
    for name in names:
        Path("out", name).write_text("mine")
    Path("out/.attncheck-scan").write_text("\n".join(sorted(names)))
    Folder("out").clear()
    assert lies_in("out") == names


def test_a_list_that_is_a_link_is_not_written_through() -> None:
    Path("out").mkdir()
    Path("mine.txt").write_text("mine")
    Path("out/.attncheck-scan").symlink_to(Path("mine.txt").resolve())
    Folder("out").place("profile.json")
    assert Path("mine.txt").read_text() == "mine"


def test_a_file_that_cannot_be_removed_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    Folder("out").place("layer_00.png").write_text("of an earlier scan")

    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(CommandError, match="--out: cannot write to out: Permission denied"):
        Folder("out").clear()
