"""What a model is, found out from it: which argument is the sequence, the mask, the contract."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from attncheck.capture.modules import require_module
from attncheck.model_checks.huggingface import huggingface_facts, make_inputs
from attncheck.model_checks.outputs import OutputReader
from attncheck.model_checks.subject import ModelSubject, Stream, SubjectOptions

__all__ = ["describe", "is_huggingface"]

MASKS: Final = ("attention_mask", "src_key_padding_mask", "key_padding_mask", "padding_mask")
OPTIONS: Final = frozenset(SubjectOptions.__annotations__)


def describe(model: Any, inputs: Any, options: Mapping[str, Any]) -> ModelSubject:
    """Build the subject of a model, see `ModelSubject`.

    Raises:
        TypeError: ``model`` is no module, or an option has an unknown name.
        ValueError: Inputs are missing, or hold no sequence.
    """
    require_module(model)
    unknown = sorted(set(options) - OPTIONS)
    if unknown:
        raise TypeError(
            f"unknown argument {', '.join(unknown)}; expected {', '.join(sorted(OPTIONS))}"
        )
    plain = getattr(model, "_orig_mod", model)
    known = is_huggingface(plain)
    facts = huggingface_facts(plain) if known else {}
    wanted = {**facts, **{name: held for name, held in options.items() if held is not None}}
    if inputs is None and known:
        inputs = make_inputs(plain, wanted)
    if inputs is None:
        raise ValueError(
            f"inputs: missing; pass what {type(plain).__name__} is called with: a tensor, a tuple, "
            "or a mapping by name. A factory returns (model, inputs), or a ModelSubject"
        )
    bound = _widened(_bound(plain, inputs))
    kind = wanted.get("kind", "unknown")
    name = str(wanted.get("tokens") or _stream_name(bound, kind))
    if not isinstance(bound.get(name), Tensor):
        raise ValueError(f"tokens: the inputs hold no tensor {name!r}, only {', '.join(bound)}")
    mask = options["mask"] if "mask" in options else _mask_name(plain, name, kind)
    accepted = inspect.signature(plain.forward).parameters
    return ModelSubject(
        model=model,
        inputs=bound,
        kind=kind,
        stream=_stream(name, mask, accepted, options.get("mask_hides")),
        reader=OutputReader(wanted.get("output")),
        source=_source(bound, name, accepted) if kind == "encoder-decoder" else None,
        pad_id=int(wanted.get("pad_id", 0)),
        special_ids=frozenset(wanted.get("special_ids", ())),
        window=wanted.get("window"),
        segments=wanted.get("segments"),
        step=wanted.get("step"),
        backends=None if wanted.get("backends") is None else tuple(wanted["backends"]),
        name=wanted.get("name", type(plain).__name__),
        huggingface=known,
    )


def is_huggingface(model: nn.Module) -> bool:
    """Whether this is a model of transformers; never imports it."""
    module = sys.modules.get("transformers")
    return module is not None and isinstance(model, module.PreTrainedModel)


def _bound(model: nn.Module, inputs: Any) -> dict[str, Any]:
    """Name the arguments."""
    if isinstance(inputs, Mapping):
        return {str(name): held for name, held in inputs.items() if held is not None}
    values = list(inputs) if isinstance(inputs, tuple | list) else [inputs]
    accepted = inspect.signature(model.forward).parameters.values()
    named = [p.name for p in accepted if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    if len(values) > len(named):
        raise ValueError(
            f"inputs: {len(values)} arguments, and {type(model).__name__}.forward names "
            f"{len(named)}; pass a mapping of arguments by name"
        )
    return {name: held for name, held in zip(named, values, strict=False) if held is not None}


def _widened(inputs: dict[str, Any]) -> dict[str, Any]:
    """Make a batch of one sequence a batch of two: the second holds the first, turned around."""
    held = [value for value in inputs.values() if isinstance(value, Tensor) and value.ndim]
    if not held or any(value.shape[0] != 1 for value in held):
        return inputs

    def twice(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim:
            return value
        last = value.ndim > 1 and (value.is_floating_point() or torch.unique(value).numel() > 2)
        other = value.roll(1, -1 if value.ndim < 3 else 1) if last else value
        return torch.cat([value, other])

    return {name: twice(value) for name, value in inputs.items()}


def _stream_name(inputs: Mapping[str, Any], kind: str) -> str:
    """Name the argument that carries the sequence."""
    tensors = {name: held for name, held in inputs.items() if isinstance(held, Tensor)}
    targets = ("decoder_input_ids", "decoder_inputs_embeds", "tgt")
    texts = ("input_ids", "inputs_embeds", "pixel_values", "input_features", "input_values")
    wanted = [*(targets if kind == "encoder-decoder" else ()), *texts]
    for name in wanted:
        if name in tensors:
            return str(name)
    for name, held in tensors.items():
        whole = not held.is_floating_point() and held.dtype != torch.bool and held.ndim == 2
        if whole or (held.is_floating_point() and held.ndim >= 3):
            return str(name)
    raise ValueError(
        "inputs: no sequence among them; expected token ids (batch, position) or vectors "
        "(batch, position, feature), or tokens= the name of the argument"
    )


def _mask_name(model: nn.Module, stream: str, kind: str) -> str | None:
    accepted = inspect.signature(model.forward).parameters
    if stream.startswith("decoder_"):
        return "decoder_attention_mask" if "decoder_attention_mask" in accepted else None
    if stream == "tgt":
        return "tgt_key_padding_mask" if "tgt_key_padding_mask" in accepted else None
    if kind == "vision":
        return None
    return next((name for name in MASKS if name in accepted), None)


def _stream(name: str, mask: str | None, accepted: Any, hides: bool | None) -> Stream:
    prefix = "decoder_" if name.startswith("decoder_") else ""
    positions = f"{prefix}position_ids"
    by_name = mask is not None and mask.endswith("padding_mask")
    return Stream(
        name,
        mask,
        by_name if hides is None else hides,
        positions if positions in accepted else None,
    )


def _source(inputs: Mapping[str, Any], target: str, accepted: Any) -> Stream | None:
    """Name the sequence that an encoder reads."""
    for name in ("input_ids", "inputs_embeds", "src", "input_features", "input_values"):
        if name in inputs and name != target:
            mask = "memory_key_padding_mask" if name == "src" else "attention_mask"
            return _stream(name, mask if mask in accepted else None, accepted, None)
    return None
