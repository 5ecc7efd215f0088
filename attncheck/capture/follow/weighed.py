"""Weights that multiply values element by element: the sum over the keys comes later, if at all.

Over a single key there is nothing to sum: what a loop over the keys adds up are such products.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from torch import Tensor

from attncheck.capture.follow.axes import Atom, numbers_in
from attncheck.capture.follow.origins import Origins
from attncheck.capture.follow.products import LACKS, Product, elementwise
from attncheck.capture.follow.stacks import NEW, may_be_keys
from attncheck.capture.follow.steps import Step
from attncheck.capture.follow.traces import Trace

__all__ = ["Weighed", "weighed"]

ONE_KEY: Final = 1
"""Letter of an axis of one key."""


@dataclass(frozen=True, eq=False)
class Weighed:
    """Values times weights, element by element.

    Attributes:
        product: Of the weights, its first factor, and the values.
        trace: Of the weights.
        single: They are those of one key: it is as good as summed.
    """

    product: Product
    trace: Trace
    single: bool = False


def weighed(step: Step, target: Tensor, origins: Origins) -> Weighed | None:
    """Read a product with weights, or with raised scores; None: of no values."""
    trace, source, other = step.trace, step.source, step.multiplied_with()
    if other is None or target.numel() <= source.numel():
        return None
    raised = trace.stage == "raised"
    if raised and (trace.axes is None or origins.is_static(other)):
        return None
    read = elementwise((source, other), target)
    found = (_of_a_lacking_key(read, trace) if raised else None) or _of_one_key(read, trace)
    if found is None and raised and not _has_keys(read, trace):
        return None
    return found or Weighed(read, trace)


def _has_keys(read: Product, trace: Trace) -> bool:
    """Whether the other factor has an axis of query or key, and features beside it."""
    own, its = read.letters
    assert trace.axes is not None
    sided = (n for n, atoms in zip(own, trace.axes, strict=True) if may_be_keys(trace, atoms))
    return bool(set(sided) & set(its) - {LACKS}) and bool(set(its) - set(own) - {LACKS})


def _of_one_key(read: Product, trace: Trace) -> Weighed | None:
    """Read a product with the weights of one key, whose axis may be gone; None: of several."""
    (own, its), axes = read.letters, trace.axes
    if axes is None:
        return None
    if trace.stage == "raised":
        found = [i for i, atoms in enumerate(axes) if any(map(_is_sided, atoms))]
    else:
        found = [i for i, atoms in enumerate(axes) if numbers_in(atoms) & trace.keys]
    weights = read.operands[0]
    found = [axis for axis in found if weights.shape[axis] == 1 and own[axis] == LACKS] or found
    if found and weights.shape[found[-1]] == 1:
        own = tuple(ONE_KEY if axis == found[-1] else letter for axis, letter in enumerate(own))
        return Weighed(replace(read, letters=(own, (*its, ONE_KEY))), trace, True)
    if found or trace.columns is None or trace.columns[1] - trace.columns[0] != 1:
        return None
    key = Atom((min(trace.keys),), 1, "right")
    operands = (weights.detach().unsqueeze(-1), read.operands[1])
    read = Product(operands, ((*own, ONE_KEY), (*its, ONE_KEY)), read.out)
    return Weighed(read, trace.but(axes=(*axes, (key,))), True)


def _of_a_lacking_key(read: Product, trace: Trace) -> Weighed | None:
    """Read a product with raised scores that have no axis of the keys: they are those of one key.

    The other factor then has features alone that they lack, and no axis of queries, but where each
    query has a key of its own.
    """
    (own, its), axes, weights = read.letters, trace.axes, read.operands[0]
    if axes is None or not set(its) - set(own) - {LACKS}:
        return None
    wide = [(n, atoms) for n, atoms, m in zip(own, axes, weights.shape, strict=True) if m > 1]
    sided = {n for n, atoms in wide if may_be_keys(trace, atoms)}
    sides = {atom.side for atoms in axes for atom in atoms} - {"shared"}
    if len(sides) > 1 or sided & set(its) - {LACKS}:
        return None
    spare = [i for i, n in enumerate(own) if n == LACKS and not axes[i]]
    if spare:
        own = tuple(ONE_KEY if i == spare[-1] else n for i, n in enumerate(own))
    else:
        weights, own, axes = weights.detach().unsqueeze(-1), (*own, ONE_KEY), (*axes, ())
    key = (Atom((NEW + trace.product,), 1, "right"),)
    axes = tuple(key if n == ONE_KEY else atoms for n, atoms in zip(own, axes, strict=True))
    read = Product((weights, read.operands[1]), (own, (*its, ONE_KEY)), read.out)
    return Weighed(read, trace.but(axes=axes), True)


def _is_sided(atom: Atom) -> bool:
    return atom.side != "shared"
