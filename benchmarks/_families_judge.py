"""Judge one capture: against the model's own maps, and against what the kernels really did.

The judge shares no code with the library. Maps come from ``output_attentions=True``. The number of
attentions comes from torch's dispatcher, below every Python function: fused attention kernels, and
softmaxes over a batched product whose result, followed by its memory, enters another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attncheck import LayerAttention

__all__ = ["KernelCount", "returned_maps", "unmatched"]

FUSED: Final = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "_native_multi_head_attention",
    "_transformer_encoder_layer_fwd",
)
SOFTMAXES: Final = ("_softmax", "_safe_softmax", "_masked_softmax", "exp")
PRODUCTS: Final = ("bmm", "baddbmm")
CHANGES: Final = (
    *("clone", "_to_copy", "copy_", "mul", "div", "add", "sub", "masked_fill", "where", "tanh"),
    *("cat", "slice", "constant_pad_nd", "scatter", "gather", "rsub", "clamp", "_unsafe_view"),
    *("maximum", "masked_fill_", "mul_", "add_", "index", "index_put", "index_put_"),
)
COPIES: Final = (
    *("clone", "_to_copy", "copy_", "native_dropout", "mul", "div", "slice", "constant_pad_nd"),
    *("masked_fill", "where", "cat", "index", "_unsafe_view", "add"),
)


class KernelCount(TorchDispatchMode):
    """Counts attention at the dispatcher.

    Attributes:
        fused: Calls of fused attention kernels.
        softmax: Softmaxes over a product whose result entered another product.
        idle: Softmaxes over a product whose result did not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fused = 0
        self.softmax = 0
        self.idle = 0
        self._source: dict[int, int] = {}
        self._keep: list[Tensor] = []
        self._used: set[int] = set()
        self._scores: set[int] = set()
        self._seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in FUSED:
            self.fused += 1
        elif self._normalises(name, args):
            self._seen += 1
            self._mark(out, self._seen)
        elif name in PRODUCTS and not self._multiplied(args):
            self._score(out)
        elif name in CHANGES and isinstance(out, Tensor):
            given = args[0] if name == "cat" else args
            held = [arg for arg in given if isinstance(arg, Tensor) and arg.numel()]
            if any(arg.untyped_storage().data_ptr() in self._scores for arg in held):
                self._score(out)
        if name in COPIES:
            given = args[0] if name == "cat" else args
            held = [arg for arg in given if isinstance(arg, Tensor) and arg.numel()]
            numbers = [self._source.get(arg.untyped_storage().data_ptr()) for arg in held]
            number = next((number for number in numbers if number is not None), None)
            result = out[0] if isinstance(out, tuple) else out
            if number is not None and isinstance(result, Tensor):
                self._mark(result, number)
        self.softmax = len(self._used)
        self.idle = self._seen - self.softmax
        return out

    def _normalises(self, name: str, args: Any) -> bool:
        """Whether this is a softmax of scores along their last axis, or the raising of one."""
        if name not in SOFTMAXES or args[0].untyped_storage().data_ptr() not in self._scores:
            return False
        return len(args) < 2 or args[1] in (-1, args[0].ndim - 1) or args[0].stride(-1) != 1

    def _multiplied(self, operands: Any) -> bool:
        """Whether a product used the result of a softmax; remember that."""
        used = False
        for operand in operands:
            if isinstance(operand, Tensor) and operand.numel():
                number = self._source.get(operand.untyped_storage().data_ptr())
                if number is not None:
                    self._used.add(number)
                    used = True
        return used

    def _score(self, tensor: Tensor) -> None:
        self._scores.add(tensor.untyped_storage().data_ptr())
        self._keep.append(tensor)

    def _mark(self, tensor: Tensor, number: int) -> None:
        self._source[tensor.untyped_storage().data_ptr()] = number
        self._keep.append(tensor)  # its address must stay taken


def returned_maps(output: Any) -> list[Tensor]:
    """Every attention map that a model's output holds, in all its fields."""
    return [tensor for tensor in _maps(output, inside=False, depth=0) if tensor.ndim >= 3]


def _maps(held: Any, *, inside: bool, depth: int) -> Iterator[Tensor]:
    if depth > 5:
        return
    if isinstance(held, Tensor):
        if inside and held.is_floating_point():
            yield held
    elif hasattr(held, "items"):
        for key, value in held.items():
            yield from _maps(value, inside="attentions" in str(key), depth=depth + 1)
    elif isinstance(held, list | tuple):
        for value in held:
            yield from _maps(value, inside=inside, depth=depth + 1)


def unmatched(returned: list[Tensor], captured: list[LayerAttention]) -> tuple[int, float]:
    """Pair every returned map with the nearest captured one.

    Returned tensors that are no weights of a softmax over keys are left out: sampling weights of
    deformable attention, and decays of linear attention.

    Returns:
        How many returned maps have no captured one of their shape, and the largest difference of
        the others.
    """
    left = [(layer.weights, layer.sink_mass) for layer in captured]
    missing, largest = 0, 0.0
    distinct = {tensor.data_ptr(): tensor for tensor in returned}
    for returned_map in distinct.values():
        wanted = returned_map.detach()
        if not _is_softmax_over_keys(wanted):
            continue
        found = [
            (difference, number)
            for number, (weights, sink_mass) in enumerate(left)
            for difference in _differences(weights, sink_mass, wanted)
        ]
        if not found:
            missing += 1
            continue
        difference, number = min(found)
        largest = max(largest, difference)
        left.pop(number)
    return missing, largest


def _is_softmax_over_keys(wanted: Tensor) -> bool:
    if bool((wanted < 0).any()):
        return False
    sums = wanted.sum(-1)
    if bool((sums > 1.01).any()):
        return False
    several = wanted.ndim == 5 and wanted.shape[-2] > 1
    return not (several and bool(((sums.sum(-1) - 1).abs() < 1e-3).all()))


def _differences(weights: Tensor, sink_mass: Tensor | None, wanted: Tensor) -> Iterator[float]:
    """Yield the largest difference for every way in which the two may be laid out alike."""
    views = [wanted]
    if wanted.ndim == 3:  # heads folded into the batch
        views = [wanted.unflatten(0, weights.shape[:2])] if _folds(weights, wanted) else []
    elif wanted.ndim == 5:  # blocks of a sequence, before or after the heads
        views = [wanted.flatten(0, 1), wanted.movedim(1, 2).flatten(0, 1)]
    for view in views:
        same = weights.shape[:2] == view.shape[:2]
        pairs = zip(weights.shape, view.shape, strict=True)
        if not same or any(have < want for have, want in pairs):
            continue
        # A model that hides its own prompt returns the last rows and columns.
        part = weights[..., -view.shape[-2] :, -view.shape[-1] :]
        yield float((part.nan_to_num(0) - view.nan_to_num(0)).abs().max())
        if view.stride(1) == 0:  # returned as the mean over heads
            yield float((part.mean(1) - view[:, 0]).abs().max())
        if sink_mass is not None:  # returned before the sink took its share
            part = part / part.sum(-1, keepdim=True)
            yield float((part.nan_to_num(0) - view.nan_to_num(0)).abs().max())


def _folds(weights: Tensor, wanted: Tensor) -> bool:
    return wanted.shape[0] == weights.shape[0] * weights.shape[1]
