"""From weights as a module computed them to a call of attention: ``(batch, head, query, key)``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn

from attncheck.capture.call import AS_READ, AttentionCall, Kind
from attncheck.capture.copies import compact_copy, worth_copying
from attncheck.capture.follow.axes import FEATURES, Atom, Axes, unfolded
from attncheck.capture.follow.hiding import VisibleKeys
from attncheck.capture.follow.traces import Hiding
from attncheck.capture.follow.values import Meeting, Rows
from attncheck.capture.recorders.head_count import HeadCount, declared_heads
from attncheck.capture.recorders.shapes import Layout
from attncheck.capture.whereabouts import kind_of

__all__ = ["call_of"]

OWN_KEYS: Final = "every query has keys of its own: numbers of keys are no positions"


def call_of(
    module: nn.Module,
    name: str,
    rows: Rows,
    output: Tensor,
    visible: VisibleKeys,
    meeting: Meeting | None = None,
    layout: Layout | None = None,
    kind: Kind | None = None,
) -> AttentionCall:
    """Describe attention that a module computed by itself.

    Args:
        module: That computed it.
        name: Its path.
        rows: The weights, as they lie in the module.
        output: Of attention.
        visible: Reads masks.
        meeting: Of weights and values, if batch and heads may be told by their output.
        layout: Where its heads are; None: still to be told.
        kind: Of it; None: still to be found.
    """
    trace = rows.trace
    axes = None if meeting is None else meeting.axes_of_output(rows, output)
    with torch.no_grad():
        arrangement = _Arrangement.of(module, rows, _size_of(output, axes))
        arrangement.layout = layout
        as_used = arrangement.apply(rows.tensor.detach(), rows.axes)
        weights = arrangement.head_first(as_used)
        hidings = [arrangement.laid_out(h) for h in trace.hiding]
        mask = visible.of(hidings, as_used.shape)
        if mask is not None:
            mask = arrangement.head_first(mask)
        elif hidings:  # they may be laid out so already
            mask = visible.of(hidings, weights.shape)
        n_query, n_key = weights.shape[-2:]
        beside = arrangement.beside
        causal = mask is None and n_query == n_key > 1 and not beside and _sees_no_later(weights)
    if kind is None:
        kind = "unknown" if beside else kind_of(module, name, n_query, n_key, causal=causal)
    layout = arrangement.layout
    untold = layout is not None and not layout.told
    axes = arrangement.of_output(axes, as_used.shape[:-1]) if untold and axes else None
    waits = axes is not None
    if waits:
        output = output.detach().clone()
        if worth_copying(rows.tensor):
            rows = replace(rows, tensor=rows.tensor.detach().clone())
            weights = arrangement.head_first(arrangement.apply(rows.tensor, rows.axes))
        kept = (replace(h, mask=compact_copy(h.mask)) for h in rows.trace.hiding)
        rows = replace(rows, trace=rows.trace.but(hiding=tuple(kept)))
    return AttentionCall(
        name=name,
        backend="softmax",
        kind=kind,
        output=output,
        weights=weights,
        mask=mask,
        causal=causal,
        sink_is_rest=trace.sliced,
        note="; ".join(
            [OWN_KEYS] * beside + [AS_READ] * (untold and not waits) + [rows.note] * bool(rows.note)
        ),
        layout=layout if waits else None,
        axes=axes,
        again=lambda told: call_of(module, name, rows, output, visible, None, told, kind),
    )


def _size_of(output: Tensor, axes: Axes | None) -> int:
    """How many features there are for each query."""
    atoms = [] if axes is None else [atom for held in axes for atom in held]
    return next((atom.size for atom in atoms if atom.number == FEATURES), output.shape[-1])


class _Arrangement:
    """Where batch, heads, queries and keys are among the axes of query and key.

    Args:
        lead: Places of the axes of batch and heads, in order.
        query: Number of the axis of the queries; None: there is one query.
        keys: Numbers of the axes of the keys.
        groups: Which of ``lead`` are axes of heads that keys lack.
        module: That computed them.
        size: Length of the last axis of what attention returned.
    """

    def __init__(
        self,
        lead: Sequence[tuple[int, ...]],
        query: int | None,
        keys: frozenset[int],
        groups: Sequence[int],
        module: nn.Module,
        size: int,
    ) -> None:
        self._lead, self._query, self._keys, self._groups = lead, query, keys, groups
        self._module, self._size = module, size
        self.layout: Layout | None = None
        """Where its heads are, once that was asked for."""
        self.beside = False
        """Every query has keys of its own: their axis is beside that of the queries."""

    @classmethod
    def of(cls, module: nn.Module, rows: Rows, size: int) -> _Arrangement:
        """Find out from the sides of the product that axes come from."""
        if rows.axes is None:
            return cls((), None, frozenset(), (), module, size)
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
        query = _query_among(sorted(opposite, key=order.__getitem__), sizes, n_key, module)
        beside = False
        if query is None:
            numbers = sorted((n for n in sides if n not in keys), key=order.__getitem__)
            query = _query_beside_its_keys([(n, sizes[n]) for n in numbers], module, size)
            beside = query is not None
        others = {n for n in sides if n not in keys and n != query}
        lead = sorted({_whole(a) for atoms in rows.axes for a in atoms if a.number in others})
        groups = [i for i, place in enumerate(lead) if place[0] in opposite]
        made = cls(lead, query, keys, groups if len(lead) > 1 else (), module, size)
        made.beside = beside
        return made

    def apply(self, tensor: Tensor, axes: Axes | None) -> Tensor:
        """Lay a tensor out as ``(..., query, key)``."""
        if axes is None:
            return tensor
        known = unfolded(tensor, axes)
        if known is None:
            raise ValueError("its axes are not known")
        tensor, atoms = known
        numbers = [() if self._query is None else (self._query,), tuple(self._keys)]
        groups = [[i for i, atom in enumerate(atoms) if _whole(atom) == own] for own in self._lead]
        groups += [[i for i, atom in enumerate(atoms) if atom.number in own] for own in numbers]
        order: list[int] = []
        shape: list[int] = []
        for places in groups:
            places.sort(key=lambda i: atoms[i].place)
            order += places
            shape.append(math.prod(atoms[i].size for i in places))
        if len(order) != len(atoms):
            raise ValueError("its axes are not known")
        return tensor.permute(order).reshape(shape)

    def head_first(self, tensor: Tensor) -> Tensor:
        """Turn ``(..., query, key)`` into ``(batch, head, query, key)``."""
        if self.layout is None and self._groups:
            self.layout = Layout.of_groups(self._module, tensor.shape[:-2], self._groups)
        elif self.layout is None:
            self.layout = Layout.of(self._module, tensor, self._size)
        return self.layout.apply(tensor)

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
        sound &= all(new or not old for new, old in zip(made, axes, strict=True))
        return made if sound else None

    def _numbered(self, atom: Atom, sizes: Sequence[int]) -> list[Atom]:
        place, last = atom.place, len(sizes) - 1
        if atom.number == FEATURES:
            return [atom._replace(place=(last + 1,))]
        if not self._keys:  # not known: they are numbered so already
            return [atom]
        if atom.number == self._query:
            return [atom._replace(place=(last, *place[1:]))]
        for i, lead in enumerate(self._lead):
            if place[: len(lead)] == lead:
                return [atom._replace(place=(i, *place[len(lead) :]))]
        inside = [i for i, lead in enumerate(self._lead) if lead[: len(place)] == place]
        return [Atom((i,), sizes[i], "shared") for i in inside]

    def laid_out(self, hiding: Hiding) -> Hiding:
        """Lay a mask out like the weights, unless it is so already."""
        if hiding.axes is None or not self._keys or self._is_plain(hiding.axes):
            return hiding
        try:
            mask = self.apply(hiding.mask.broadcast_to(hiding.shape), hiding.axes)
        except (ValueError, RuntimeError):
            return hiding
        return replace(hiding, mask=mask)

    def _is_plain(self, axes: Axes) -> bool:
        if any(len(atoms) != 1 for atoms in axes):
            return False
        order = [atom.place for (atom,) in axes]
        last = [() if self._query is None else (self._query,), *((key,) for key in self._keys)]
        return order == [place for place in (*self._lead, *last) if place]


def _whole(atom: Atom) -> tuple[int, ...]:
    """Place of the axis that a part belongs to; only the first may hold sequences and heads."""
    return atom.place if atom.number == 0 else (atom.number,)


def _query_among(
    numbers: Sequence[int], sizes: dict[int, int], n_key: int, module: nn.Module
) -> int | None:
    """Choose the axis of the queries among those that keys lack: heads may be another one."""
    if len(numbers) < 2:
        return numbers[0] if numbers else None
    counts = declared_heads(module)
    left = [n for n in numbers if sizes[n] not in counts] or list(numbers)
    as_many = [n for n in left if sizes[n] == n_key]
    return (as_many or left)[-1]


def _query_beside_its_keys(
    axes: Sequence[tuple[int, int]], module: nn.Module, size: int
) -> int | None:
    """Choose the axis of the queries among those that query and key share: each has its own keys.

    A neighbourhood of each position is such a case, one query for each sequence is none.

    Args:
        axes: Numbers and lengths, in order.
        module: That attends.
        size: Length of the last axis of what attention returned.
    """
    count = HeadCount.of(module, [length for _, length in axes], 1, size)
    if count.length in (None, 1) or count.length in count.declared:
        return None
    return next((number for number, length in axes[::-1] if length == count.length), None)


def _sees_no_later(weights: Tensor) -> bool:
    """Whether no query has weight on a key behind it; few rows tell most that do."""
    if bool(weights[:, :, 0, 1:].any()):
        return False
    return not bool(weights.triu(1).any())
