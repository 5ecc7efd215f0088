"""Which tokenizers know words, and that one that knows none is told before weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attncheck.capture import knows_words, load_huggingface
from attncheck.cli import main

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")


def word_level(*words: str) -> Any:
    """A tokenizer of an unknown token and these words."""
    numbers = {word: number for number, word in enumerate(["<unk>", *words])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token="<unk>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def extended() -> Any:
    """One whose words were all added to it."""
    tokenizer = word_level()
    tokenizer.add_tokens(["the"])
    return tokenizer


SMALL = {
    "one word": lambda: word_level("the"),
    "two digits": lambda: word_level("0", "1"),
    "four letters": lambda: word_level(*"ACGT"),
    "a dot and a letter": lambda: word_level(".", "a"),
    "an added word": extended,
    "bytes": lambda: transformers.ByT5Tokenizer(),
    "characters": lambda: transformers.CanineTokenizer(),
}


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_a_small_tokenizer_is_one(make: Any) -> None:
    assert knows_words(make())


@pytest.mark.parametrize(
    "kind", ["gpt2", "bert", "t5", "mbart", "deberta-v2", "splinter", "nougat"]
)
def test_what_transformers_makes_where_there_is_none_is_none(kind: str, tmp_path: Path) -> None:
    settings = {"model_type": "bart" if kind == "nougat" else kind}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    written = {"tokenizer_class": "NougatTokenizer"} if kind == "nougat" else {}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(written))
    try:
        empty = transformers.AutoTokenizer.from_pretrained(tmp_path)
    except Exception as error:
        pytest.skip(f"this transformers makes none: {error!r}")
    assert not knows_words(empty)


def test_a_tokenizer_that_cannot_be_looked_into_is_taken_for_one() -> None:
    class Closed:
        def get_vocab(self) -> None:
            raise NotImplementedError

    assert knows_words(Closed())
    assert knows_words(object())


@pytest.fixture
def bare(tmp_path: Path) -> str:
    """A model without a tokenizer, of which transformers makes an empty one."""
    config = transformers.GPT2Config(
        vocab_size=7, n_positions=24, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2Model(config).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        pytest.fail("the weights were loaded first")

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", load)


def test_a_missing_tokenizer_is_told_before_weights_are_loaded(
    bare: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unloaded(monkeypatch)
    with pytest.raises(OSError, match="has no tokenizer; pass tokenizer="):
        load_huggingface(bare)


@pytest.mark.parametrize("written", [None, '{"model_max_length": 64}', "{"])
def test_so_it_is_by_the_commands(
    bare: str, written: str | None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    if written is not None:  # an empty one, or a damaged one
        Path(bare, "tokenizer_config.json").write_text(written)
    unloaded(monkeypatch)
    assert main(["scan", bare, "--text", "the cat", "--out", ""]) == 2
    told = capsys.readouterr().err
    assert "has no tokenizer; pass" in told or "its tokenizer cannot be loaded (" in told


def test_a_tokenizer_given_is_used_even_if_it_is_empty(bare: str) -> None:
    class Empty:
        def __len__(self) -> int:
            return 0

    given = Empty()
    assert load_huggingface(bare, given)[1] is given


def test_a_model_of_two_words_is_scanned(
    bare: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "a": 1, "b": 2}, "?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="?")
    tokenizer.save_pretrained(bare)
    assert main(["scan", bare, "--text", "a b a b a b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == [[*"ababab"]]
