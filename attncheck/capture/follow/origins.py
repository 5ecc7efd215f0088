"""What does not depend on a model's input: parameters, and what a model computes from them alone.

A router's weight may be scaled, normalised, merged with LoRA, dequantised or cast when it is used,
and a projection may be drawn anew in every call: a product with it is a linear map all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from torch import Tensor, nn

from attncheck.capture.call import Sink
from attncheck.capture.follow.noted import Noted

__all__ = ["CREATIONS", "DRAWS", "Origins", "storage_of", "tensors_in"]

DRAWS: Final = frozenset(
    {"rand", "randn", "rand_like", "randn_like", "bernoulli", "bernoulli_", "uniform_", "normal_"}
    | {"exponential_", "random_", "randint", "randint_like", "randperm", "multinomial"}
)
"""Functions whose numbers are random."""

CREATIONS: Final = frozenset(
    {"arange", "zeros", "ones", "full", "empty", "eye", "linspace", "logspace", "tril_indices"}
    | {"triu_indices", "zeros_like", "ones_like", "empty_like", "full_like", "rand", "randn"}
    | {"rand_like", "randn_like", "randint", "randint_like", "randperm", "hann_window"}
    | {"new_zeros", "new_ones", "new_empty", "new_full"}
)
"""Functions whose numbers depend on no tensor, but at most on its shape."""


LAYERS: Final = frozenset(
    {"linear", "embedding", "layer_norm", "rms_norm", "group_norm", "conv1d", "conv2d", "conv3d"}
)
"""What these make of a parameter counts as an activation: learned tokens are projected so."""


class Origins:
    """Knows which tensors a model computed without its input; each as long as it lives.

    Args:
        sink: Whose model it is.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._held: Noted[bool] = Noted()
        """Tensors that were, and whether of random numbers."""
        self._weights: dict[int, Tensor] = {}
        self._call = self._listed = -1

    def __bool__(self) -> bool:
        return bool(self._held)

    def computed(self, tensor: Tensor) -> bool:
        """Whether it was computed, or created, without the model's input."""
        if not self._held or self._call != self._sink.model_calls:
            return False
        return self._held.get(tensor) is not None

    def may_be_static(self, first: Tensor) -> bool:
        """Whether a first argument leaves it open; a quick look, as nearly every function asks."""
        if self._listed != self._sink.model_calls:
            self._list_weights()
        if self._held.has_id(id(first)) or id(first) in self._weights:
            return True
        base = first._base
        return base is not None and _is_parameter(base)

    def drawn(self, tensor: Tensor) -> bool:
        """Whether it was computed without the model's input, from random numbers."""
        return self.computed(tensor) and bool(self._held.get(tensor))

    def is_parameter(self, tensor: Tensor) -> bool:
        """Whether it is a parameter, or a view of one: then a product with it is a linear map.

        So is a matrix that a module keeps as a buffer, and what ``torch.func.functional_call`` puts
        in the place of a parameter. Buffers of more axes may be a cache of keys and values.
        """
        base = tensor._base
        if _is_parameter(tensor) or (base is not None and _is_parameter(base)):
            return True
        self._list_weights()
        return bool(self._weights) and (
            id(tensor) in self._weights or id(tensor._base) in self._weights
        )

    def is_static(self, tensor: Tensor) -> bool:
        """Whether it is a parameter, or was computed without the model's input."""
        return self.computed(tensor) or self.is_parameter(tensor)

    def after(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        out: Any,
    ) -> None:
        """Note what a function returned, if none of its tensors depends on the input.

        Args:
            name: Of a function.
            args: That it got.
            kwargs: That it got.
            out: What it returned.
        """
        if name in CREATIONS:
            if isinstance(out, Tensor) and "out" not in kwargs:
                self._add(out, name in DRAWS)
            return
        if name in LAYERS:
            return
        made = tensors_in((_target(name, args, kwargs, out),))
        tensors = tensors_in((*args, *kwargs.values())) if made else []
        if not tensors:
            return
        if all(map(self._is_constant, tensors)):
            random = name in DRAWS or any(map(self.drawn, tensors))
            for tensor in made:
                if not _is_parameter(tensor):
                    self._add(tensor, random)
        else:
            given = set(map(id, tensors))
            self.forget(tensor for tensor in made if id(tensor) in given)

    def forget(self, written: Iterable[Tensor]) -> None:
        """An input was written into these: they, and all that share their memory, depend on it."""
        for tensor in written:
            self._forget(tensor)

    def _is_constant(self, tensor: Tensor) -> bool:
        known = self.computed(tensor) or id(tensor) in self._weights
        return known or self.is_parameter(tensor) or tensor.ndim == 0

    def _add(self, tensor: Tensor, random: bool) -> None:
        if self._call != self._sink.model_calls:
            self._held.clear()
            self._call = self._sink.model_calls
        self._held[tensor] = random

    def _forget(self, tensor: Tensor) -> None:
        place = storage_of(tensor)
        for held, _ in self._held.items():
            if storage_of(held) == place:
                self._held.forget(held)

    def _list_weights(self) -> None:
        """List, once for each call of the model, what takes the place of parameters."""
        if self._listed == self._sink.model_calls:
            return
        self._listed = self._sink.model_calls
        self._weights = {}
        for module in self._sink.modules.modules:
            for held in (*module._buffers.values(), *module._parameters.values()):
                if held is not None and not _is_parameter(held) and held.ndim <= 2:
                    self._weights[id(held)] = held


def _target(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> Any:
    """Return what a function wrote into, or else what it returned."""
    if name == "__setitem__" or (name.startswith("_foreach_") and name.endswith("_")):
        return args[0]
    written = kwargs.get("out")
    return out if written is None else written


def _is_parameter(tensor: Tensor) -> bool:
    """Say what `isinstance` says, which takes ten times as long for this class."""
    kind = type(tensor)
    return kind is nn.Parameter or (kind is not Tensor and isinstance(tensor, nn.Parameter))


def storage_of(tensor: Tensor) -> int:
    """Tell the memory that it is a view of from any other, as far as it has one.

    Args:
        tensor: Of any kind.
    """
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return id(tensor)


def tensors_in(values: Sequence[Any]) -> list[Tensor]:
    """List the tensors among some values, also those in lists.

    Args:
        values: Of any kind.
    """
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += tensors_in(value)
    return found
