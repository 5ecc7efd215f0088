"""Small models of every type that transformers knows, built offline from shrunk configurations.

Two ways of shrinking are tried in turn. Scaling divides every width of the default configuration
by one number, so that whatever must fit together still does; setting gives every well-known field
one small value. Depth is cut to two layers in both. Weights are random.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import nn

__all__ = ["NotBuildableError", "config_candidates", "model_classes", "small_model"]

LARGEST: Final = 150_000_000
"""Most parameters of a model that is run."""

DEPTH: Final = re.compile(
    r"^(num_(?!feat_extract|feature|mel|conv|key|attention|local|experts|labels|frames)\w*layers"
    r"|num_blocks|\w*_num_layers|n_layers?|layers|depth|\w*_depth|\w+_layers|num_\w*blocks)$"
)
WIDTH: Final = re.compile(
    r"(hidden|embed|inner|ffn|ff_|_ff|intermediate|dim|rank|width|d_model|d_kv|channels|bottleneck"
    r"|n_embd|conv_dim|units|expand_size|proj_size|mlp_size|state_size|feature_size|lora|mlp)"
)
NOT_WIDTH: Final = re.compile(
    r"(num_channels|in_channels|in_chans|out_channels$|layers|max_|_id$|_ids$|token|ratio|range|dropout|act"
    r"|num_|theta|base|patch|image|kernel|stride|n_mels|groups|vocab|position_embeddings|audio_ch"
    r"|input_dim|feature_projection_input|dim_feedforward_ratio|mlp_bias|depth_multiplier)"
)
HEADS: Final = re.compile(r"^(num_\w*heads|\w*_heads|n_head|n_heads)$")
HEAD_SIZE: Final = re.compile(
    r"^(\w*head_dim|\w*_head_size|rotary_dim|d_kv|mrope_section|rope_\w+)$"
)
EXPERTS: Final = re.compile(r"^(num_(local_)?experts|n_routed_experts|moe_num_experts)$")
SUB: Final = re.compile(r"config$")

SETTINGS: Final[dict[str, Any]] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "embedding_size"), 32),
    **dict.fromkeys(("word_embed_proj_dim", "d_embed"), 32),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"), 2
    ),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size"), 64),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    **dict.fromkeys(("max_source_positions", "max_target_positions"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "num_mel_bins"), 16),
    **dict.fromkeys(("head_dim", "d_kv", "qk_rope_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("v_head_dim", "patch_size"), 8),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "n_shared_experts"), 1),
    "num_key_value_heads": 2,
    "vocab_size": 120,
    "n_token": 100,
    "cutoffs": [20, 40],
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "image_size": 32,
    "rotary_dim": 4,
    "sliding_window": 4,
    "feat_extract_norm": "group",
    "conv_dim": (32, 32),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
"""One small value for each field that many configurations share."""

WAYS: Final = (
    *("scaled /16", "set", "narrow /16", "scaled /8", "narrow /8", "scaled /32", "scaled /4"),
    *("scaled /2", "scaled /1"),
)
"""Ways to shrink, in the order tried; a narrow model has fewer heads, of their full size."""

MISSING: Final = {"prediction_length": 8, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
"""Fields that some configurations leave empty though their model needs them."""

CONFLICTS: Final = ((), ("layer_types",), ("head_dim",), ("sliding_window",), ("q_lora_rank",))
"""Fields left at their default when a configuration rejects the small value."""


class NotBuildableError(Exception):
    """No small model of this type could be made and run here."""


def model_classes() -> dict[str, str]:
    """Name the class that stands for each model type: the one without a head where there is one.

    The name is empty where no automatic class knows the type, as for towers inside other models.
    """
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    found = {name: "" for name in CONFIG_MAPPING_NAMES if isinstance(name, str)}
    mappings = ["MODEL_MAPPING_NAMES", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"]
    mappings += sorted(name for name in dir(modeling_auto) if name.startswith("MODEL_FOR_"))
    for mapping in mappings:
        for model_type, names in getattr(modeling_auto, mapping).items():
            if not isinstance(model_type, str) or found.get(model_type):
                continue
            if isinstance(names, str | tuple | list):
                found[model_type] = names if isinstance(names, str) else names[0]
    return dict(sorted(found.items()))


def resolve(model_type: str, class_name: str) -> tuple[type[nn.Module], type[Any]]:
    """Return the model class and its configuration class."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        config = CONFIG_MAPPING[model_type]
    except KeyError:
        raise NotBuildableError("has no configuration class") from None
    cls = getattr(transformers, class_name, None) if class_name else None
    if not isinstance(cls, type):
        cls = _from_its_file(config, class_name)
    return cls, config


def _from_its_file(config: type[Any], class_name: str) -> type[nn.Module]:
    """Find the model that takes a configuration in the modeling file beside it."""
    from transformers import PreTrainedModel

    file = config.__module__.replace(".configuration_", ".modeling_")
    try:
        module = importlib.import_module(file)
    except ImportError:
        raise NotBuildableError(f"has no modeling file {file.rpartition('.')[2]}") from None
    fitting = [
        cls
        for cls in vars(module).values()
        if isinstance(cls, type)
        and issubclass(cls, PreTrainedModel)
        and (cls.__name__ == class_name or cls.config_class is config)
        and not cls.__name__.endswith("PreTrainedModel")
        and cls.forward is not nn.Module.forward
    ]
    if not fitting:
        raise NotBuildableError("no model takes its configuration alone")
    return min(fitting, key=lambda cls: (cls.__name__ != class_name, "For" in cls.__name__))


def config_candidates(cls: type[Any]) -> Iterator[tuple[str, Any]]:
    """Yield shrunk configurations, the smallest first, each with how it was shrunk."""
    try:
        base = cls()
        default = base.to_dict()
    except Exception as error:
        raise NotBuildableError(f"its default configuration fails: {_line(error)}") from None
    last: Exception | None = None
    made = 0
    for way in WAYS:
        for without in CONFLICTS:
            wanted = _settings(default)
            if way != "set":
                wanted = _scaled(default, int(way.split("/")[1]), narrow="narrow" in way)
            _reconcile(wanted)
            for name in without:
                wanted.pop(name, None)
            try:
                config = cls(**wanted)
            except Exception as error:
                last = error
                continue
            made += 1
            yield way, config
            break
    if not made:
        raise NotBuildableError(f"no shrunk configuration is accepted: {_line(last)}")


def _reconcile(wanted: dict[str, Any]) -> None:
    """Keep an attention layer among two, and give a tower the width that its text model takes."""
    if "attn_layer_period" in wanted:
        wanted |= {"attn_layer_period": 2, "attn_layer_offset": 1}
    if "attn_layer_indices" in wanted:
        wanted["attn_layer_indices"] = [1]
    text, vision = wanted.get("text_config"), wanted.get("vision_config")
    if text and vision and "hidden_size" in text:
        for field in ("out_hidden_size", *(("hidden_size",) if "embed_dim" in vision else ())):
            if field in vision:
                vision[field] = text["hidden_size"]


def _settings(default: dict[str, Any]) -> dict[str, Any]:
    wanted: dict[str, Any] = {}
    for key, value in default.items():
        if isinstance(value, dict) and SUB.search(key) and key != "quantization_config":
            wanted[key] = _settings(value)
            if "model_type" in value:
                wanted[key]["model_type"] = value["model_type"]
        elif key in SETTINGS and not isinstance(value, dict):
            small = SETTINGS[key]
            if isinstance(value, list | tuple) == isinstance(small, list | tuple):
                wanted[key] = small
        elif key == "layer_types":
            wanted[key] = None
    return wanted


def _scaled(default: dict[str, Any], factor: int, *, narrow: bool) -> dict[str, Any]:
    """Divide widths by ``factor``, cut depth to 2, keep everything else."""
    wanted: dict[str, Any] = {}
    depths = {
        value
        for key, value in default.items()
        if DEPTH.match(key) and isinstance(value, int) and not isinstance(value, bool)
    }
    for key, value in default.items():
        if key in ("quantization_config", "transformers_version", "dtype", "torch_dtype"):
            continue
        if isinstance(value, dict) and SUB.search(key):
            wanted[key] = _scaled(value, factor, narrow=narrow)
        elif narrow and HEADS.match(key) and isinstance(value, int):
            wanted[key] = max(value // factor, 1)
        elif not narrow or not HEAD_SIZE.match(key):
            wanted[key] = _shrunk(key, value, factor, depths)
        if wanted.get(key, 0) is None and key in MISSING:
            wanted[key] = MISSING[key]
    return wanted


def _shrunk(key: str, value: Any, factor: int, depths: set[int]) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, dict):
        return {
            name: [max(part // factor, 1) for part in held] if name == "mrope_section" else held
            for name, held in value.items()
        }
    if isinstance(value, list | tuple):
        return _shrunk_list(key, list(value), factor, depths)
    if not isinstance(value, int):
        return value
    if DEPTH.match(key):
        return min(value, 2)
    if EXPERTS.match(key):
        return min(value, 8)
    if key in ("image_size", "img_size") and value > 256:
        return value // 4
    if WIDTH.search(key) and not NOT_WIDTH.search(key) and value >= 4:
        return _divided(value, factor)
    return value


def _shrunk_list(key: str, value: list[Any], factor: int, depths: set[int]) -> list[Any]:
    if len(value) in depths and len(value) > 2 and ("layer" in key or isinstance(value[0], str)):
        value = _varied(value)
    if not value or not all(isinstance(item, int) for item in value):
        return value
    if key in ("depths", "layers", "num_blocks") or key.endswith("_depths"):
        return [min(item, 2) for item in value]
    if WIDTH.search(key) and not NOT_WIDTH.search(key):
        return [_divided(item, factor) for item in value]
    return value


def _varied(per_layer: list[Any]) -> list[Any]:
    """Keep two entries of a list with one per layer, different ones if there are any."""
    others = [item for item in per_layer if item != per_layer[0]]
    return [per_layer[0], others[0] if others else per_layer[1]]


def _divided(value: int, factor: int) -> int:
    """Divide a width, to no less than 4 and to an even number."""
    if value <= 4:
        return value
    small = max(value // factor, 4)
    return small + small % 2


def small_model(cls: type[nn.Module], config: Any) -> nn.Module:
    """Build a model with random weights, unless it is too large.

    Raises:
        NotBuildable: More than `LARGEST` parameters.
    """
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in cls(config).parameters())
    if size > LARGEST:
        raise NotBuildableError(f"has {size / 1e6:.0f} million parameters when shrunk")
    torch.manual_seed(0)
    model = cls(config).eval()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all() and "mask" not in name:
            with torch.no_grad():
                tensor.normal_(0, 0.02)
    return model


def in_eager(model: nn.Module) -> nn.Module:
    """Build the same transformers model anew in its eager backend.

    Switching a built model is not enough: some choose their code when they are built.
    """
    config: Any = copy.deepcopy(model.config)
    other: nn.Module = type(model)._from_config(config, attn_implementation="eager")  # type: ignore[attr-defined]
    other.load_state_dict(model.state_dict())
    for name, buffer in model.named_buffers():
        other.get_buffer(name).copy_(buffer)
    return other.eval()


def accepted(model: nn.Module) -> dict[str, inspect.Parameter]:
    """Parameters of a model's forward."""
    return dict(inspect.signature(model.forward).parameters)


def _line(error: Exception | None) -> str:
    text = str(error).strip().splitlines() if error is not None else []
    return f"{type(error).__name__}: {text[0][:120] if text else ''}"
