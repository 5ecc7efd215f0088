"""The command as a process: exit codes, streams, signals; and a Hugging Face folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from attncheck import __version__
from attncheck.cli import main, parsers, sides
from attncheck.cli.parsers.scan import KINDS
from attncheck.cli.problem import CommandError
from attncheck.model_checks.subject import Kind

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "attncheck.cli"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan makes its folder in the working directory."""
    monkeypatch.chdir(tmp_path)


def test_result_on_stdout_and_nothing_else(tmp_path: Path) -> None:
    done = run("scan", "--json", cwd=tmp_path)
    assert done.returncode == 0
    assert json.loads(done.stdout)["schema"] == "attncheck.scan.1"
    assert done.stderr == ""


def test_a_failed_scan_is_2_with_one_line(tmp_path: Path) -> None:
    done = run("scan", "tests.cli.factories:no_attention", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("attncheck scan: error: captured no attention")


def _interrupted(command: list[str], line: str, folder: Path, **changed: str) -> str:
    """Press Ctrl-C when a command has written a first line; return what it writes then."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env={**ENVIRONMENT, **changed},
        stderr=subprocess.PIPE,
        text=True,
        # Jobs in the background of a shell are started deaf to Ctrl-C, and so are their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == line
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    return rest


def test_ctrl_c_ends_with_130_and_no_traceback(tmp_path: Path) -> None:
    command = [*COMMAND, "scan", "tests.cli.factories:sleeper"]
    rest = _interrupted(command, "sleeping\n", tmp_path)
    assert "interrupted; files already written are whole" in rest
    assert "Traceback" not in rest


def test_ctrl_c_while_torch_is_loaded_is_one_line(tmp_path: Path) -> None:
    slow = "import sys, time\nprint('loading', file=sys.stderr, flush=True)\ntime.sleep(60)\n"
    (tmp_path / "torch.py").write_text(slow, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    rest = _interrupted([*COMMAND, "scan"], "loading\n", tmp_path, PYTHONPATH=path)
    assert rest == "attncheck: interrupted; files already written are whole\n"


def test_words_of_arguments_are_those_of_the_library() -> None:
    assert {*KINDS, "unknown"} == set(get_args(Kind))
    assert set(parsers.compare.KERNELS) == set(sides.KERNELS)


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*COMMAND, "scan", "--json"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_command_shows_help_and_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "scan" in err


@pytest.mark.parametrize(
    ("arguments", "code", "stream", "text"),
    [
        (["--version"], 0, "out", f"attncheck {__version__}\n"),
        (["--help"], 0, "out", "name, measure and draw every head of a model"),
        (["scan", "--help"], 0, "out", "package.module:factory"),
        (["scan", "--help"], 0, "out", "uniform is measured the other way round"),
        (["bogus"], 2, "err", "invalid choice: 'bogus'"),
        (["scan", "--text", "a", "--tokens", "1"], 2, "err", "not allowed with argument"),
        (["scan", "--max-tokens", "0"], 2, "err", "'0' is no positive number"),
        (["scan", "--bogus"], 2, "err", "unrecognized arguments: --bogus"),
    ],
)
def test_usage(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, stream: str, text: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == code
    assert text in getattr(capsys.readouterr(), stream)


@pytest.fixture(scope="module")
def hugging_face_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with random weights and a tokenizer of words, as `save_pretrained` writes them."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["?", "the", "cat", "sat", "on", "mat", "$a_b$"])}
    vocabulary = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    vocabulary.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=vocabulary, unk_token="?")
    config = transformers.GPT2Config(
        vocab_size=7, n_positions=24, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    folder = tmp_path_factory.mktemp("model")
    transformers.GPT2Model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_hugging_face_folder(
    hugging_face_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, text = str(hugging_face_folder), "the cat sat on the mat $a_b$ the cat sat"
    arguments = ["scan", name, "--json", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--text", text]) == 0
    held = json.loads(capsys.readouterr().out)
    assert held["tokens"] == [text.split()]
    assert [head["head"] for head in held["heads"]] == ["L0H0", "L0H1", "L1H0", "L1H1"]
    assert all(head["measures"]["future_mass"] == 0 for head in held["heads"])
    assert (tmp_path / "out" / "head_map.png").exists()
    assert main([*arguments, "--tokens", "1 2 3 4 1 2 3 4"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == [["the", "cat", "sat", "on"] * 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "the " * 25], "--text: 25 tokens, and the model takes 24"),
        (["--text", ""], "--text: is empty"),
        (["--tokens", "7"], "--tokens: no 7; ids of this model are 0 to 6"),
    ],
)
def test_prompts_that_do_not_fit_a_hugging_face_model(
    hugging_face_folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert main(["scan", str(hugging_face_folder), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture(params=["GPT2", "Llama"])
def without_tokenizer(
    request: pytest.FixtureRequest, hugging_face_folder: Path, tmp_path: Path
) -> str:
    """A model as `save_pretrained` leaves it alone; of some transformers makes an empty tokenizer.

    GPT2 is the one that `hugging_face_folder` has.
    """
    if request.param == "GPT2":
        for name in ("config.json", "model.safetensors"):
            (tmp_path / name).write_bytes((hugging_face_folder / name).read_bytes())
    else:
        transformers = pytest.importorskip("transformers")
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = transformers.LlamaConfig(vocab_size=7, intermediate_size=16, **sizes)
        transformers.LlamaModel(config).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["scan", "--tokens", "1 2 3 4 1 2 3 4", "--out", ""],
        ["scan", "--check", "--kind", "decoder"],
        ["bench", "--lengths", "8"],
        ["compare", "--tokens", "1 2 3 4 1 2 3 4", "--dtype-b", "float64"],
    ],
    ids=["scan", "check", "bench", "compare"],
)
def test_no_tokenizer_is_needed_where_there_is_no_text(
    without_tokenizer: str, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    command, *rest = arguments
    assert main([command, without_tokenizer, *rest]) == 0
    assert "error" not in capsys.readouterr().err


def test_a_second_model_needs_no_tokenizer(
    hugging_face_folder: Path, without_tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(hugging_face_folder), without_tokenizer, "--text", "the cat"]) < 2


@pytest.mark.parametrize(
    "arguments", [["scan"], ["scan", "--check", "--text", "the"], ["compare", "--dtype-b=float64"]]
)
def test_a_text_needs_a_tokenizer(
    without_tokenizer: str, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    command, *rest = arguments
    assert main([command, without_tokenizer, *rest]) == 2
    message = f"{without_tokenizer}: has no tokenizer; pass --tokens with ids such as '1 2 3'\n"
    assert capsys.readouterr().err.endswith(f"attncheck {command}: error: {message}")


@pytest.mark.parametrize("without_tokenizer", ["GPT2"], indirect=True)
@pytest.mark.parametrize("command", ["scan", "compare --dtype-b=float64"])
def test_an_empty_tokenizer_is_none(
    without_tokenizer: str, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """Of a model on the hub there is no folder to look into: transformers makes an empty one."""
    Path(without_tokenizer, "tokenizer_config.json").write_text('{"model_max_length": 64}')
    command, *rest = command.split()
    assert main([command, without_tokenizer, *rest, "--text", "the cat"]) == 2
    message = f"{without_tokenizer}: has no tokenizer; pass --tokens with ids such as '1 2 3'\n"
    assert capsys.readouterr().err.endswith(f"attncheck {command}: error: {message}")


def test_a_damaged_tokenizer_is_said_in_full(
    without_tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(without_tokenizer, "tokenizer.json").write_text("{")
    assert main(["scan", without_tokenizer]) == 2
    err = capsys.readouterr().err
    assert "its tokenizer cannot be loaded (" in err
    assert err.endswith("; pass --tokens with ids such as '1 2 3'\n")


def test_an_empty_folder_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    assert main(["scan", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("attncheck scan: error: ")
    assert "cannot load" in err


@pytest.mark.parametrize(
    ("model", "offline", "told"),
    [
        ("no-such/model", "", True),
        ("no-such/model", "0", True),
        ("no-such/model", "1", False),
        ("folder", "", False),
        ("./folder/missing", "", False),
        ("package.module:make", "", False),
        (None, "", False),
    ],
)
def test_a_search_on_the_network_is_announced(
    model: str | None,
    offline: str,
    told: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: object) -> None:
        raise CommandError("not this time")

    monkeypatch.setattr("attncheck.cli.scan.load_subject", fail)
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert main(["scan", *([model] if model else []), "--out", ""]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert ("asking the Hugging Face hub (HF_HUB_OFFLINE=1 looks in" in err) is told
