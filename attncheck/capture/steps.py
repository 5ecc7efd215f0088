"""What a function that a model calls makes of the scores or weights that it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from attncheck.capture.traces import Trace

__all__ = [
    "DIFFERENCES",
    "EXPONENTIALS",
    "JOINS",
    "QUOTIENTS",
    "RESHAPES",
    "TIMES",
    "Step",
    "mixes_heads",
]

ENDS: Final = frozenset(
    {
        *("cos", "sin"),  # angles of rotary embeddings are a product of two tensors as well
        *("linear", "addmm", "conv1d", "conv2d", "cumsum", "sort", "topk"),
        *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"),
        *("new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"),
    }
)
"""Functions behind which a tensor is no longer scores or weights, or only has their shape."""

REDUCTIONS: Final = frozenset(
    {"sum", "mean", "max", "min", "amax", "amin", "norm", "logsumexp", "std", "var", "any", "all"}
)
"""Functions that end it too, where they return fewer numbers than they got."""

EXPONENTIALS: Final = ("exp", "exp_", "exp2", "exp2_", "special_exp2")
QUOTIENTS: Final = ("div", "div_", "true_divide", "__truediv__", "__itruediv__")
TIMES: Final = ("mul", "mul_", "multiply", "__mul__", "__rmul__", "__imul__")

DIFFERENCES: Final = ("sub", "sub_", "subtract", "__sub__", "__isub__")

RESHAPES: Final = ("view", "reshape", "flatten", "unflatten", "ravel")
"""Functions that merge or split axes."""

LAYOUTS: Final = frozenset(
    {
        *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous"),
        *("transpose", "permute", "swapaxes", "swapdims", "movedim", "moveaxis"),
    }
)
"""Functions that only lay the same numbers out otherwise."""

JOINS: Final = ("cat", "concat", "concatenate")
"""Functions that take their tensors as one list."""


@dataclass(frozen=True, eq=False)
class Step:
    """A function that a model called on a traced tensor.

    Attributes:
        name: Of the function.
        args: That it got.
        kwargs: That it got.
        source: The traced tensor among them.
        trace: Of that.
        out: What it returned.
        custom: It is an `autograd.Function` of somebody.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    source: Tensor
    trace: Trace
    out: Any
    custom: bool = False

    def target(self) -> Tensor | None:
        """Return the tensor that holds the result."""
        target = self.args[0] if self.name == "__setitem__" else self.out
        return target if isinstance(target, Tensor) and target.is_floating_point() else None

    def ends(self) -> bool:
        """Whether the result is nothing of the kind that the source was."""
        smaller = isinstance(self.out, Tensor) and self.out.numel() < self.source.numel()
        return self.name in ENDS or (self.name in REDUCTIONS and smaller)

    def mixes(self) -> bool:
        """Whether it is a layer that mixes heads."""
        layer = self.name in ("linear", "conv2d")
        return layer and isinstance(self.out, Tensor) and mixes_heads(self.source, self.out)

    def alike(self, tensor: Tensor) -> Tensor:
        """Lay a tensor of the shape of the source out as the function did with the source."""
        laid_out = self.name in LAYOUTS and self.args and self.args[0] is self.source
        if not laid_out or tensor.shape != self.source.shape:
            return tensor
        name = "reshape" if self.name == "view" else self.name
        moved: Tensor = getattr(Tensor, name)(tensor, *self.args[1:], **self.kwargs)
        return moved

    def others(self) -> list[Tensor]:
        """List the other tensors that it got."""
        return [arg for arg in self.args if isinstance(arg, Tensor) and arg is not self.source]

    def drops(self) -> bool:
        """Whether it is a dropout that changes anything, or an `autograd.Function` that may be."""
        if self.custom:
            return isinstance(self.out, Tensor) and self.out.shape == self.source.shape
        if "dropout" not in self.name:
            return False
        args, kwargs = self.args, self.kwargs
        share = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
        training = args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", True))
        return bool(training) and float(share) > 0


def mixes_heads(source: Tensor, out: Tensor) -> bool:
    """Whether a linear map of scores or weights kept their shape: talking heads.

    Args:
        source: Before, with an axis for heads.
        out: After.
    """
    return source.ndim >= 4 and sorted(out.shape) == sorted(source.shape)
