"""What a function that a model calls makes of the scores or weights that it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeGuard

import torch
from torch import Tensor

from attncheck.capture.follow.axes import MOVES, Axes, after
from attncheck.capture.follow.traces import Trace

__all__ = [
    "ADDITIONS",
    "DIFFERENCES",
    "EXPONENTIALS",
    "LAYERS",
    "PICKS",
    "QUOTIENTS",
    "SHUFFLES",
    "TIMES",
    "Step",
    "first_ahead",
    "name_of",
    "works_in_place",
]

ENDS: Final = frozenset(
    {
        *("cos", "sin"),  # angles of rotary embeddings are a product of two tensors as well
        *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"),
        *("new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"),
    }
)
"""Functions behind which a tensor is no longer scores or weights, or only has their shape."""

PICKS: Final = frozenset({"topk", "sort", "gather", "index_select", "take_along_dim"})
"""Functions that choose other keys for every query."""

SHUFFLES: Final = frozenset(
    {"flip", "roll", "sort", "msort", "topk", "cumsum", "gather", "index_select", "take_along_dim"}
    | {"fliplr", "flipud", "cummax", "logcumsumexp", "scatter", "masked_select", "take"}
)
"""Functions behind which a number is no longer where it was, or no longer alone."""

REDUCTIONS: Final = frozenset(
    {"sum", "mean", "max", "min", "amax", "amin", "norm", "logsumexp", "std", "var", "any", "all"}
    | {"linalg_vector_norm", "prod"}
)
"""Functions that return fewer numbers than they got."""

LAYERS: Final = ("linear", "conv1d", "conv2d", "conv3d")
EXPONENTIALS: Final = ("exp", "exp_", "exp2", "exp2_", "special_exp2", "__rpow__")
QUOTIENTS: Final = ("div", "div_", "divide", "true_divide", "__truediv__", "__itruediv__")
TIMES: Final = ("mul", "mul_", "multiply", "__mul__", "__rmul__", "__imul__")
ADDITIONS: Final = ("add", "add_", "__add__", "__radd__", "__iadd__")
DIFFERENCES: Final = ("sub", "sub_", "subtract", "__sub__", "__isub__")
UNCHANGED: Final = ("contiguous", "clone", "detach", "requires_grad_", "cpu", "cuda", "alias")
WHOLE: Final = frozenset(
    {"int", "long", "short", "byte", "char", "to", "type", "type_as", "_to_copy"}
    | {"quantize_per_tensor", "quantize_per_channel"}
)
"""Functions that may make whole numbers of others."""

LOOKUPS: Final = frozenset(
    {"__getitem__", "gather", "index_select", "take_along_dim", "take", "scatter", "scatter_add"}
    | {"index_add", "embedding", "one_hot"}
)
"""Functions in which whole numbers may be places in something else."""

CASTS: Final = frozenset(
    {"to", "type", "type_as", "float", "double", "half", "bfloat16", "nan_to_num", "nan_to_num_"}
)
WRITES: Final = ("__setitem__", "__imul__", "__itruediv__", "__iadd__", "__isub__")


@dataclass(frozen=True, eq=False)
class Step:
    """A function that a model called on a traced tensor.

    Attributes:
        function: That was called.
        name: Of it.
        args: That it got.
        kwargs: That it got.
        source: The traced tensor among them.
        trace: Of that.
        out: What it returned.
        before: The numbers of the traced tensor, where the function overwrote them.
        written: Arguments that such a kernel overwrote.
        custom: It is a kernel of somebody: an `autograd.Function`, an operator, TorchScript.
    """

    function: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    source: Tensor
    trace: Trace
    out: Any
    before: Tensor | None = None
    custom: bool = False
    written: tuple[Tensor, ...] = ()

    def having_written(self, written: tuple[Tensor, ...]) -> Step:
        """Return the step of a kernel that overwrote some of its arguments."""
        before = self.before if any(tensor is self.source for tensor in written) else None
        return replace(self, before=before, written=written)

    def target(self) -> Tensor | None:
        """Return the tensor that holds the result."""
        target = self.args[0] if self.name == "__setitem__" else self.out
        if isinstance(target, tuple | list) and target and self.name == "native_dropout":
            target = target[0]
        return target if self.keeps(target) else None

    def keeps(self, part: Any) -> TypeGuard[Tensor]:
        """Whether something that it returned may hold numbers of the source: whole, or not."""
        if not isinstance(part, Tensor):
            return False
        if part.is_floating_point() or part.is_complex():
            return True
        return part.dtype != torch.bool and (_is_whole(self.source) or self.name in WHOLE)

    def ends(self) -> bool:
        """Whether the result is nothing of the kind that the source was."""
        if self.name in LOOKUPS and _is_whole(self.source):
            first = self.args[0] if self.args else None
            return first is not self.source or self.name == "one_hot"
        return self.name in ENDS

    def reduces(self) -> bool:
        """Whether it makes one number of each row, which may be one number long."""
        out = self.out
        if self.name not in REDUCTIONS or not isinstance(out, Tensor):
            return False
        return out.numel() < self.source.numel() or self.reduced_dims() is not None

    def reduced_dims(self) -> tuple[int, ...] | None:
        """Return which axes a reduction is over; None: all of them."""
        dims = self.kwargs.get("dim", self.kwargs.get("axis"))
        place = 2 if self.name in ("norm", "linalg_vector_norm") else 1
        if dims is None and len(self.args) > place:
            dims = self.args[place]
        if isinstance(dims, int):
            return (dims,)
        return tuple(dims) if isinstance(dims, tuple | list) else None

    def axes_of(self, part: Tensor) -> Axes | None:
        """Return the axes of one of the tensors that it returned."""
        return after(
            self.function,
            self.name,
            self.args,
            self.kwargs,
            self.trace.axes,
            self.source.shape,
            part,
        )

    def others(self) -> list[Tensor]:
        """List the other tensors that it got."""
        given = (*self.args, *self.kwargs.values())
        return [arg for arg in given if isinstance(arg, Tensor) and arg is not self.source]

    def multiplied_with(self) -> Tensor | None:
        """Return what the traced tensor is multiplied with, element by element; None: nothing."""
        factors: list[Any] = []
        if self.name in TIMES:
            factors = self.others()
        elif self.name in ("addcmul", "addcmul_"):
            given = (self.kwargs.get("tensor1"), self.kwargs.get("tensor2"))
            both = [t for t in (*self.args[1:], *given) if isinstance(t, Tensor)]
            if any(t is self.source for t in both):
                factors = [t for t in both if t is not self.source]
        return factors[0] if factors else None

    def raises(self) -> bool:
        """Whether it takes the exponential of the traced tensor."""
        if self.name in ("pow", "float_power"):
            return len(self.args) > 1 and self.args[1] is self.source
        return self.name in EXPONENTIALS

    def function_only_moves(self) -> bool:
        """Whether it lays the same numbers out anew."""
        return self.name in UNCHANGED or self.name == "__get__" or self.name in MOVES

    def only_casts(self) -> bool:
        """Whether it changes numbers by rounding at most."""
        return self.name in CASTS or ("dropout" in self.name and not self.drops())

    def drops(self) -> bool:
        """Whether it is a dropout that changes anything, or a kernel of somebody that may be."""
        if self.custom:
            return isinstance(self.out, Tensor) and self.out.shape == self.source.shape
        return _drops(self.name, self.args, self.kwargs)


def _is_whole(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def _drops(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    if "dropout" not in name:
        return False
    share = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
    training = args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", True))
    return bool(training) and float(share) > 0


def works_in_place(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call overwrites its first argument."""
    if "dropout" in name:
        in_place = name.endswith("_") or kwargs.get("inplace") or (len(args) > 3 and args[3])
        return bool(in_place) and _drops(name, args, kwargs)
    return name in WRITES or (name.endswith("_") and not name.endswith("__"))


def name_of(function: Callable[..., Any]) -> str:
    """Name of a function, without the overload that ``torch.ops`` writes behind it."""
    name = str(getattr(function, "__name__", ""))
    return name.partition(".")[0] if "." in name else name


def first_ahead(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], first: str
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Return arguments with the first one in front, where all were given by name.

    Args:
        args: Given by place.
        kwargs: Given by name.
        first: Name of the first one.
    """
    if args or first not in kwargs:
        return args, kwargs
    return (kwargs[first],), {key: value for key, value in kwargs.items() if key != first}
