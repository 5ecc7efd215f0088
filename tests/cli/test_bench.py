"""`attncheck bench` through `main`: the table, the files, what is left out, wrong use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attncheck.cli import bench, main
from attncheck.cli.problem import CommandError

HERE = "tests.cli.factories"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def bench_json(capsys: Capture, *arguments: str) -> dict[str, Any]:
    assert main(["bench", "--json", *arguments]) == 0
    held: dict[str, Any] = json.loads(capsys.readouterr().out)
    return held


def test_every_way_at_every_length(capsys: Capture) -> None:
    held = bench_json(capsys)
    assert {(cost["length"], cost["way"]) for cost in held["costs"]} == {
        (length, way) for length in (8, 16, 32) for way in ("plain forward", "capture", "profile")
    }
    assert held["rounds"] == 5
    assert held["left_out"] == []
    assert held["machine"]["versions"]["torch"]
    assert all(cost["seconds"] > 0 and cost["peak_bytes"] > 0 for cost in held["costs"])
    assert {cost["ratio"] for cost in held["costs"] if cost["way"] == "plain forward"} == {1.0}


def test_table_and_picture(capsys: Capture) -> None:
    assert main(["bench", "--quick", "--plot", "made/cost.png"]) == 0
    shown = capsys.readouterr()
    assert max(map(len, shown.out.splitlines())) <= 80
    rows = [line.split() for line in shown.out.splitlines() if " ms " in line]
    assert [row[0] for row in rows if row[0].isdigit()] == ["8", "16"]
    assert "written made/cost.png" in shown.err
    assert Path("made/cost.png").read_bytes().startswith(b"\x89PNG")


def test_lengths_beyond_the_model_are_left_out(capsys: Capture) -> None:
    held = bench_json(capsys, "--lengths", "16,64")
    assert held["left_out"] == [{"way": "", "length": 64, "reason": "the model takes 32 tokens"}]
    assert {cost["length"] for cost in held["costs"]} == {16}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--lengths", "5", "9"],
        ["--lengths", "5,9"],
        ["--lengths", "5, 9"],
        ["--lengths", "5,", "9", f"{HERE}:encoder"],
        ["--lengths", "5,9", f"{HERE}:encoder"],
        [f"{HERE}:encoder", "--lengths", "5", "9"],
    ],
)
def test_lengths_with_commas_or_without(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    seen: list[tuple[str | None, list[int]]] = []

    def measured(subject: Any, args: Any, progress: Any) -> Any:
        seen.append((subject.name, args.lengths))
        raise CommandError("seen")

    monkeypatch.setattr(bench, "_measured", measured)
    assert main(["bench", *arguments]) == 2
    [(name, lengths)] = seen
    assert lengths == [5, 9]
    assert ("encoder" in (name or "")) == (f"{HERE}:encoder" in arguments)


def test_a_factory_whose_inputs_are_no_ids(capsys: Capture) -> None:
    held = bench_json(capsys, f"{HERE}:encoder", "--lengths", "7,24")
    assert {cost["length"] for cost in held["costs"]} == {7, 24}
    assert held["batch"] == 2
    assert held["ceilings"]["flops"] > 0
    for cost in held["costs"]:
        assert cost["tokens_per_second"] == pytest.approx(2 * cost["length"] / cost["seconds"])


def test_eager_attentions_of_a_transformers_model(capsys: Capture) -> None:
    pytest.importorskip("transformers")
    held = bench_json(capsys, f"{__name__}:gpt", "--lengths", "16,32")
    ways = [cost["way"] for cost in held["costs"] if cost["length"] == 32]
    assert ways == ["plain forward", "eager output_attentions", "capture", "profile"]
    plain, profile = (
        [cost["flop_share"] * cost["seconds"] for cost in held["costs"] if cost["way"] == way]
        for way in ("plain forward", "profile")
    )
    assert plain == pytest.approx(profile)
    assert plain[1] > plain[0] > 0
    assert MODELS[-1].config._attn_implementation == "sdpa"


MODELS: list[Any] = []


def gpt() -> Any:
    import torch
    from transformers import GPT2Config, GPT2Model

    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 32, "vocab_size": 9}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, use_cache=False)
    MODELS.append(GPT2Model(config))
    return MODELS[-1], {"input_ids": torch.arange(6)[None]}


def interrupting() -> Any:
    import torch
    from torch import nn

    class Stops(nn.TransformerEncoderLayer):
        def forward(self, src: Any, *args: Any, **kwargs: Any) -> Any:
            if src.shape[1] > 8:
                raise KeyboardInterrupt
            return super().forward(src, *args, **kwargs)

    return Stops(8, 2, 16, batch_first=True), torch.randn(1, 4, 8)


def test_an_interrupt_keeps_what_is_done(capsys: Capture) -> None:
    assert main(["bench", f"{__name__}:interrupting", "--lengths", "8,16", "--json"]) == 130
    shown = capsys.readouterr()
    held = json.loads(shown.out)
    assert held["interrupted"]
    assert {cost["length"] for cost in held["costs"]} == {8}
    assert "interrupted" in shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "64"], "n = 64: the model takes 32 tokens"),
        (["--rounds", "3"], "--rounds: 3; a median needs at least 5"),
        (["--plot", "cost.txt"], "--plot: cost.txt; expected a file that ends in .png"),
        (["--device", "cuda:77"], "--device cuda:77: not available here"),
        (["nowhere.at:all"], "cannot import nowhere.at"),
        (["--tokens", "x"], "--tokens: 'x'; expected token ids"),
        (["--lengths", "8", "a", "--quick", "b"], "MODEL: both 'a' and 'b'; expected one"),
    ],
)
def test_wrong_use_is_one_line(capsys: Capture, arguments: list[str], message: str) -> None:
    assert main(["bench", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("attncheck bench: error: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_lengths_must_be_numbers(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--lengths", "128,x"])
    assert stopped.value.code == 2
    assert "'x' is no positive number; expected lengths such as" in capsys.readouterr().err
