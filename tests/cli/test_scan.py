"""`attncheck scan` through `main`: results, files, and one clear line for all that is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attncheck import AttentionExtractor, HeadProfile, profile_attention
from attncheck.cli import main
from attncheck.models import encode, load_tiny_model, repeated_tokens, tokens_of

HERE = "tests.cli.factories"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def scan_json(capsys: Capture, *arguments: str, code: int = 0) -> dict[str, Any]:
    assert main(["scan", "--json", *arguments]) == code
    held: dict[str, Any] = json.loads(capsys.readouterr().out)
    return held


def test_default_model_shows_its_circuit(capsys: Capture) -> None:
    held = scan_json(capsys)
    assert [head["pattern"] for head in held["heads"]][1:] == [
        "previous_token",
        "induction",
        "induction",
    ]
    assert [head["head"] for head in held["heads"]] == ["L0H0", "L0H1", "L1H0", "L1H1"]
    assert held["tokens"] == tokens_of(repeated_tokens(12))
    assert held["patterns"]["induction"] == 2
    assert held["findings"] == held["files"] == []
    assert list(Path().iterdir()) == []


def test_numbers_are_those_of_the_library(capsys: Capture) -> None:
    held = scan_json(capsys, "--text", "abcdeabcdeabcde")
    ids = encode("abcdeabcdeabcde")
    maps = AttentionExtractor(load_tiny_model()).get_attention(ids)
    profile = profile_attention(maps, tokens=tokens_of(ids))
    for head, label in zip(held["heads"], profile.classify(), strict=True):
        assert (head["head"], head["pattern"]) == (label.name, label.label)
        for measure, value in head["measures"].items():
            expected = profile[measure][label.layer, label.head]
            assert value == pytest.approx(expected, abs=1e-6), measure
        if head["mass"] is not None:
            mass = profile[label.label][label.layer, label.head]
            assert head["mass"] == pytest.approx(mass, abs=1e-6)


def test_writes_pictures_and_a_profile_and_says_where(capsys: Capture, tmp_path: Path) -> None:
    assert main(["scan", "--out", "a/b"]) == 0
    said = capsys.readouterr().out.splitlines()
    listed = {line.strip() for line in said if line.startswith("  a/b/")}
    written = {str(path.relative_to(tmp_path)) for path in Path(tmp_path, "a", "b").iterdir()}
    assert listed == written - {"a/b/.attncheck-scan"}
    names = {Path(name).name for name in written}
    assert {
        "profile.json",
        "head_map.png",
        "statistics.png",
        "layer_00.png",
        "layer_01.png",
        "L0H1_previous_token.png",
    } < names
    assert sum("induction" in name for name in names) == 1
    profile = HeadProfile.load(Path("a/b/profile.json"))
    assert profile["entropy"].shape == (2, 2)


def test_default_folder_and_no_plots(capsys: Capture) -> None:
    assert main(["scan", "--no-plots"]) == 0
    assert [str(path) for path in Path().rglob("*.json")] == ["attncheck-scan/profile.json"]
    assert list(Path().rglob("*.png")) == []
    assert "attncheck-scan/profile.json" in capsys.readouterr().out


def test_table_fits_80_columns_and_sums_up(capsys: Capture) -> None:
    assert main(["scan", "--out", ""]) == 0
    out, err = capsys.readouterr()
    assert max(map(len, out.splitlines())) <= 80
    assert out.splitlines()[3].split() == [
        *("head", "pattern", "mass", "chance", "lift", "entropy", "sink", "margin"),
    ]
    assert "4 heads in 2 layers: 2 induction" in out
    assert err == ""


def test_large_models_show_the_clearest_heads_first(capsys: Capture) -> None:
    arguments = ["scan", f"{HERE}:many_heads", "--out", ""]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.count("L0H") == 32
    assert "(8 heads less clear are not shown; --all shows every one)" in out
    rows = [line.split() for line in out.splitlines() if line.startswith("L0H")]
    lifts = [-1.0 if row[4] == "-" else float(row[4]) for row in rows]
    assert lifts == sorted(lifts, reverse=True)
    assert len(set(lifts)) > 3
    assert main([*arguments, "--all"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line[:3] == "L0H"]
    assert [row[0] for row in rows] == [f"L0H{head}" for head in range(40)]


def test_tokens_are_taken_as_they_are(capsys: Capture) -> None:
    assert scan_json(capsys, "--tokens", "0 1, 2")["tokens"] == [["<bos>", "a", "b"]]


def test_too_few_tokens_give_no_verdict(capsys: Capture) -> None:
    held = scan_json(capsys, "--tokens", "3")
    assert held["patterns"] == {"undetermined": 4}
    assert held["heads"][0]["mass"] is None
    assert held["heads"][0]["measures"]["normalized_entropy"] is None
    assert main(["scan", "--tokens", "3"]) == 0
    assert "1 token: 'c'" in capsys.readouterr().out


def test_long_prompts_are_cut_only_on_request(capsys: Capture) -> None:
    held = scan_json(capsys, "--text", "abcdefgh" * 5, "--max-tokens", "20")
    assert held["tokens"] == [["<bos>", *"abcdefghabcdefghabc"]]
    assert held["note"] == "cut from 41 to 20 tokens"


def test_layers_can_be_chosen(capsys: Capture) -> None:
    for choice in (["-1"], ["1"], ["attention.1"]):
        held = scan_json(capsys, "--layers", *choice)
        assert [head["head"] for head in held["heads"]] == ["L1H0", "L1H1"]


def test_factories_bring_models_with_inputs(capsys: Capture) -> None:
    held = scan_json(capsys, f"{HERE}:encoder")
    assert held["model"] == f"{HERE}:encoder"
    assert held["tokens"] is None
    assert len(held["heads"]) == 4
    held = scan_json(capsys, f"{HERE}:reader_with_inputs")
    assert held["tokens"] == [list(range(10))]


def test_factories_of_the_working_directory_are_found(capsys: Capture) -> None:
    Path("my_own_model.py").write_text(f"from {HERE} import reader as make\n")
    held = scan_json(capsys, "my_own_model:make", "--tokens", "4 5 6 4 5 6 4 5 6 4")
    assert held["tokens"] == [[4, 5, 6, 4, 5, 6, 4, 5, 6, 4]]
    assert held["heads"][0]["measures"]["future_mass"] == 0


def test_what_a_model_prints_does_not_mix_with_the_result(capsys: Capture) -> None:
    assert main(["scan", f"{HERE}:chatty", "--json"]) == 0
    out, err = capsys.readouterr()
    json.loads(out)
    assert "loading ..." in err


def test_invalid_attention_is_a_finding(capsys: Capture) -> None:
    held = scan_json(capsys, f"{HERE}:nan", "--out", "x", code=1)
    assert len(held["findings"]) == 1
    assert "has NaN" in held["findings"][0]
    assert held["files"] == []
    assert main(["scan", f"{HERE}:nan"]) == 1
    assert "not valid: layer 0" in capsys.readouterr().out


def test_row_sums_and_leaks_are_findings() -> None:
    from attncheck.cli.report import invalid_heads

    profile = profile_attention(torch.full((2, 9, 9), 1 / 9), causal=False)
    assert invalid_heads(profile) == []
    layer = profile.layers[0]
    layer.maxima["row_sum_error"] = np.array([0.0, 0.5])
    assert invalid_heads(profile) == ["L0H1: a row misses sum 1 by 0.5 (1.1e-05)"]
    leaking = profile_attention(torch.full((1, 9, 9), 1 / 9), causal=True)
    assert invalid_heads(leaking) == ["L0H0: causal, yet 0.44 of its mass is on later keys"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "1 x"], "--tokens: '1 x'; expected token ids such as '1 2 3'"),
        (["--tokens", ""], "--tokens: ''; expected token ids"),
        (["--tokens", "1 32 99 32"], "--tokens: no 32, 99; ids of this model are 0 to 31"),
        (["--tokens", "-1"], "--tokens: no -1; ids of this model are 0 to 31"),
        (["--text", "Aé"], "'A', '\xe9' not in the vocabulary"),
        (["--text", "abcd" * 8], "--text: 33 tokens, and the model takes 32; shorten it, or pass"),
        (["--tokens", "1 " * 33], "--tokens: 33 tokens, and the model takes 32"),
        (["--text", " "], "error: --text: is empty\n"),
        (["--layers", "7"], "--layers: no layer 7; the model ran 2"),
        (["--layers", "nix"], "--layers: no module fits 'nix'"),
        (["--device", "nonsense"], "--device nonsense: not available here"),
        (["--out", "file/x"], "--out: cannot make the folder file/x"),
        (["nowhere.at.all:make"], "cannot import nowhere.at.all: ModuleNotFoundError"),
        (["broken:make"], "cannot import broken: ImportError: half an installation (at "),
        ([f"{HERE}:absent"], "has no function 'absent'"),
        (["./checkpoint"], "error: ./checkpoint: no such file or folder\n"),
        (["runs/7/last"], "error: runs/7/last: no such file or folder\n"),
        (["model.safetensors"], "error: model.safetensors: no such file or folder\n"),
        ([f"{HERE}:raising"], "raising raised FileNotFoundError: no checkpoint here (at "),
        ([f"{HERE}:choosy"], "missing 1 required positional argument: 'size'\n"),
        (["own.py:make"], "own.py:make: names a file; name the module: own:make\n"),
        ([f"{HERE}:not_a_model"], "not_a_model: returned int; expected a torch.nn.Module"),
        ([f"{HERE}:reader"], "reader: returned a model without inputs; pass --tokens"),
        ([f"{HERE}:encoder", "--text", "a"], "--text: tests.cli.factories:encoder has no tok"),
        ([f"{HERE}:no_attention"], "captured no attention in Linear"),
        ([f"{HERE}:wrong_inputs"], "wrong_inputs failed on this prompt: RuntimeError: "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    capsys: Capture, arguments: list[str], message: str
) -> None:
    Path("file").write_text("")
    Path("broken.py").write_text("raise ImportError('half an installation')")
    assert main(["scan", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("attncheck scan: error: ")
    assert message in err
    assert "Traceback" not in err


def test_unavailable_devices_are_named(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("has CUDA")
    assert main(["scan", "--device", "cuda"]) == 2
    assert "--device cuda: not available here" in capsys.readouterr().err


def test_a_missing_transformers_names_the_extra(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["scan", "gpt2"]) == 2
    assert "pip install 'attncheck[hf]'" in capsys.readouterr().err


def test_a_full_disk_is_said_plainly(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: HeadProfile, path: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(HeadProfile, "save", full)
    assert main(["scan", "--no-plots"]) == 2
    assert "--out: cannot write to attncheck-scan: No space left" in capsys.readouterr().err


def test_interrupting_ends_with_130(capsys: Capture) -> None:
    assert main(["scan", f"{HERE}:interrupted"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_progress_shows_on_a_terminal_only(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["scan", "--json"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["scan", "--json"]) == 0
    err = capsys.readouterr().err
    assert "layer 1: attention.1" in err
    assert err.endswith("\r")


def test_long_work_speaks_up_in_a_log(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attncheck.progress.PATIENCE", -1.0)
    assert main(["scan", "--json"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "loading the model",
        "layer 0: attention.0",
        "layer 1: attention.1",
    ]
