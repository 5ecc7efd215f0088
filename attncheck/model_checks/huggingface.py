"""What a Hugging Face model says about itself; nothing here imports transformers."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from attncheck.model_checks.decoding_cache import cache_argument

__all__ = ["huggingface_facts", "layer_windows", "make_inputs", "text_config"]

LENGTH: Final = 14
"""Positions of inputs made here."""

WAITING: Final = 24
"""Longest window for which inputs are made long enough to leave it."""


def huggingface_facts(model: nn.Module) -> dict[str, Any]:
    """Return what the configuration tells, under the names of `SubjectOptions`."""
    config = text_config(model)
    facts: dict[str, Any] = {"kind": _kind(model, config), "special_ids": _special_ids(model)}
    pad = getattr(config, "pad_token_id", None)
    size = getattr(config, "vocab_size", None)
    if isinstance(pad, int) and pad >= 0 and (not isinstance(size, int) or pad < size):
        facts["pad_id"] = pad
    windows = layer_windows(model)
    if windows and None not in windows and len(set(windows)) == 1:
        facts["window"] = windows[0]
    if facts["kind"] == "decoder" and _reads_packed_positions(model):
        facts["segments"] = "position_ids"
    return facts


def text_config(model: nn.Module) -> Any:
    """Return the configuration of the text part."""
    config: Any = model.config
    get = getattr(config, "get_text_config", None)
    return config if get is None else get()


def layer_windows(model: nn.Module) -> list[int | None]:
    """Return the sliding window of each layer, None for one that sees everything.

    A layer whose attention is of another kind (chunked, linear, compressed) counts as one that
    sees everything.
    """
    config = text_config(model)
    window = getattr(config, "sliding_window", None)
    depth = getattr(config, "num_hidden_layers", None)
    if not isinstance(window, int) or not isinstance(depth, int) or window < 1:
        return []
    if getattr(config, "use_sliding_window", True) is False:
        return []
    types = getattr(config, "layer_types", None)
    if types is None:
        # Without a list only a model that has a window and nothing else has it in every layer.
        return [window] * depth if _masks_by_window(model) else []
    return [window if kind == "sliding_attention" else None for kind in types]


def make_inputs(model: nn.Module, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Make small random inputs from the configuration.

    Raises:
        ValueError: The model takes something that cannot be made up.
    """
    accepted = inspect.signature(model.forward).parameters
    config: Any = text_config(model)
    random = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    given: dict[str, Any] = {}
    main = str(getattr(model, "main_input_name", "input_ids"))
    if "input_ids" in accepted and main == "input_ids":
        given["input_ids"] = _ids(config, facts, random, _length(facts))
        if "decoder_input_ids" in accepted:
            given["decoder_input_ids"] = _ids(config, facts, random, LENGTH - 2)
    elif main == "pixel_values":
        given["pixel_values"] = _pictures(model.config, random)
    if not given:
        raise ValueError(f"inputs: missing; {type(model).__name__} takes {main}, pass some")
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return {
        name: held.to(device, dtype) if held.is_floating_point() else held.to(device)
        for name, held in given.items()
    }


def _length(facts: Mapping[str, Any]) -> int:
    """Long enough to leave a small window twice over."""
    window = facts.get("window")
    return 2 * WAITING if isinstance(window, int) and LENGTH // 3 < window <= WAITING else LENGTH


def _ids(config: Any, facts: Mapping[str, Any], random: torch.Generator, length: int) -> Tensor:
    size = getattr(config, "vocab_size", None) or 100
    special = set(facts.get("special_ids", ()))
    fair = [token for token in range(min(int(size), 1000)) if token not in special]
    pool = torch.tensor(fair or [0])
    return pool[torch.randint(0, len(pool), (2, length), generator=random)]


def _pictures(config: Any, random: torch.Generator) -> Tensor:
    held = [
        config,
        getattr(config, "vision_config", None),
        getattr(config, "backbone_config", None),
    ]
    size = next((s for c in held if (s := getattr(c, "image_size", None)) is not None), 224)
    channels = next((n for c in held if (n := getattr(c, "num_channels", None)) is not None), 3)
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    return torch.randn(2, int(channels), int(height), int(width), generator=random)


def _kind(model: nn.Module, config: Any) -> str:
    """Decide by what a model takes, its configuration, and transformers' table of decoders."""
    accepted = inspect.signature(model.forward).parameters
    main = str(getattr(model, "main_input_name", "input_ids"))
    if "decoder_input_ids" in accepted:
        return "encoder-decoder"
    if main == "pixel_values":
        return "vision"
    if main != "input_ids":
        return "unknown"
    if getattr(config, "is_decoder", None) is not None:
        return "decoder" if config.is_decoder else "encoder"
    name = type(model).__name__
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return "decoder"
    mapping = sys.modules.get("transformers.models.auto.modeling_auto")
    causal = getattr(mapping, "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", {})
    known = getattr(config, "model_type", "") in causal and hasattr(config, "use_cache")
    return "decoder" if known and cache_argument(accepted) else "encoder"


def _special_ids(model: nn.Module) -> frozenset[int]:
    """Collect the ids of tokens that mean something to the model: padding, end, pictures."""
    found: set[int] = set()
    for config in _configs(model.config):
        for name, held in vars(config).items():
            if name.endswith(("_token_id", "_token_index", "_token_ids")):
                ids = held if isinstance(held, list | tuple) else [held]
                found |= {token for token in ids if isinstance(token, int)}
    return frozenset(found)


def _configs(config: Any) -> Iterator[Any]:
    yield config
    for name in getattr(config, "sub_configs", ()):
        inner = getattr(config, name, None)
        if inner is not None and hasattr(inner, "__dict__"):
            yield from _configs(inner)


def _reads_packed_positions(model: nn.Module) -> bool:
    """Whether masks come from transformers' builder, which reads packed documents off positions."""
    module = sys.modules.get(type(model).__module__)
    accepted = inspect.signature(model.forward).parameters
    return "position_ids" in accepted and hasattr(module, "create_causal_mask")


def _masks_by_window(model: nn.Module) -> bool:
    module = sys.modules.get(type(model).__module__)
    return hasattr(module, "create_sliding_window_causal_mask")
