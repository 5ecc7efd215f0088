"""Where batch, heads, queries and keys are among the axes of weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from attncheck.capture.follow.axes import FEATURES, Atom, Axes, unfolded
from attncheck.capture.follow.traces import Hiding
from attncheck.capture.follow.values import Rows
from attncheck.capture.recorders.head_count import HeadCount, declared_heads
from attncheck.capture.recorders.shapes import Layout

__all__ = ["Arrangement"]


@dataclass(frozen=True)
class Arrangement:
    """Which axes of query and key are which in the weights that a module computed.

    Attributes:
        lead: Places of the axes of batch and heads, in order.
        queries: Numbers of the axis of the queries, and of one of length 1 in its place; empty:
            there is one query, without an axis.
        keys: Numbers of the axes of the keys.
        beside: Every query has keys of its own: their axis is beside that of the queries.
        lacking: Where among the axes but for the keys those are that keys lack, that of the queries
            last, if it may be another one of them.
        combined: Which of ``lead`` are gone where weights meet values: several softmaxes were
            combined there.
        stacked: The queries were scored one by one, by the same keys.
    """

    lead: Sequence[tuple[int, ...]] = ()
    queries: tuple[int, ...] = ()
    keys: frozenset[int] = frozenset()
    beside: bool = False
    lacking: tuple[int, ...] = ()
    combined: tuple[int, ...] = ()
    stacked: bool = False

    @classmethod
    def of(cls, module: nn.Module, rows: Rows, size: int, used: Axes | None) -> Arrangement:
        """Find out from the sides of the product that axes come from.

        Args:
            module: That computed the weights.
            rows: The weights.
            size: How many features attention returned for each query.
            used: Axes of the weights where they met the values; None: not known.
        """
        if rows.axes is None:
            return cls()
        keys = rows.trace.keys
        sizes: dict[int, int] = {}
        for atoms in rows.axes:
            for atom in atoms:
                sizes[atom.number] = sizes.get(atom.number, 1) * atom.size
        order = {atom.number: i for i, atoms in enumerate(rows.axes) for atom in atoms}
        sides = {atom.number: atom.side for atoms in rows.axes for atom in atoms}
        key_sides = {sides[number] for number in keys if number in sides}
        opposite = [n for n in sides if sides[n] != "shared" and sides[n] not in key_sides]
        opposite = [n for n in opposite if n not in keys]
        opposite = opposite or [n for n in sides if sides[n] != "shared" and n not in keys]
        n_key = math.prod(sizes.get(number, 1) for number in keys)
        inside = math.prod(sizes[n] for n in sides if n not in keys and (n or 0 in opposite))
        opposite.sort(key=order.__getitem__)
        others = sorted((n for n in sides if n not in keys), key=order.__getitem__)
        query = _query_among(opposite, sizes, n_key, inside, module)
        if len(opposite) > 1 and query is not None and sizes[query] != n_key:
            count = HeadCount.of(module, [sizes[number] for number in others], 1, size)
            query = _as_long_as_given(opposite, sizes, count, query)
        queries: tuple[int, ...] = () if query is None else (query,)
        beside: list[int] = []
        if all(sizes[number] == 1 for number in opposite):
            own = [(number, sizes[number]) for number in others]
            beside = _beside_their_keys(own, module, size, one=query is not None)
            queries = (*beside[-1:], *queries)
        others = [number for number in others if number not in queries]
        gone = _combined(rows, used) if rows.trace.combined else set()
        if len(others) > 1:
            gone.discard((0,))  # the batch leads, as a rule
        whole = {0, *(place[0] for place in gone)}
        atoms_left = [atom for atoms in rows.axes for atom in atoms if atom.number in others]
        places = {atom.place if atom.number in whole else (atom.number,) for atom in atoms_left}
        lead = sorted(places)
        lacks = beside or (opposite if len(lead) > 1 else [])
        groups = [i for i, place in enumerate(lead) if place[0] in lacks]
        lacking = (*groups, len(lead)) if groups else ()
        combined = tuple(i for i, place in enumerate(lead) if place in gone)
        stacked = set(queries[:1]) <= rows.trace.stacked
        return cls(lead, queries, keys, bool(beside), lacking, combined, stacked)

    @property
    def own_keys(self) -> bool:
        """Whether the keys of each query are none of the others'."""
        return self.beside and not self.stacked

    def layout(self, module: nn.Module, axes: Sequence[int], size: int) -> Layout:
        """Find the heads, in a call that is running.

        Args:
            module: That computed the weights.
            axes: Lengths of the axes as `apply` lays them out, but for the keys.
            size: How many features attention returned for each query.
        """
        if self.lacking and not self.beside:
            return Layout.of_groups(module, axes, self.lacking)
        layout = Layout.of(module, axes, size, self.combined)
        return replace(layout, told=False, lacking=self.lacking) if self.lacking else layout

    def apply(self, tensor: Tensor, axes: Axes | None) -> Tensor:
        """Lay a tensor out as ``(..., query, key)``."""
        if axes is None:
            return tensor
        known = unfolded(tensor, axes)
        if known is None:
            raise ValueError("its axes are not known")
        tensor, atoms = known
        groups = [[i for i, a in enumerate(atoms) if self._is_of(a, own)] for own in self.lead]
        for numbers in (self.queries, tuple(self.keys)):
            groups.append([i for i, atom in enumerate(atoms) if atom.number in numbers])
        order: list[int] = []
        shape: list[int] = []
        for places in groups:
            places.sort(key=lambda i: atoms[i].place)
            order += places
            shape.append(math.prod(atoms[i].size for i in places))
        if len(order) != len(atoms):
            raise ValueError("its axes are not known")
        return tensor.permute(order).reshape(shape)

    def of_output(self, axes: Axes, sizes: Sequence[int]) -> Axes | None:
        """Number the axes of the output by those of the weights, and features behind the queries.

        Args:
            axes: See `Meeting.axes_of_output`.
            sizes: Lengths of the axes of the weights but for the keys.

        Returns:
            None: its axes are not known.
        """
        made = tuple(
            tuple(n for atom in atoms for n in self._numbered(atom, sizes)) for atoms in axes
        )
        places = [atom.place for atoms in made for atom in atoms]
        sound = len(set(places)) == len(places)
        sound &= all(
            new or all(atom.size == 1 for atom in old) for new, old in zip(made, axes, strict=True)
        )
        return made if sound else None

    def laid_out(self, hiding: Hiding) -> Hiding:
        """Lay a mask out like the weights, unless it is so already."""
        if hiding.axes is None or not self.keys or self._is_plain(hiding.axes):
            return hiding
        try:
            mask = self.apply(hiding.mask.broadcast_to(hiding.shape), hiding.axes)
        except (ValueError, RuntimeError):
            return hiding
        return replace(hiding, mask=mask)

    def _is_of(self, atom: Atom, own: tuple[int, ...]) -> bool:
        """Whether a part of an axis belongs to one of ``lead``."""
        return (atom.place == own) if atom.place in self.lead else own == (atom.number,)

    def _numbered(self, atom: Atom, sizes: Sequence[int]) -> list[Atom]:
        place, last = atom.place, len(sizes) - 1
        if atom.number == FEATURES:
            return [atom._replace(place=(last + 1,))]
        if not self.keys:  # not known: they are numbered so already
            return [atom]
        if atom.number in self.queries[:1]:
            return [atom._replace(place=(last, *place[1:]))]
        for i, lead in enumerate(self.lead):
            if place[: len(lead)] == lead:
                return [atom._replace(place=(i, *place[len(lead) :]))]
        inside = [i for i, lead in enumerate(self.lead) if lead[: len(place)] == place]
        return [Atom((i,), sizes[i], "shared") for i in inside]

    def _is_plain(self, axes: Axes) -> bool:
        if any(len(atoms) != 1 for atoms in axes):
            return False
        order = [atom.place for (atom,) in axes]
        last = [(number,) for number in (*self.queries, *self.keys)]
        return order == [*self.lead, *last]


def _combined(rows: Rows, used: Axes | None) -> set[tuple[int, ...]]:
    """Places of the parts of axes that weights had, and lack where they meet the values."""
    if rows.axes is None or used is None:
        return set()
    left = [atom.place for atoms in used for atom in atoms]
    own = (atom for atoms in rows.axes for atom in atoms if atom.size > 1)
    return {
        atom.place
        for atom in own
        if not any(place[: len(atom.place)] == atom.place[: len(place)] for place in left)
    }


def _query_among(
    numbers: Sequence[int], sizes: dict[int, int], n_key: int, inside: int, module: nn.Module
) -> int | None:
    """Choose the axis of the queries among those that keys lack: heads may be another one.

    It is the likeliest; where several are possible, what becomes of the output tells.

    Args:
        numbers: Of these axes, in order.
        sizes: Lengths of all axes.
        n_key: How many keys there are.
        inside: Length of all axes together but for the keys, and for the first if it is the batch.
        module: That attends.
    """
    if len(numbers) < 2:
        return numbers[0] if numbers else None
    counts = declared_heads(module)
    left = [n for n in numbers if inside // max(1, sizes[n]) in counts]
    left = left or [n for n in numbers if sizes[n] not in counts] or list(numbers)
    left = [n for n in left if sizes[n] > 1] or left
    as_many = [n for n in left if sizes[n] == n_key]
    return (as_many or left)[-1]


def _as_long_as_given(
    numbers: Sequence[int], sizes: dict[int, int], count: HeadCount, likeliest: int
) -> int:
    """Choose the axis as long as the sequences that came in, where it has not all of the heads.

    As many positions as declared heads would be taken for these, and some heads for the queries.

    Args:
        numbers: Of the axes that keys lack.
        sizes: Lengths of all axes.
        count: What is known of the heads.
        likeliest: Which of these axes it is otherwise.
    """
    if count.counted in (None, *count.declared):
        return likeliest
    found = [number for number in numbers if sizes[number] == count.length]
    return found[0] if len(found) == 1 else likeliest


def _beside_their_keys(
    axes: Sequence[tuple[int, int]], module: nn.Module, size: int, *, one: bool
) -> list[int]:
    """Find the axis of the queries among those that query and key share: each has its own keys.

    A neighbourhood of each position is such a case, one query for each sequence is none.

    Args:
        axes: Numbers and lengths, in order.
        module: That attends.
        size: How many features attention returned for each query.
        one: There is an axis of one query.

    Returns:
        Which may be it, the likeliest last; none: each sequence has one query.
    """
    count = HeadCount.of(module, [length for _, length in axes], 1, size)
    if count.length in (None, 1):
        return []
    found = [number for number, length in axes if length == count.length]
    alike = sorted(length for _, length in axes if length > 1)
    each = sorted(n for n in (count.batch, count.counted, count.length) if n and n > 1)
    sure = count.whole or count.counted in count.declared or (count.counted != 1 and alike == each)
    if count.length in count.declared:
        return found if sure and len(found) > 1 else []
    return found if sure or not one else []
