"""`extract_huggingface_attention`: a model name and a text in, weights and tokens out."""

from __future__ import annotations

import os
import warnings
from typing import Any, Final

from torch import Tensor, nn

from attncheck.capture.extractor import AttentionExtractor
from attncheck.capture.select import index_of

__all__ = ["auto_classes", "extract_huggingface_attention", "knows_words", "load_huggingface"]

LEFT_OVER: Final = frozenset({"\u2581", ".", "[START_REF]"})
"""Of these an empty tokenizer of transformers may hold one beside its special tokens."""


def extract_huggingface_attention(
    model_name: str | nn.Module,
    text: str,
    layer_idx: int = -1,
    head_idx: int | None = None,
    *,
    tokenizer: Any = None,
) -> tuple[Tensor, list[str]]:
    """Return the attention of one layer of a Hugging Face model for a text, and its tokens.

    The model runs in the attention backend it is set to (sdpa stays sdpa), in eval mode.

    Args:
        model_name: Name on the Hugging Face hub, a local folder, or a loaded model.
        text: Input text.
        layer_idx: Layer in execution order; -1 is the last.
        head_idx: One head; None returns all.
        tokenizer: For a loaded model; by default the one of ``model_name``.

    Returns:
        Weights, ``(head, query, key)`` or with ``head_idx`` ``(query, key)``, float32 at least
        where rebuilt, on the CPU; and the tokens, special tokens included.

    Raises:
        ImportError: transformers is not installed.
        OSError: The model or its tokenizer cannot be loaded.
        TypeError: ``model_name`` is neither name nor model, ``text`` no string, ``layer_idx`` or
            ``head_idx`` no number, or ``tokenizer`` no tokenizer.
        ValueError: No such layer or head, a text without tokens, or a loaded model without a
            tokenizer.
        CaptureError: The model's attention cannot be captured.

    Example:
        >>> weights, tokens = extract_huggingface_attention(
        ...     "gpt2", "The quick brown fox", layer_idx=5, head_idx=1
        ... )  # doctest: +SKIP
    """
    if not isinstance(text, str):
        raise TypeError(f"text: is {type(text).__name__}; expected one string")
    layer = index_of("layer_idx", layer_idx, "the number of a layer")
    head = None if head_idx is None else index_of("head_idx", head_idx, "the number of a head")
    if isinstance(model_name, nn.Module):
        if tokenizer is None:
            raise ValueError("tokenizer: is None; a loaded model needs tokenizer=...")
        model = model_name
    else:
        model, tokenizer = load_huggingface(model_name, tokenizer)
    if not callable(tokenizer) or not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise TypeError(
            f"tokenizer: is {type(tokenizer).__name__}; expected a tokenizer of transformers"
        )
    inputs = dict(tokenizer(text, return_tensors="pt", truncation=_is_limited(tokenizer)))
    if not inputs["input_ids"].numel():
        raise ValueError(f"text: {text!r} has no tokens")
    device = next((parameter.device for parameter in model.parameters()), None)
    inputs = {name: value.to(device) for name, value in inputs.items()}
    extractor = AttentionExtractor(model, layers=[layer], heads=head)
    weights = extractor.get_attention(**inputs)[0][0]
    ids = inputs["input_ids"][0].tolist()
    tokens = [str(token) for token in tokenizer.convert_ids_to_tokens(ids)]
    return (weights if head is None else weights[0]), tokens


def load_huggingface(model_name: str, tokenizer: Any = None) -> tuple[nn.Module, Any]:
    """Load a model and its tokenizer, in the backend that transformers chooses.

    Args:
        model_name: Name on the hub, or a folder.
        tokenizer: Used instead of the model's own.

    Raises:
        ImportError: transformers is not installed.
        OSError: Nothing that can be loaded has this name; says what to try.
        TypeError: ``model_name`` is no name.
    """
    if not isinstance(model_name, str | os.PathLike):
        raise TypeError(
            f"model_name: is {type(model_name).__name__}; expected a name on the Hugging Face hub, "
            "a folder, or a loaded model"
        )
    model_class, tokenizer_class = auto_classes()
    if tokenizer is None:
        tokenizer = _loaded(tokenizer_class, model_name)
        if not knows_words(tokenizer):
            raise OSError(f"model_name: {model_name!r} has no tokenizer; pass tokenizer=...")
    model: nn.Module = _loaded(model_class, model_name)
    return model.eval(), tokenizer


def auto_classes() -> tuple[Any, Any]:
    """Return what loads models and tokenizers by name.

    Raises:
        ImportError: transformers is not installed.
    """
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError:
        raise ImportError(
            "loading a Hugging Face model needs transformers: pip install 'attncheck[hf]'"
        ) from None
    return AutoModel, AutoTokenizer


def _loaded(kind: Any, model_name: str) -> Any:
    """Load a model or a tokenizer; says what to try where that fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind.from_pretrained(model_name)
    except (OSError, ValueError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OSError(
            f"model_name: cannot load {model_name!r}: {first_line} Pass the path of a folder that "
            "save_pretrained wrote, or a loaded model with tokenizer=...; with HF_HUB_OFFLINE=1 "
            "only models in the local cache are found"
        ) from error


def knows_words(tokenizer: Any) -> bool:
    """Whether a tokenizer knows any word, character or byte: more than special tokens.

    Of some models that have no tokenizer transformers makes an empty one, under which a text has
    no tokens, or unknown ones only. One whose vocabulary cannot be looked into is none of those.
    """
    try:
        vocabulary = tokenizer.get_vocab()
    except (AttributeError, NotImplementedError):
        return True
    special = set(getattr(tokenizer, "all_special_ids", ()))
    return any(
        number not in special and word not in LEFT_OVER for word, number in vocabulary.items()
    )


def _is_limited(tokenizer: Any) -> bool:
    """Whether the tokenizer knows how long its model's input may be."""
    return int(getattr(tokenizer, "model_max_length", 0) or 0) in range(1, 10**9)
