"""Products of tensors that are summed over shared axes, in the spellings that models use.

Whatever the function, a product is read as einsum would write it: one letter for each axis. An axis
of length 1 that is broadcast is an axis that the operand lacks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch._C import _functorch

__all__ = ["PAIRED", "PRODUCTS", "Letters", "Product", "as_product", "elementwise", "place_of"]

Letters: TypeAlias = tuple[int, ...]

QUERY, KEY, SIZE = 1, 2, 3
"""Letters of a matrix product: rows of the left, columns of the right, what is summed."""

BATCH: Final = 10
"""Letters of shared axes count up from here, from the last axis on."""

LACKS: Final = 0
"""Letter of an axis of length 1 that is broadcast."""

TIED, DOTS = 1000, 2000
"""Letters count up from here for the axes that tensordot sums, and for those of an ellipsis."""


@dataclass(frozen=True, eq=False)
class Product:
    """A product of two or more tensors.

    Attributes:
        operands: Its factors.
        letters: Of each factor, one for each axis.
        out: Of the result.
        added: What was added to it.
    """

    operands: tuple[Tensor, ...]
    letters: tuple[Letters, ...]
    out: Letters
    added: Tensor | None = None

    def summed(self, number: int) -> list[int]:
        """Which axes of an operand the product sums over."""
        letters = self.letters[number]
        return [axis for axis, own in enumerate(letters) if own != LACKS and own not in self.out]


def as_product(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Product | None:
    """Read the arguments of one of `PRODUCTS`; None if they are no product of tensors."""
    read = _READERS[name]
    return read([*args, *(kwargs[key] for key in NAMED if key in kwargs)] if kwargs else [*args])


NAMED: Final = (
    *("equation", "operands", "tensors"),
    *("input", "self", "a", "x1", "batch1", "mat1", "mat"),
    *("other", "b", "x2", "batch2", "mat2", "vec", "vec2", "tensor", "tensor2", "weight"),
    *("dim", "dims"),
)
"""Names of arguments, in the order in which functions take them."""


def _matrix(values: list[Any]) -> Product | None:
    if len(values) < 2 or not (isinstance(values[0], Tensor) and isinstance(values[1], Tensor)):
        return None
    left, right = values[:2]
    return _of_matrices(left, right, right.ndim == 1)


def _of_matrices(left: Tensor, right: Tensor, vector: bool, flip: bool = False) -> Product:
    ahead = max(left.ndim, right.ndim) - 2
    ends = (KEY, SIZE) if flip else (SIZE, KEY)
    own = (SIZE,) if left.ndim == 1 else (*_shared(left, right), QUERY, SIZE)
    other = (SIZE,) if vector else (*_shared(right, left), *ends)
    out = tuple(BATCH + axis for axis in reversed(range(max(ahead, 0))))
    out += (() if left.ndim == 1 else (QUERY,)) + (() if vector else (KEY,))
    return Product((left, right), (own, other), out)


def _shared(tensor: Tensor, other: Tensor) -> Letters:
    """Letters of the batch axes of a factor of a matrix product."""
    made = []
    for axis in range(tensor.ndim - 2):
        ahead = tensor.ndim - 3 - axis
        here = other.ndim - 3 - ahead
        lacks = tensor.shape[axis] == 1 and here >= 0 and other.shape[here] != 1
        made.append(LACKS if lacks else BATCH + ahead)
    return tuple(made)


def _reversed_matrix(values: list[Any]) -> Product | None:
    return _matrix(values[1::-1])


def _transposed(values: list[Any]) -> Product | None:
    """Read ``(..., query, size)`` and ``(..., key, size)``."""
    if len(values) < 2 or not (isinstance(values[0], Tensor) and isinstance(values[1], Tensor)):
        return None
    return _of_matrices(values[0], values[1], values[1].ndim == 1, flip=True)


def _outer_ends(values: list[Any]) -> Product | None:
    """Read ``(*left, size)`` and ``(*right, size)``, where no axis is shared: inner, linear."""
    if len(values) < 2 or not (isinstance(values[0], Tensor) and isinstance(values[1], Tensor)):
        return None
    left, right = values[:2]
    own = tuple(range(BATCH, BATCH + left.ndim - 1))
    other = tuple(range(2 * BATCH + left.ndim, 2 * BATCH + left.ndim + right.ndim - 1))
    return Product((left, right), ((*own, SIZE), (*other, SIZE)), own + other)


def _added(values: list[Any]) -> Product | None:
    product = _matrix(values[1:])
    if product is None or not isinstance(values[0], Tensor):
        return None
    return Product(product.operands, product.letters, product.out, values[0])


def _tensordot(values: list[Any]) -> Product | None:
    left, right = values[:2]
    dims = values[2] if len(values) > 2 else 2
    if isinstance(dims, Tensor):
        return None
    if isinstance(dims, int):
        dims = (range(left.ndim - dims, left.ndim), range(dims))
    mine, its = ([d % t.ndim for d in given] for given, t in zip(dims, (left, right), strict=True))
    own = tuple(TIED + mine.index(a) if a in mine else BATCH + a for a in range(left.ndim))
    start = BATCH + left.ndim
    other = tuple(TIED + its.index(a) if a in its else start + a for a in range(right.ndim))
    return Product((left, right), (own, other), tuple(a for a in own + other if a < TIED))


def _chain(values: list[Any]) -> Product | None:
    tensors = values[0]
    if len(tensors) < 2 or any(tensor.ndim != 2 for tensor in tensors):
        return None
    letters = tuple((BATCH + number, BATCH + number + 1) for number in range(len(tensors)))
    return Product(tuple(tensors), letters, (BATCH, BATCH + len(tensors)))


def elementwise(operands: tuple[Tensor, Tensor], out: Tensor) -> Product:
    """Read a product element by element, or a sum, as one that is not summed over any axis."""
    letters = []
    for operand in operands:
        ahead = out.ndim - operand.ndim
        letters.append(
            tuple(
                LACKS if own == 1 < size else BATCH + out.ndim - 1 - ahead - axis
                for axis, (own, size) in enumerate(
                    zip(operand.shape, out.shape[ahead:], strict=True)
                )
            )
        )
    every = tuple(BATCH + axis for axis in reversed(range(out.ndim)))
    return Product(operands, tuple(letters), every)


def _along(values: list[Any]) -> Product | None:
    """Read a similarity of vectors along one axis."""
    left, right = values[:2]
    ndim = max(left.ndim, right.ndim)
    letters = []
    for own, other in ((left, right), (right, left)):
        made = []
        for axis in range(own.ndim):
            ahead = own.ndim - 1 - axis
            here = other.ndim - 1 - ahead
            lacks = own.shape[axis] == 1 and here >= 0 and other.shape[here] != 1
            made.append(LACKS if lacks else BATCH + ahead)
        letters.append(tuple(made))
    dim = values[2] if len(values) > 2 and isinstance(values[2], int) else 1
    gone = BATCH + ndim - 1 - dim % ndim
    out = tuple(BATCH + axis for axis in reversed(range(ndim)) if BATCH + axis != gone)
    return Product((left, right), tuple(letters), out)


def _along_last(values: list[Any]) -> Product | None:
    return _along([*values[:2], -1])


def _along_given(values: list[Any]) -> Product | None:
    return _along([*values, -1])


def _einsum(values: list[Any]) -> Product | None:
    if len(values) < 2 or not isinstance(values[0], str):
        return None
    operands = values[1] if isinstance(values[1], list | tuple) else values[1:]
    read = _equation(values[0], tuple(tensor.ndim for tensor in operands))
    if read is None:
        return None
    spelled, last = read
    if not any(1 in tensor.shape for tensor in operands):
        return Product(tuple(operands), spelled, last)
    letters = tuple(
        tuple(
            LACKS if tensor.shape[axis] == 1 and _wider(letter, spelled, operands) else letter
            for axis, letter in enumerate(own)
        )
        for own, tensor in zip(spelled, operands, strict=True)
    )
    return Product(tuple(operands), letters, last)


@functools.lru_cache(maxsize=256)
def _equation(equation: str, ndims: tuple[int, ...]) -> tuple[tuple[Letters, ...], Letters] | None:
    """Read an equation for operands of so many axes: the letters of each, and of the result."""
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if len(ndims) != len(terms):
        return None
    if not arrow:  # einsum's own rule: letters that occur once, in alphabetical order
        plain = inputs.replace("...", "").replace(",", "")
        once = "".join(sorted(letter for letter in plain if plain.count(letter) == 1))
        out = f"...{once}" if "..." in inputs else once
    spelled = tuple(_spelled_out(term, ndim) for term, ndim in zip(terms, ndims, strict=True))
    if any(len(set(letters)) != len(letters) for letters in spelled):
        return None
    dots = max((sum(letter >= DOTS for letter in letters) for letters in spelled), default=0)
    return spelled, _spelled_out(out, len(out.replace("...", "")) + dots)


def _spelled_out(term: str, ndim: int) -> Letters:
    """Turn letters into numbers; those of an ellipsis are counted from the last one."""
    before, dots, behind = term.partition("...")
    count = ndim - len(before) - len(behind) if dots else 0
    signs = tuple(DOTS + axis for axis in reversed(range(count)))
    return (*map(ord, before), *signs, *map(ord, behind))


def _wider(letter: int, spelled: Sequence[Letters], operands: Sequence[Tensor]) -> bool:
    return any(
        letter in own and tensor.shape[own.index(letter)] > 1
        for own, tensor in zip(spelled, operands, strict=True)
    )


def place_of(tensor: Tensor) -> tuple[int, int]:
    """Return the address of a tensor's memory and its offset there; zeros where it has none."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta:  # fake ones among others
        return 0, 0
    if _functorch.is_functorch_wrapped_tensor(tensor) or tensor.layout != torch.strided:
        return 0, 0
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())


_READERS: Final[Mapping[str, Callable[[list[Any]], Product | None]]] = {
    **dict.fromkeys(("matmul", "__matmul__", "bmm", "mm", "mv", "linalg_matmul"), _matrix),
    **dict.fromkeys(("dot", "vdot", "linalg_vdot"), _matrix),
    **dict.fromkeys(("_int_mm", "_scaled_mm"), _matrix),
    "sparse_sampled_addmm": _added,
    "__rmatmul__": _reversed_matrix,
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), _added),
    **dict.fromkeys(("inner", "linear"), _outer_ends),
    "cdist": _transposed,
    "einsum": _einsum,
    "tensordot": _tensordot,
    **dict.fromkeys(("linalg_multi_dot", "chain_matmul"), _chain),
    "cosine_similarity": _along,
    **dict.fromkeys(("linalg_vecdot", "vecdot"), _along_given),
    "pairwise_distance": _along_last,
}
PRODUCTS: Final = frozenset(_READERS)
"""Functions that make products."""

PAIRED: Final = frozenset(
    {"matmul", "__matmul__", "__rmatmul__", "bmm", "mm", "mv", "linalg_matmul", "einsum"}
    | {"addmm", "baddbmm", "addmv"}
)
"""Those whose last two arguments are their factors, where there are up to three arguments."""
