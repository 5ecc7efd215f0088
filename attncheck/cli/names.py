"""What a name on the command line stands for: a factory, a path, or a model on the hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from attncheck.cli.problem import CommandError

__all__ = ["asks_the_hub", "is_factory", "require_there"]

FACTORY: Final = re.compile(r"[\w.]+:[\w.]+")
HUB: Final = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
"""``name`` or ``owner/name``, as the Hugging Face hub has them."""

FILES: Final = (".json", ".jsonl", ".safetensors", ".pt", ".pth", ".bin", ".py")
"""Endings of files that commands read; nobody calls a model so."""

OFFLINE: Final = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
TRUE: Final = ("1", "ON", "YES", "TRUE")
"""What the variables of huggingface_hub hold where they are set."""


def is_factory(name: str) -> bool:
    """Whether a name is ``package.module:function``.

    Example:
        >>> is_factory("my.models:make"), is_factory("gpt2")
        (True, False)
    """
    return FACTORY.fullmatch(name) is not None and not Path(name).exists()


def asks_the_hub(name: str | None) -> bool:
    """Whether transformers will look for a model of this name on the network."""
    local = name is None or FACTORY.fullmatch(name) or Path(name).exists()
    offline = any(os.environ.get(v, "").upper() in TRUE for v in OFFLINE)
    return not (local or offline or _is_path(name))


def require_there(name: str | None) -> None:
    """Raise where a name can only be a file or folder, and there is none.

    Raises:
        CommandError: Says so; whatever else would look for it asks the hub.

    Example:
        >>> require_there("gpt2")
        >>> require_there("no/such.json")
        Traceback (most recent call last):
        attncheck.cli.problem.CommandError: no/such.json: no such file or folder
    """
    if name is not None and _is_path(name) and not Path(name).exists():
        raise CommandError(f"{name}: no such file or folder")


def _is_path(name: str | None) -> bool:
    """Whether a name has the form of a path and of nothing else."""
    if name is None or FACTORY.fullmatch(name):
        return False
    return Path(name).suffix in FILES or HUB.fullmatch(name) is None
