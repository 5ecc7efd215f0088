"""What bugs are planted in and with: small models of transformers, and ways to change them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

__all__ = ["MUTANTS", "SIZES", "Mutant", "Wrapped", "allow", "plant", "sound", "unmask", "wrap"]

Plant = Callable[[Any], None]
Wrapped = Callable[..., Any]


@dataclass(frozen=True)
class Mutant:
    """A planted bug.

    Attributes:
        name: What is wrong.
        family: The model that it is planted in.
        promise: The promise that should break.
        plant: Changes the model.
    """

    name: str
    family: str
    promise: str
    plant: Plant


MUTANTS: Final[list[Mutant]] = []

SIZES: Final[dict[str, dict[str, Any]]] = {
    "Llama": {"num_key_value_heads": 2},
    "Mistral": {"num_key_value_heads": 2, "sliding_window": 4},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "Bert": {},
    "T5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    "ViT": {"image_size": 16, "patch_size": 8},
}


def sound(family: str) -> nn.Module:
    """Build a small model without any bug, with weights large enough that attention is no mean."""
    import transformers

    transformers.logging.set_verbosity(50)
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
    sizes |= {"num_attention_heads": 4, "intermediate_size": 48, **SIZES[family]}
    config = getattr(transformers, f"{family}Config")(**sizes)
    model: nn.Module = getattr(transformers, f"{family}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model


def plant(name: str, family: str, promise: str) -> Callable[[Plant], Plant]:
    """Enter a function that changes a model as a mutant."""

    def enter(function: Plant) -> Plant:
        MUTANTS.append(Mutant(name, family, promise, function))
        return function

    return enter


def wrap(module: Any, around: Callable[..., Any]) -> None:
    """Put ``around(original, *args, **kwargs)`` in the place of a module's forward."""
    original = module.forward

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    module.forward = forward


def unmask(attention: Any, when: Callable[..., bool] = lambda **_: True) -> None:
    """Let an attention module see everything."""

    def around(original: Wrapped, *args: Any, **kwargs: Any) -> Any:
        if not when(**kwargs):
            return original(*args, **kwargs)
        held, attention.is_causal = attention.is_causal, False
        try:
            return original(*args, **{**kwargs, "attention_mask": None})
        finally:
            attention.is_causal = held

    wrap(attention, around)


def allow(attention: Any, seen: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Replace the mask of an attention module by a relation of query and key."""

    def around(original: Wrapped, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        n = hidden.shape[1]
        place = torch.arange(n)
        mask = seen(place[:, None], place[None, :])[None, None].expand(len(hidden), 1, n, n)
        if attention.config._attn_implementation == "eager":
            floats = torch.zeros(mask.shape, dtype=hidden.dtype)
            mask = floats.masked_fill(~mask, torch.finfo(hidden.dtype).min)
        return original(*args, **{**kwargs, "attention_mask": mask})

    wrap(attention, around)
