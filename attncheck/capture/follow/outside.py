"""What leaves the functions of torch: to somebody's kernels, sparse matrices, other libraries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from torch import Tensor

from attncheck.capture.call import Sink
from attncheck.capture.follow.origins import Origins
from attncheck.capture.follow.products import Product
from attncheck.capture.follow.traces import Trace, Traces
from attncheck.capture.recorders.fused_kernels import attends, floats_in
from attncheck.capture.recorders.kernels import identity_of

__all__ = ["Outside"]

SPARSE: Final = "its softmax runs over a sparse matrix, which is not supported"
CALL_TORCH: Final = (
    "Call torch.nn.functional.scaled_dot_product_attention where its attention is to be captured, "
    "or pass strict=False to keep the other layers"
)
TRIES: Final = 4
"""How many calls of a kernel are looked into: a first one may have got other numbers or masks."""

LEAVE_OUT: Final = "Pass strict=False to keep the other layers"


class Outside:
    """Tells of attention that cannot be followed there.

    Args:
        sink: Where to tell.
        traces: Of the tensors that are followed.
        origins: What does not depend on the model's input.
    """

    def __init__(self, sink: Sink, traces: Traces, origins: Origins) -> None:
        self._sink, self._traces, self._origins = sink, traces, origins
        self._left: dict[tuple[int, ...], int] = {}
        self._others: Counter[tuple[Any, ...]] = Counter()
        """How often kernels did something else with arguments like these."""

    def __bool__(self) -> bool:
        """Whether scores went to another library."""
        return bool(self._left)

    def leave(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Call a function, and remember the shape of scores that go to another library by it."""
        tensor: Any = args[0] if args else None
        trace = self._traces[tensor] if isinstance(tensor, Tensor) else None
        if trace is not None and trace.stage in ("scores", "raised"):
            self._left[tuple(tensor.shape)] = trace.product
        elif trace is not None and trace.stage == "weights":
            self._sink.softmax_left(trace.product)
        return function(*args, **kwargs)

    def compare(self, product: Product) -> None:
        """What comes back in the same shape, and multiplies an activation, may be weights."""
        for operand in product.operands:
            number = self._left.get(tuple(operand.shape))
            if number is not None and not self._origins.is_static(operand):
                self._sink.values_met(number)

    def normalise_sparse(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Call a softmax over the pairs that are there in a sparse matrix of scores, and tell."""
        scores = args[0] if args else None
        trace = self._traces[scores] if isinstance(scores, Tensor) else None
        place = self._sink.here()
        if trace is not None and trace.stage in ("scores", "pairs") and place is not None:
            self._sink.softmax_used(trace.product)
            self._sink.unreadable(place[1], SPARSE, LEAVE_OUT)
        return function(*args, **kwargs)

    def weigh(self, trace: Trace, given: tuple[Any, ...]) -> None:
        """Weights went into a kernel and did not come out: with an activation, it multiplied them.

        Args:
            trace: Of the weights.
            given: All arguments of the kernel.
        """
        others = [t for t in floats_in(given) if self._traces[t] is not trace]
        if any(not self._origins.is_static(other) for other in others):
            self._sink.values_met(trace.product)

    def look_into(self, function: Callable[..., Any], given: tuple[Any, ...], out: Any) -> None:
        """Tell of a kernel that computed attention as a whole.

        Args:
            function: The kernel.
            given: All of its arguments.
            out: What it returned.
        """
        shapes = (tuple(tensor.shape) for tensor in floats_in(given))
        options = (arg for arg in given if isinstance(arg, int | float | str))
        key = (identity_of(function), *shapes, *options)
        place = None if self._others[key] >= TRIES else self._sink.here()
        if place is None:
            return
        name = str(getattr(function, "__name__", "")).partition(".")[0]
        told = attends(name, given, out)
        if told:
            what = f"calls the kernel {name}, which computes attention"
            self._sink.unreadable(place[1], what, CALL_TORCH)
        elif told is not None:
            self._others[key] += 1
