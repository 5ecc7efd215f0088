"""Which key-value cache a model of transformers takes and returns; only this file knows its names.

Until 5.23 attention models say ``past_key_values``, from 5.24 ``cache``, as state space models now
do too. Code from outside transformers may keep the old name under a new release, so each model is
asked what it takes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

__all__ = ["cache_argument", "held_cache", "holds_keys"]

NAMES: Final = ("past_key_values", "cache")
"""The old name first: a model that takes both means something else by the other."""


def cache_argument(accepted: Collection[str]) -> str | None:
    """Return the argument that carries the cache, None where there is none.

    Example:
        >>> cache_argument(["input_ids", "cache"]), cache_argument(["input_ids"])
        ('cache', None)
    """
    return next((name for name in NAMES if name in accepted), None)


def held_cache(held: Any) -> Any:
    """Return the cache in arguments by name, or in what a model returned; None: there is none.

    Example:
        >>> held_cache({"past_key_values": "old"}), held_cache({"cache": "new"}), held_cache({})
        ('old', 'new', None)
    """
    # A copy, since outputs of 5.24 answer to the old name too, with a warning.
    named = dict(held) if isinstance(held, Mapping) else {n: getattr(held, n, None) for n in NAMES}
    return next((named[name] for name in NAMES if named.get(name) is not None), None)


def holds_keys(cache: Any) -> bool:
    """Say whether a cache is one of keys and values in any layer, or a state in all of them.

    Example:
        >>> from types import SimpleNamespace as Held
        >>> attention, state = Held(keys=None, values=None), Held(recurrent_states=None)
        >>> holds_keys(Held(layers=[state, attention])), holds_keys(Held(layers=[state]))
        (True, False)
    """
    layers = getattr(cache, "layers", None)
    return not layers or any(hasattr(layer, "keys") for layer in layers)
