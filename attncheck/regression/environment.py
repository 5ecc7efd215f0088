"""`Environment`: what a record was made on, and what it was made from."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from typing import Any, Final

import torch

from attncheck.attention import AttentionMaps
from attncheck.profile import HeadProfile
from attncheck.tolerances import tolerance_for

__all__ = ["Environment", "device_key", "environment_of", "input_hash"]

LIBRARIES: Final = ("torch", "transformers")
"""Whose versions a record names, where they are loaded."""


@dataclass(frozen=True)
class Environment:
    """Device, dtype and versions.

    Attributes:
        device: ``"cpu"``, ``"mps"``, or with the compute capability, ``"cuda-9.0"``.
        dtype: The coarsest of the weights.
        versions: Name and version of libraries.

    Example:
        >>> str(Environment("cuda-9.0", "bfloat16", (("torch", "2.13.0"),)))
        'cuda-9.0 bfloat16 torch 2.13.0'
    """

    device: str
    dtype: str
    versions: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return " ".join([self.device, self.dtype, *(f"{n} {v}" for n, v in self.versions)])

    @property
    def family(self) -> str:
        """Device without the minor capability: ``"cuda-9"``."""
        return self.device.partition(".")[0]

    def serves(self, other: Environment) -> bool:
        """Whether a record made here is of the same device family and dtype as another."""
        return (self.family, self.dtype) == (other.family, other.dtype)


def environment_of(profile: HeadProfile, device: torch.device) -> Environment:
    """Describe where a profile was made.

    Args:
        profile: Whose dtype counts.
        device: What the model ran on.
    """
    dtypes = {layer.dtype for layer in profile.layers}
    coarsest = max(dtypes, key=lambda name: tolerance_for(name).row_sum)
    versions = []
    for name in LIBRARIES:
        if name in sys.modules:
            found = str(getattr(sys.modules[name], "__version__", "unknown"))
            versions.append((name, found.partition("+")[0]))
    return Environment(device_key(device), coarsest, tuple(versions))


def device_key(device: torch.device) -> str:
    """Name a device by kind and capability.

    Example:
        >>> device_key(torch.device("cpu"))
        'cpu'
    """
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"cuda-{major}.{minor}"
    return device.type


def input_hash(maps: AttentionMaps | None) -> str | None:
    """Hash what is known of the input: shapes and tokens. None for a profile, which knows neither.

    Example:
        >>> from attncheck.attention import as_attention
        >>> one, other = (as_attention(torch.eye(2), tokens=list(word)) for word in ("ab", "cd"))
        >>> len(input_hash(one)), input_hash(one) == input_hash(other), input_hash(None)
        (12, False, None)
    """
    if maps is None:
        return None
    shapes: list[Any] = [[layer.batch, layer.n_query, layer.n_key] for layer in maps.layers]
    text = json.dumps([shapes, maps.tokens], ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
