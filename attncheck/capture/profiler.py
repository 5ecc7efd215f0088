"""Layers measured as they are captured, and dropped."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, get_args

from attncheck.attention import LayerAttention, head_name
from attncheck.attention.maps import Tokens
from attncheck.attention.tokens import as_tokens
from attncheck.attention.validate import require_cells
from attncheck.capture.call import Kind
from attncheck.capture.select import fits
from attncheck.evaluate import profile_layer
from attncheck.profile import HeadProfile, LayerProfile

__all__ = ["Evaluator", "Profiler"]

Evaluator: TypeAlias = Callable[[LayerAttention, Tokens | None], LayerProfile]
"""Measures a layer, with the tokens of its keys where they are known.

The layer holds its `QueryKey` in ``layer.query_key``, whose tensors are the running model's and
not to be kept; where that is None, its weights are all there is. ``layer.weights`` would make the
matrix; shape, mask, positions and visible keys are read without it.
"""


MEASURES: Final = "(layer, tokens) -> LayerProfile, such as attncheck.evaluate.profile_layer"


class Profiler:
    """Collects the profiles of a capture.

    Args:
        evaluator: Measures each layer.
        tokens: Strings or ids, one per key, which every self-attention layer of that length takes.
            Default: those of the captured call.
        kinds: What layers are, by name or pattern, where a capture cannot tell.

    Raises:
        TypeError: ``evaluator`` is no function, or ``kinds`` no mapping of names.
        ValueError: ``kinds`` holds another word than ``"self"``, ``"cross"`` and ``"unknown"``.
    """

    def __init__(
        self,
        evaluator: Evaluator = profile_layer,
        tokens: Any = None,
        kinds: Mapping[str, Kind] | None = None,
    ) -> None:
        if not callable(evaluator):
            raise TypeError(f"evaluator: {evaluator!r}; expected a function {MEASURES}")
        self._evaluator = evaluator
        self._given = tokens
        self._kinds = _checked(kinds)
        self._named: set[str] = set()
        self._layers: list[LayerProfile] = []
        self._unfit: list[ValueError] = []

    def take(self, layer: LayerAttention, tokens: Tokens | None) -> None:
        """Measure a layer; ``tokens`` are those of the call.

        Raises:
            TypeError: The evaluator returned something else than a profile.
            ValueError: The layer has no sequences, heads, queries or keys.
        """
        for wanted, kind in self._kinds.items():
            if fits(layer.name, wanted):
                self._named.add(wanted)
                layer = layer.changed(kind=kind)
        require_cells(layer.shape, f"layer {layer.index}, {layer.name}")
        held = tokens if self._given is None else self._given
        try:
            fitting = None if layer.kind == "cross" else as_tokens(held, [layer])
        except ValueError as error:
            fitting = None
            self._unfit.append(error)
        measured = self._evaluator(layer, fitting)
        if not isinstance(measured, LayerProfile):
            raise TypeError(
                f"evaluator: returned {type(measured).__name__} for layer {layer.name}; expected a "
                f"function {MEASURES}"
            )
        self._layers.append(measured)

    def profile(self) -> HeadProfile:
        """Return what was measured.

        Raises:
            ValueError: Given tokens fit no layer, or a name in ``kinds`` does not.
        """
        for wanted in self._kinds:
            if wanted not in self._named:
                names = ", ".join(dict.fromkeys(layer.name for layer in self._layers[:8]))
                raise ValueError(f"kinds: no layer fits {wanted!r}; there are {names}")
        selves = sum(layer.kind != "cross" for layer in self._layers)
        if self._given is not None and self._unfit and len(self._unfit) == selves:
            raise self._unfit[0]
        profile = HeadProfile(self._layers)
        broken = profile.not_finite
        if broken:
            warnings.warn(
                f"NaN or infinite attention weights in {len(broken)} of {len(profile.heads())} "
                f"heads, first {broken[0]} ({_layer_of(profile, broken[0])}): their measures are "
                "no numbers",
                stacklevel=3,
            )
        return profile


def _checked(kinds: Any) -> Mapping[str, Kind]:
    if kinds is None:
        return {}
    if not isinstance(kinds, Mapping):
        raise TypeError(f"kinds: {kinds!r}; expected a mapping such as {{'decoder.*': 'cross'}}")
    for name, kind in kinds.items():
        if not isinstance(name, str):
            raise TypeError(f"kinds: {name!r} is {type(name).__name__}; expected names of layers")
        if kind not in get_args(Kind):
            words = ", ".join(map(repr, get_args(Kind)))
            raise ValueError(f"kinds: {name!r} is {kind!r}; expected one of {words}")
    return kinds


def _layer_of(profile: HeadProfile, head: str) -> str:
    """Name of the layer that a head belongs to."""
    return next(
        layer.name
        for layer in profile.layers
        if head in (head_name(layer.index, number) for number in layer.heads)
    )
