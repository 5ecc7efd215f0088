"""`extract_huggingface_attention`: names, folders and loaded models."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch

from attncheck import AttentionExtractor, extract_huggingface_attention

transformers = pytest.importorskip("transformers")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with its tokenizer, as ``save_pretrained`` writes them."""
    path = tmp_path_factory.mktemp("bert")
    (path / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    transformers.BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=len(WORDS),
    )
    transformers.BertModel(config).save_pretrained(path)
    return path


def load(folder: Path) -> tuple[Any, Any]:
    return (
        transformers.AutoModel.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
    )


def test_a_folder(folder: Path) -> None:
    weights, tokens = extract_huggingface_attention(str(folder), "the cat sat")
    assert tokens == ["[CLS]", "the", "cat", "sat", "[SEP]"]
    assert weights.shape == (2, 5, 5)
    model, tokenizer = load(folder)
    maps = AttentionExtractor(model).get_attention(**tokenizer("the cat sat", return_tensors="pt"))
    assert torch.equal(weights, maps[2][0])


def test_layer_and_head(folder: Path) -> None:
    every, _ = extract_huggingface_attention(str(folder), "the cat", layer_idx=1)
    one, _ = extract_huggingface_attention(str(folder), "the cat", layer_idx=1, head_idx=1)
    assert one.shape == (4, 4)
    assert torch.equal(one, every[1])


def test_a_loaded_model_keeps_its_backend_and_mode(folder: Path) -> None:
    model, tokenizer = load(folder)
    model.train()
    backend = model.config._attn_implementation
    weights, _ = extract_huggingface_attention(model, "the cat", tokenizer=tokenizer)
    assert model.training
    assert model.config._attn_implementation == backend == "sdpa"
    assert torch.equal(weights, extract_huggingface_attention(str(folder), "the cat")[0])


def test_what_does_not_exist(folder: Path) -> None:
    model, tokenizer = load(folder)
    with pytest.raises(ValueError, match="tokenizer: is None"):
        extract_huggingface_attention(model, "the cat")
    with pytest.raises(ValueError, match="no layer 3"):
        extract_huggingface_attention(model, "the cat", 3, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="no head 2"):
        extract_huggingface_attention(model, "the cat", head_idx=2, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"text": None}, "text: is NoneType; expected one string"),
        ({"text": ["the cat", "sat"]}, "text: is list"),
        ({"layer_idx": "last"}, "layer_idx: 'last' is str; expected the number of a layer"),
        ({"layer_idx": None}, "layer_idx: None"),
        ({"head_idx": [0, 1]}, "head_idx: .* is list; expected the number of a head"),
        ({"head_idx": 1.0}, "head_idx: 1.0 is float"),
        ({"tokenizer": "bert"}, "tokenizer: is str; expected a tokenizer"),
        ({"model_name": 3, "tokenizer": None}, "model_name: is int; expected a name .*, a folder"),
    ],
)
def test_arguments_of_other_kinds_are_named(
    folder: Path, arguments: dict[str, Any], words: str
) -> None:
    model, tokenizer = load(folder)
    given = {"model_name": model, "text": "the cat", "tokenizer": tokenizer, **arguments}
    with pytest.raises(TypeError, match=f"^{words}"):
        extract_huggingface_attention(**given)


def test_a_text_without_tokens(folder: Path) -> None:
    model, tokenizer = load(folder)

    class Bare:
        def __call__(self, text: str, **options: Any) -> Any:
            return tokenizer(text, add_special_tokens=False, **options)

        convert_ids_to_tokens = tokenizer.convert_ids_to_tokens

    with pytest.raises(ValueError, match=r"^text: '' has no tokens"):
        extract_huggingface_attention(model, "", tokenizer=Bare())


def test_a_model_without_a_tokenizer(folder: Path, tmp_path: Path) -> None:
    """Transformers makes an empty one, to which every word is unknown."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(OSError, match=r"has no tokenizer; pass tokenizer="):
        extract_huggingface_attention(str(tmp_path), "the cat")
    _, tokenizer = load(folder)
    _, tokens = extract_huggingface_attention(str(tmp_path), "the cat", tokenizer=tokenizer)
    assert tokens == ["[CLS]", "the", "cat", "[SEP]"]


def test_a_model_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match=r"cannot load .*HF_HUB_OFFLINE"):
        extract_huggingface_attention(str(tmp_path / "nowhere"), "the cat")


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "transformers":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'attncheck\[hf\]'"):
        extract_huggingface_attention("gpt2", "the cat")
