"""Whose tokens a layer reads: a model may have several towers, each with a sequence of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from attncheck.attention.maps import Tokens
from attncheck.capture.follow.origins import storage_of
from attncheck.capture.whereabouts import arguments_of, running_modules

__all__ = ["Sequences"]

IDS: Final = ("input_ids", "decoder_input_ids")
"""Arguments that hold token ids, ``(batch, key)``, in transformers and elsewhere."""


class Sequences:
    """Knows the sequences that a call of the model was given, and which of them each layer reads.

    Where there are several, a layer reads what the innermost running module around it was given:
    an encoder its ids, a decoder others, a vision tower none.
    """

    def __init__(self) -> None:
        self._ids: Tensor | None = None
        self._others: set[int] = set()
        self._several = False
        self._read: dict[str, Tensor | None] = {}
        self._tokens: dict[int, tuple[Tensor, Tokens]] = {}
        self._calls = 0

    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Take the arguments of a call of the model.

        Args:
            model: That is called.
            args: For it.
            kwargs: For it.
        """
        self._calls += 1
        self._read = {}
        self._ids = _ids(kwargs.get("input_ids", args[0] if args else None))
        features = [
            given
            for given in (*args, *kwargs.values())
            if isinstance(given, Tensor) and given.is_floating_point() and given.ndim > 2
        ]
        self._others = {storage_of(given) for given in features}
        two_sided = getattr(getattr(model, "config", None), "is_encoder_decoder", False) is True
        decoder = any(name.startswith("decoder") for name in kwargs)
        self._several = two_sided or decoder or (self._ids is not None and bool(features))

    def note(self, name: str) -> None:
        """Note whose tokens a layer reads that is running.

        Args:
            name: Path of the layer.
        """
        if not self._several:
            return
        read = self._around()
        if name in self._read and not _same(self._read[name], read):
            read = None  # one module for two sequences
        self._read[name] = read

    def ids(self, name: str = "") -> Tensor | None:
        """Return token ids of the only call of the model; None: not known, or called again.

        Args:
            name: Path of a layer of self-attention; those that it reads. Default: of the call.
        """
        return self._read.get(name, self._ids) if self._calls == 1 else None

    def tokens(self, name: str = "") -> Tokens | None:
        """Return the same as a tuple for each sequence.

        Args:
            name: Path of a layer.
        """
        ids = self.ids(name)
        if ids is None:
            return None
        held = self._tokens.get(id(ids))
        if held is None or held[0] is not ids:
            held = self._tokens[id(ids)] = ids, tuple(tuple(row) for row in ids.tolist())
        return held[1]

    def _around(self) -> Tensor | None:
        """Return the ids that the innermost module was given that was given any sequence."""
        for _, code, local in running_modules():
            if code.co_name != "forward":
                continue
            given = arguments_of(code, local)
            for name, held in given.items():
                ids = _ids(held)
                if ids is not None and (name in IDS or _same(ids, self._ids)):
                    return self._ids if _same(ids, self._ids) else ids
            if any(isinstance(t, Tensor) and storage_of(t) in self._others for t in given.values()):
                return None
        return self._ids


def _ids(given: Any) -> Tensor | None:
    whole = isinstance(given, Tensor) and given.dtype in (torch.int64, torch.int32)
    return given if whole and given.ndim == 2 else None


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two hold the same numbers in the same place."""
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and storage_of(one) == storage_of(other)
