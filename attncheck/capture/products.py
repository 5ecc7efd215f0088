"""Weights times value, in the spellings that models use: which operand is which, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._C import _functorch

__all__ = ["Product", "as_product", "is_parameter", "place_of"]


ELLIPSIS_SIGNS: Final = 0x3B1
"""First of the signs that stand for the axes of an ellipsis, counted from the last one."""


@dataclass(frozen=True, eq=False)
class Product:
    """A product of two tensors that is summed over one or more shared axes.

    Attributes:
        left: First operand.
        right: Second operand.
        equation: For einsum: the letters of both operands and of the result.
    """

    left: Tensor
    right: Tensor
    added: Tensor | None = None
    equation: tuple[str, str, str] | None = None

    def rows_of(self, tensor: Tensor, *, is_left: bool) -> Tensor | None:
        """View an operand as ``(..., query, key)`` if the product sums over one key axis of it.

        Args:
            tensor: The operand, or one of the same shape.
            is_left: Which operand it is.
        """
        if self.equation is None:
            if tensor.ndim < 2:
                return None
            return tensor if is_left else tensor.transpose(-1, -2)
        mine, other = self.equation[0], self.equation[1]
        if not is_left:
            mine, other = other, mine
        out = self.equation[2]
        keys = [axis for axis in mine if axis in other and axis not in out]
        queries = [axis for axis in mine if axis not in other and axis in out]
        if len(keys) != 1 or len(queries) != 1:
            return None
        shared = [axis for axis in mine if axis not in (keys[0], queries[0])]
        order = [mine.index(axis) for axis in (*shared, queries[0], keys[0])]
        return tensor.permute(order)


def as_product(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Product | None:
    """Read the arguments of a matmul-like function; None if they are no product of two tensors."""
    if name == "einsum":
        return _einsum(args)
    operands = [*args, *(kwargs[key] for key in ("other", "mat2", "tensor2") if key in kwargs)]
    added = None
    if name == "baddbmm":
        added, operands = operands[0], [*operands[1:], *_named(kwargs, "batch1", "batch2")]
    if len(operands) < 2 or not all(isinstance(operand, Tensor) for operand in operands[:2]):
        return None
    left, right = operands[:2]
    if name == "__rmatmul__":
        left, right = right, left
    return Product(left, right, added=added)


def _named(kwargs: Mapping[str, Any], *names: str) -> list[Any]:
    return [kwargs[name] for name in names if name in kwargs]


def _einsum(args: tuple[Any, ...]) -> Product | None:
    if not args or not isinstance(args[0], str):
        return None
    operands = args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:]
    inputs, arrow, out = args[0].replace(" ", "").partition("->")
    letters = inputs.split(",")
    if len(operands) != 2 or len(letters) != 2:
        return None
    if not arrow:  # einsum's own rule: letters that occur once, in alphabetical order
        plain = inputs.replace("...", "").replace(",", "")
        once = "".join(sorted(letter for letter in plain if plain.count(letter) == 1))
        out = f"...{once}" if "..." in inputs else once
    left, right = (
        _spelled_out(mine, tensor) for mine, tensor in zip(letters, operands, strict=True)
    )
    out = out.replace("...", left[1] if len(left[1]) >= len(right[1]) else right[1])
    if len(set(left[0])) != len(left[0]) or len(set(right[0])) != len(right[0]):
        return None
    return Product(operands[0], operands[1], equation=(left[0], right[0], out))


def _spelled_out(letters: str, tensor: Tensor) -> tuple[str, str]:
    """Replace an ellipsis by one sign per axis; return the letters and what replaced it."""
    count = tensor.ndim - len(letters.replace("...", "")) if "..." in letters else 0
    signs = "".join(chr(ELLIPSIS_SIGNS + axis) for axis in reversed(range(count)))
    return letters.replace("...", signs), signs


def is_parameter(tensor: Tensor) -> bool:
    """Whether a tensor is a parameter or a view of one: then a product with it is a linear map."""
    return isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)


def place_of(tensor: Tensor) -> tuple[int, int]:
    """Return the address of a tensor's memory and its offset there; zeros where it has none."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta:  # fake ones among others
        return 0, 0
    if _functorch.is_functorch_wrapped_tensor(tensor) or tensor.layout != torch.strided:
        return 0, 0
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())
