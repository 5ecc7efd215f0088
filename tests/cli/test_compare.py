"""`attncheck compare` through `main`: two sides, one folder, one clear line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread
from safetensors.torch import save_file
from torch import Tensor, nn

from attncheck import HeadProfile, profile_attention
from attncheck.attention import as_attention
from attncheck.cli import main
from attncheck.models import TinyTransformer, load_tiny_model, repeated_tokens

HERE = "tests.cli.test_compare"
TINY = f"{HERE}:untrained"
Capture = pytest.CaptureFixture[str]


def untrained() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return TinyTransformer(), repeated_tokens(12)


def trained() -> tuple[nn.Module, Tensor]:
    return load_tiny_model(), repeated_tokens(12)


def shaken() -> tuple[nn.Module, Tensor]:
    model = load_tiny_model()
    torch.manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            weights += torch.randn_like(weights) * weights.std() * 1e-3
    return model, repeated_tokens(11)


def swapped() -> tuple[nn.Module, Tensor]:
    """Heads of layer 0 exchanged, and nothing else."""
    model = load_tiny_model()
    state = model.state_dict()
    order = torch.cat([torch.arange(16, 32), torch.arange(16)])
    inner = "attention.0.query_key_value.weight"
    parts = [part[order] for part in state[inner].chunk(3)]
    state[inner] = torch.cat(parts)
    state["attention.0.output.weight"] = state["attention.0.output.weight"][:, order]
    model.load_state_dict(state)
    return model, repeated_tokens(12)


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def checkpoints() -> Path:
    """Six checkpoints on the straight line from untrained to trained weights."""
    first, last = untrained()[0].state_dict(), load_tiny_model().state_dict()
    folder = Path("run")
    folder.mkdir()
    for step in (0, 200, 400, 600, 800, 1000):
        at = step / 1000
        state = {name: (1 - at) * first[name] + at * last[name] for name in last}
        save_file(state, folder / f"step-{step}.safetensors")
    return folder


def compare_json(capsys: Capture, *arguments: str, code: int = 0) -> dict[str, Any]:
    assert main(["compare", "--json", *arguments]) == code
    held: dict[str, Any] = json.loads(capsys.readouterr().out)
    return held


def test_two_dtypes_of_one_model(capsys: Capture) -> None:
    held = compare_json(capsys, "--dtype-b", "bfloat16")
    assert held["schema"] == "attncheck.compare.1"
    assert held["floor"] == 0.01
    assert held["dtypes"] == [["float32"], ["bfloat16"]]
    distances = [head["total_variation"] for head in held["heads"]]
    assert all(0 < distance < 0.01 for distance in distances)
    assert {head["verdict"] for head in held["heads"]} <= {"same", "drifted"}


def test_a_float64_model_gives_the_same_heads(capsys: Capture) -> None:
    held = compare_json(capsys, "--dtype-a", "float64", "--dtype-b", "float32", "--strict")
    assert held["verdict"] == "same"
    assert max(head["total_variation"] for head in held["heads"]) < 1e-5


def test_two_backends_of_one_model(capsys: Capture) -> None:
    held = compare_json(capsys, "--backend-b", "math", "--strict")
    assert held["verdict"] == "same"
    assert held["b"].endswith("model, math")


def test_two_models_see_the_inputs_of_the_first(capsys: Capture) -> None:
    held = compare_json(capsys, f"{HERE}:trained", f"{HERE}:shaken")
    assert held["notes"] == []
    assert held["verdict"] == "drifted"
    assert 1e-5 < max(head["total_variation"] for head in held["heads"]) < 0.015
    compare_json(capsys, f"{HERE}:trained", f"{HERE}:shaken", "--strict", code=1)
    compare_json(capsys, f"{HERE}:trained", f"{HERE}:shaken", "--atol", "1e-6", code=1)


def test_changed_heads_end_with_1(capsys: Capture) -> None:
    assert main(["compare", f"{HERE}:untrained", f"{HERE}:trained"]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert max(map(len, out.splitlines())) <= 80
    assert "uniform -> previous token" in out
    assert "4 of 4 heads changed (*), 0 drifted, 0 within rounding" in out


def test_exchanged_heads_are_recognised(capsys: Capture) -> None:
    held = compare_json(capsys, f"{HERE}:trained", f"{HERE}:swapped", code=1)
    assert held["permuted"] == [[["L0H0", "L0H1"], ["L0H1", "L0H0"]]]
    verdicts = {head["head"]: head["verdict"] for head in held["heads"]}
    assert verdicts == {"L0H0": "changed", "L0H1": "changed", "L1H0": "same", "L1H1": "same"}
    assert main(["compare", f"{HERE}:trained", f"{HERE}:swapped"]) == 1
    assert "exchanged: L0H0 is now L0H1, L0H1 is now L0H0" in capsys.readouterr().out


def test_saved_profiles_and_maps(capsys: Capture) -> None:
    profile_attention(torch.eye(16)).save("a.json")
    profile_attention(torch.full((16, 16), 1 / 16)).save("b.json")
    as_attention(torch.eye(16)).save("a.safetensors")
    held = compare_json(capsys, "a.json", "b.json", code=1)
    assert held["heads"][0]["label"] == ["diagonal", "uniform"]
    assert held["heads"][0]["total_variation"] is None
    assert held["notes"] == ["no weights on both sides: judged by measures alone"]
    assert compare_json(capsys, "a.json", "a.safetensors")["verdict"] == "same"


def test_the_numbers_are_those_of_the_weights(capsys: Capture) -> None:
    torch.manual_seed(0)
    a, b = (torch.rand(2, 3, 16, 16).softmax(-1) for _ in range(2))
    as_attention(a).save("a.safetensors")
    as_attention(b).save("b.safetensors")
    held = compare_json(capsys, "a.safetensors", "b.safetensors", code=1)
    expected = 0.5 * (a - b).abs().sum(-1).mean((0, 2))
    found = [head["total_variation"] for head in held["heads"]]
    assert found == pytest.approx(expected.tolist(), rel=1e-3)


def test_the_page_shows_both(capsys: Capture) -> None:
    held = compare_json(
        capsys, f"{HERE}:untrained", f"{HERE}:trained", "--report", "out/page.html", code=1
    )
    assert held["files"] == ["out/page.html"]
    page = Path("out/page.html").read_text()
    data = json.loads(page.partition('type="application/json">')[2].partition("</script>")[0])
    model = data["models"][0]
    assert model["captions"] == ["A", "B"]
    for head, said in zip(model["heads"], held["heads"], strict=True):
        assert len(head["maps"]) == 2
        assert head["failed"]
        assert head["change"]["label"] == said["label"][0]
        assert head["change"]["mean"] == said["total_variation"]
        assert head["change"]["measures"] != head["measures"]
    assert "4 of 4 heads changed" in page


def test_a_folder_of_state_dicts(capsys: Capture, checkpoints: Path) -> None:
    arguments = [str(checkpoints), "--into", TINY]
    held = compare_json(capsys, *arguments, "--plot", "when.png", "--report", "page.html")
    assert held["schema"] == "attncheck.trajectory.1"
    assert held["steps"] == [f"step-{step}" for step in (0, 200, 400, 600, 800, 1000)]
    heads = {head["head"]: head for head in held["heads"]}
    assert heads["L1H0"]["labels"][0] != "induction"
    assert heads["L1H0"]["labels"][-1] == "induction"
    mass = heads["L1H0"]["mass"]
    assert mass[0] < 0.2 < 0.8 < mass[-1]
    assert len(heads["L0H0"]["measures"]["entropy"]) == 6
    assert imread("when.png").std() > 0.05
    page = Path("page.html").read_text()
    assert page.count('<th scope="row">step-') == 6
    assert main(["compare", *arguments]) == 0
    out = capsys.readouterr().out
    assert "L1H0" in out
    assert "-> induction at step-" in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_folder_of_profiles(capsys: Capture) -> None:
    folder = Path("profiles")
    folder.mkdir()
    (folder / "notes.json").write_text("{}")
    for step, weights in ((2, torch.full((12, 12), 1 / 12)), (10, torch.eye(12))):
        profile_attention(weights).save(folder / f"at{step}.json")
    held = compare_json(capsys, "profiles")
    assert held["steps"] == ["at2", "at10"]
    assert held["heads"][0]["labels"] == ["uniform", "diagonal"]
    assert main(["compare", "profiles"]) == 0
    assert "L0H0    uniform -> diagonal at at10" in capsys.readouterr().out


def test_two_state_dicts_of_one_model(capsys: Capture, checkpoints: Path) -> None:
    a, b = (str(checkpoints / f"step-{step}.safetensors") for step in (0, 1000))
    held = compare_json(capsys, a, b, "--into", TINY, code=1)
    assert (held["a"], held["b"]) == (a, b)
    profile = HeadProfile.from_dict(profile_attention(torch.eye(12)).to_dict())
    assert profile.heads() == ("L0H0",)
    torch.save(load_tiny_model().state_dict(), "same.pt")
    assert compare_json(capsys, b, "same.pt", "--into", TINY)["verdict"] == "same"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "B: the same as A; name a second model or file, or pass --dtype-b or --backend-b"),
        ([TINY, TINY], "B: the same as A"),
        (["old.json", "a.json"], "error: old.json: no such file or folder\n"),
        (["a.json", "./new"], "error: ./new: no such file or folder\n"),
        (["runs/heads.jsonl"], "error: runs/heads.jsonl: no such file or folder\n"),
        (["a.pt", "b.pt", "--into", TINY], "error: a.pt: no such file or folder\n"),
        (["a.json", "broken.json"], "broken.json is not readable JSON"),
        (["a.json", "b.json"], "B: holds 1 layer with heads L0H0, L0H1"),
        (["a.json", "a.json", "--dtype-b", "float16"], "--dtype-b, --backend-b: a.json is saved"),
        (["a.json", "state.safetensors"], "a checkpoint needs --into MODEL"),
        (["state.safetensors", "a.json", "--into", TINY], "cannot be loaded into the model: "),
        (["empty"], "empty: holds no models (config.json) or saved profiles (.json)"),
        (["empty", "--into", TINY], "empty: holds no state dicts"),
        ([TINY, f"{HERE}:trained", "--plot", "x.png"], "--plot: draws a folder of checkpoints"),
        ([TINY, "--backend-b", "eager"], "only Hugging Face models know it"),
        ([TINY, "a.json", "--report", "empty"], "--report: empty: expected a file"),
        ([TINY, f"{HERE}:trained", "--report", "a.json/x"], "--report: cannot write a.json/x"),
        ([TINY, f"{HERE}:trained", "--layers", "9"], "--layers: "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    capsys: Capture, arguments: list[str], message: str
) -> None:
    profile_attention(torch.eye(16)).save("a.json")
    profile_attention(torch.eye(16).repeat(2, 1, 1)).save("b.json")
    save_file({"x": torch.ones(2)}, "state.safetensors")
    Path("broken.json").write_text("{")
    Path("empty").mkdir()
    assert main(["compare", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("attncheck compare: error: ")
    assert message in err
    assert "Traceback" not in err


def test_atol_is_a_number(capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "--atol", "-1"])
    assert "'-1' is no number from 0 up" in capsys.readouterr().err


def test_scan_writes_the_page_too(capsys: Capture) -> None:
    assert main(["scan", "--out", "", "--report", "heads.html"]) == 0
    assert "heads.html" in capsys.readouterr().out
    page = Path("heads.html").read_text()
    data = json.loads(page.partition('type="application/json">')[2].partition("</script>")[0])
    heads = data["models"][0]["heads"]
    assert [head["name"] for head in heads] == ["L0H0", "L0H1", "L1H0", "L1H1"]
    assert all(len(head["maps"]) == 1 for head in heads)
    assert "no failures" in page
    assert main(["scan", "tests.cli.factories:nan", "--out", "", "--report", "nan.html"]) == 1
    assert (
        "no numbers" in Path("nan.html").read_text() or "1 failure" in Path("nan.html").read_text()
    )
