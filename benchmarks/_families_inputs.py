"""Inputs for models that nobody told us anything about: read off ``forward`` and configuration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn

from benchmarks._families_configs import accepted

__all__ = ["input_candidates"]

BATCH: Final = 2
LENGTH: Final = 12


def input_candidates(model: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield named guesses at the model's inputs, those that exercise most of it first."""
    names = accepted(model)
    config = model.config
    torch.manual_seed(1)
    text = _text(names, config)
    if "input_ids" in names:
        for label, pictures in _pictures(names, config):
            spliced = _with_placeholders(model, config, text, pictures)
            if spliced is not None:
                yield f"text and {label}", spliced
            else:
                yield f"text and {label}", {**text, **pictures}
        for label, sound in _sounds(names, config):
            yield f"text and {label}", {**text, **sound}
        yield "text", text
        yield (
            "text with token types",
            {
                **text,
                "attention_mask": torch.ones(BATCH, LENGTH, dtype=torch.long),
            },
        )
    for label, pictures in _pictures(names, config):
        yield label, {**_decoder(names), **pictures}
    for label, sound in _sounds(names, config):
        yield label, {**_decoder(names), **sound}
    yield from _states(names, config)


def _text(names: Any, config: Any) -> dict[str, Any]:
    vocabulary = _first(config, "vocab_size", "text_config.vocab_size", "n_token", default=100)
    high = max(min(int(vocabulary), 100), 8) if isinstance(vocabulary, int) else 90
    ids = torch.randint(3, high, (BATCH, LENGTH))
    end = _first(config, "eos_token_id", "text_config.eos_token_id", default=None)
    if isinstance(end, int) and end < (vocabulary if isinstance(vocabulary, int) else 100):
        ids[:, -1] = end
    given: dict[str, Any] = {"input_ids": ids, **_decoder(names)}
    if "bbox" in names:
        given["bbox"] = torch.tensor([1, 2, 3, 4]).expand(BATCH, LENGTH, 4).clone()
    if "xpath_tags_seq" in names:
        pass
    if "question_input_ids" in names:
        given["question_input_ids"] = ids.clone()
    return given


def _decoder(names: Any) -> dict[str, Any]:
    if "decoder_input_ids" not in names:
        return {}
    return {"decoder_input_ids": torch.randint(3, 90, (BATCH, 7))}


def _pictures(names: Any, config: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    where = next((n for n in ("pixel_values", "pixel_values_images") if n in names), None)
    video = next((n for n in ("pixel_values_videos", "pixel_values") if n in names), None)
    if where is None and video is None:
        return
    height, width = _size(config)
    channels = _first(
        config,
        "num_channels",
        "vision_config.num_channels",
        "backbone_config.num_channels",
        "in_channels",
        "in_chans",
        "vision_config.in_channels",
        default=3,
    )
    channels = channels if isinstance(channels, int) else 3
    extra: dict[str, Any] = {}
    if "pixel_mask" in names:
        extra["pixel_mask"] = torch.ones(BATCH, height, width, dtype=torch.long)
    picture = torch.randn(BATCH, channels, height, width)
    if where is not None:
        if "image_sizes" in names:
            sizes = torch.tensor([[height, width]] * BATCH)
            tiles = picture[:, None].repeat(1, 5, 1, 1, 1)
            yield "tiles", {where: tiles, "image_sizes": sizes}
            yield "pictures with sizes", {where: picture, "image_sizes": sizes}
        grid = next((n for n in ("image_grid_thw", "grid_thw") if n in names), None)
        if grid is not None:
            yield from _patches(config, where, grid, channels)
        if "spatial_shapes" in names:
            patch = _patch(config)
            yield (
                "patches",
                {
                    where: torch.randn(BATCH, 16, channels * patch * patch),
                    "pixel_attention_mask": torch.ones(BATCH, 16, dtype=torch.long),
                    "spatial_shapes": torch.tensor([[4, 4]] * BATCH),
                },
            )
        yield "pictures", {where: picture, **extra}
        yield "picture lists", {where: picture[:, None], **extra}
    if video is not None:
        frames = _first(config, "num_frames", "num_image_with_embedding", default=4)
        frames = frames if isinstance(frames, int) else 4
        clip = torch.randn(BATCH, frames, channels, height, width)
        yield "video", {video: clip}
        if video == "pixel_values_videos":
            yield "video, channels first", {video: clip.transpose(1, 2).contiguous()}
    if where is not None:
        patch = _patch(config)
        yield "flat patches", {where: torch.randn(BATCH, 16, channels * patch * patch)}


def _patches(
    config: Any, where: str, grid: str, channels: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    patch = _patch(config)
    for frames in (
        _first(config, "temporal_patch_size", "vision_config.temporal_patch_size", default=2),
        1,
    ):
        pixels = torch.randn(BATCH * 16, channels * int(frames) * patch * patch)
        yield "patches with grid", {where: pixels, grid: torch.tensor([[1, 4, 4]] * BATCH)}


def _sounds(names: Any, config: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    bands = _first(
        config,
        "num_mel_bins",
        "audio_config.num_mel_bins",
        "feature_projection_input_dim",
        "encoder_config.num_mel_bins",
        "input_feat_per_channel",
        "n_mels",
        "input_dim",
        "encoder_config.input_dim",
        "audio_config.input_dim",
        default=80,
    )
    bands = bands if isinstance(bands, int) else 80
    longest = _first(
        config, "max_source_positions", "audio_config.max_source_positions", default=1500
    )
    longest = longest if isinstance(longest, int) else 1500
    for name in ("input_features", "input_values", "audio_values", "audio_input_features"):
        if name not in names:
            continue
        mask = {}
        for lengths in ("feature_attention_mask", "input_features_mask"):
            if lengths in names:
                mask[lengths] = torch.ones(BATCH, 128, dtype=torch.long)
        if "values" in name:
            yield "waveform", {name: torch.randn(BATCH, 4000)}
            yield "waveform with channel", {name: torch.randn(BATCH, 1, 4000)}
            frames = _first(config, "max_length", default=128)
            frames = frames if isinstance(frames, int) else 128
            yield "spectrogram", {name: torch.randn(BATCH, frames, bands)}
        yield "spectrogram, time last", {name: torch.randn(BATCH, bands, 2 * longest)}
        yield "spectrogram, short", {name: torch.randn(BATCH, bands, 128), **mask}
        yield "spectrogram, time first", {name: torch.randn(BATCH, 128, bands), **mask}
        lengths = torch.tensor([128] * BATCH)
        yield (
            "spectrogram with lengths",
            {name: torch.randn(BATCH, 128, bands), "input_lengths": lengths},
        )
        square = _first(config, "spec_size", "audio_config.spec_size", default=256)
        square = square if isinstance(square, int) else 256
        fused = {"is_longer": torch.tensor([[False]] * BATCH)} if "is_longer" in names else {}
        yield "log-mel picture", {name: torch.randn(BATCH, 1, 4 * square, bands), **fused}
    if "past_values" in names:
        yield from _series(config)


def _series(config: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    context = _first(config, "context_length", default=24)
    lags = _first(config, "lags_sequence", default=[0])
    channels = _first(config, "num_input_channels", "input_size", default=1)
    long = int(context) + (max(lags) if lags else 0)
    series = torch.randn(BATCH, int(context), int(channels))
    yield "series", {"past_values": series}
    yield "one series", {"past_values": series[..., 0]}
    features = int(_first(config, "num_time_features", default=0) or 0)
    horizon = int(_first(config, "prediction_length", default=8) or 8)
    yield (
        "series with time",
        {
            "past_values": torch.randn(BATCH, long),
            "past_time_features": torch.randn(BATCH, long, max(features, 1)),
            "past_observed_mask": torch.ones(BATCH, long),
            "future_values": torch.randn(BATCH, horizon),
            "future_time_features": torch.randn(BATCH, horizon, max(features, 1)),
        },
    )


def _states(names: Any, config: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Guess for towers that take hidden states and sequences of other things."""
    size = _first(config, "hidden_size", "d_model", "embed_dim", "n_embd", default=32)
    size = size if isinstance(size, int) else 32
    states = torch.randn(BATCH, LENGTH, size)
    grid = next((n for n in ("grid_thw", "image_grid_thw") if n in names), None)
    if grid is not None and "hidden_states" in names:
        channels = _first(config, "in_channels", "in_chans", "num_channels", default=3)
        for _, given in _patches(config, "hidden_states", grid, int(channels)):
            yield "patches with grid", given
    for name in ("inputs_embeds", "hidden_states", "query_embeds", "embeddings", "x"):
        if name not in names:
            continue
        given: dict[str, Any] = {name: states}
        for other in ("encoder_hidden_states", "context", "image_embeds"):
            if other in names:
                width = _first(config, "encoder_hidden_size", default=size)
                given[other] = torch.randn(BATCH, LENGTH, int(width))
        yield name, given
        yield (
            f"{name} with positions",
            {
                **given,
                "position_ids": torch.arange(LENGTH).expand(BATCH, -1),
                "attention_mask": None,
            },
        )
    if "states" in names:
        yield (
            "trajectory",
            {
                "states": torch.randn(BATCH, LENGTH, int(_first(config, "state_dim", default=17))),
                "actions": torch.randn(BATCH, LENGTH, int(_first(config, "act_dim", default=4))),
                "rewards": torch.randn(BATCH, LENGTH, 1),
                "returns_to_go": torch.randn(BATCH, LENGTH, 1),
                "timesteps": torch.arange(LENGTH).expand(BATCH, -1),
                "attention_mask": torch.ones(BATCH, LENGTH, dtype=torch.long),
            },
        )
    if "flattened_patches" in names:
        width = int(
            _first(
                config,
                "patch_embed_hidden_size",
                "vision_config.patch_embed_hidden_size",
                default=768,
            )
        )
        yield (
            "flattened patches",
            {
                **_decoder(names),
                "flattened_patches": torch.randn(BATCH, 16, width + 2).abs().round(),
            },
        )
    if "inputs" in names:
        yield "bytes", {"inputs": torch.randint(3, 90, (BATCH, LENGTH))}
        yield (
            "input states",
            {"inputs": torch.randn(BATCH, LENGTH, int(_first(config, "d_model", default=32)))},
        )
    if "input_ids" in names:
        yield "one short text", {"input_ids": torch.randint(3, 60, (1, 8))}
        yield "long text", {"input_ids": torch.randint(3, 60, (1, 256))}


def _with_placeholders(
    model: nn.Module, config: Any, text: dict[str, Any], pictures: dict[str, Any]
) -> dict[str, Any] | None:
    """Put as many image tokens into the text as the tower returns vectors."""
    token = _first(config, "image_token_id", "image_token_index", default=None)
    encode = getattr(model, "get_image_features", None)
    if not isinstance(token, int) or encode is None:
        return None
    try:
        with torch.no_grad():
            found = encode(**{key: value for key, value in pictures.items() if key != "pixel_mask"})
    except Exception:
        return None
    count = _rows(found)
    if count is None or count % BATCH or count > 4000:
        return None
    ids = text["input_ids"]
    marks = torch.full((BATCH, count // BATCH), token, dtype=ids.dtype)
    given = {**text, **pictures, "input_ids": torch.cat([ids[:, :4], marks, ids[:, 4:]], dim=1)}
    names = accepted(model)
    for kind in ("mm_token_type_ids", "token_type_ids"):
        if kind in names:
            given[kind] = (given["input_ids"] == token).long()
    return given


def _rows(found: Any) -> int | None:
    """Count vectors in what ``get_image_features`` returned."""
    held = getattr(found, "pooler_output", None)
    if held is None:
        held = found if isinstance(found, Tensor | list | tuple) else None
    if isinstance(held, Tensor):
        return held.numel() // held.shape[-1]
    if isinstance(held, list | tuple) and held and isinstance(held[0], Tensor):
        return sum(item.numel() // item.shape[-1] for item in held if isinstance(item, Tensor))
    return None


def _size(config: Any) -> tuple[int, int]:
    size = _first(
        config,
        "image_size",
        "img_size",
        "vision_config.image_size",
        "backbone_config.image_size",
        "crop_size",
        default=64,
    )
    if isinstance(size, list | tuple) and len(size) >= 2:
        return int(size[-2]), int(size[-1])
    if isinstance(size, dict):
        return int(size.get("height", 64)), int(size.get("width", 64))
    return (size, size) if isinstance(size, int) else (64, 64)


def _patch(config: Any) -> int:
    size = _first(
        config, "patch_size", "vision_config.patch_size", "spatial_patch_size", default=14
    )
    if isinstance(size, list | tuple):
        size = size[-1]
    return size if isinstance(size, int) else 14


def _first(config: Any, *paths: str, default: Any) -> Any:
    """Return the first of some dotted attributes that is set."""
    for path in paths:
        held = config
        for part in path.split("."):
            held = getattr(held, part, None)
        if held is not None:
            return held
    return default
