"""`AttentionMaps` on disk: one safetensors file, data only, written whole or not at all."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from attncheck.attention.maps import AttentionMaps, LayerAttention

__all__ = ["load_maps", "save_maps"]

SCHEMA = "attncheck.maps.1"
KEY = "attncheck"
TENSORS = ("weights", "mask", "sink_mass", "sighted")
TUPLES = ("heads", "queries")


def save_maps(maps: AttentionMaps, path: Path) -> Path:
    """Write maps to ``path``; a crash half-way leaves what was there before."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: there is no folder {path.parent} to write {path.name} to")
    tensors, described = {}, []
    for number, layer in enumerate(maps.layers):
        for field in TENSORS:
            tensor = getattr(layer, field)
            if tensor is not None:
                tensors[f"{number}.{field}"] = tensor.detach().cpu().contiguous().clone()
        described.append(
            {f.name: getattr(layer, f.name) for f in fields(layer) if f.name not in TENSORS}
        )
    held = {"schema": SCHEMA, "layers": described, "tokens": maps.tokens}
    # One entry: safetensors writes several in random order, and equal maps make equal files.
    metadata = {KEY: json.dumps(held, sort_keys=True)}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask has it; safetensors makes 0600
        save_file(tensors, temporary, metadata=metadata)
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load_maps(path: Path) -> AttentionMaps:
    """Read what `save_maps` wrote."""
    if path.is_dir():
        raise IsADirectoryError(
            f"path: {path} is a folder; expected a file that AttentionMaps.save wrote"
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(KEY, "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"path: {path} is not a readable safetensors file ({error})") from None
    if metadata.get("schema") != SCHEMA:
        raise ValueError(
            f"path: {path} holds schema {metadata.get('schema')!r}, expected {SCHEMA!r}: "
            "it was not written by AttentionMaps.save"
        )
    layers = []
    for number, described in enumerate(metadata["layers"]):
        described.update({name: tuple(described.get(name, ())) for name in TUPLES})
        held: dict[str, Any] = {field: tensors.get(f"{number}.{field}") for field in TENSORS}
        layers.append(LayerAttention(**held, **described))
    tokens = metadata["tokens"]
    return AttentionMaps(layers, tokens=None if tokens is None else tuple(map(tuple, tokens)))
