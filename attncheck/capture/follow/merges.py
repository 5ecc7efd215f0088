"""What the parts of axes that were merged with the features say of a call's batch and heads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from attncheck.capture.follow.axes import Atom
from attncheck.capture.follow.traces import Trace
from attncheck.capture.recorders.shapes import Layout

__all__ = ["Parts", "Place", "layout_of", "numbers_of", "parts_of", "tells"]

Place: TypeAlias = tuple[int, ...]
Parts: TypeAlias = dict[int, dict[Place, int]]
"""Lengths of the parts of each original axis, by their places."""


def numbers_of(atoms: Iterable[Atom]) -> set[int]:
    """Numbers of the axes that some parts belong to, without those of length 1."""
    return {atom.number for atom in atoms if atom.size > 1}


def parts_of(trace: Trace) -> Parts:
    """Lengths of the parts of each original axis, by their places.

    In one axis of sequences and heads, sequences that are gone are counted, and so are queries in
    theirs; beside an axis of heads there is none of them, and what is gone of it were heads.

    Args:
        trace: Of the output of attention.
    """
    assert trace.axes is not None
    assert trace.layout is not None
    parts: Parts = {}
    query = len(trace.layout.axes) - 1
    alone = len(trace.layout.leading) == 1
    gone = (atom for atom in trace.gone if alone or atom.number == query)
    for atom in (*(atom for atoms in trace.axes for atom in atoms), *gone):
        parts.setdefault(atom.number, {})[atom.place] = atom.size
    return parts


def layout_of(
    layout: Layout, parts: Parts, heads: Sequence[Place], joined: Sequence[Place] = ()
) -> Layout | None:
    """Lay out a call, some parts of whose output are heads; None: these cannot be.

    Args:
        layout: As which it was read.
        parts: Of the axes of its output.
        heads: Which of the parts are heads, in their order.
        joined: Parts along which outputs of several calls were joined.
    """
    split: list[tuple[int, ...]] = []
    places: list[Place] = []
    query = len(layout.axes) - 1
    found = dict.fromkeys(heads)
    for axis, size in enumerate(layout.axes):
        known = _own_parts(axis, size, parts.get(axis, {}), joined)
        asked = any(place[0] == axis for place in found)
        if axis in layout.combined:
            found[(axis,)] = None
        if known is None or (axis == query and not asked):  # some of it was cut off, or no matter
            if axis == query and asked and (axis,) not in found:
                return None
            known = {(axis,): size}
            found = dict.fromkeys((axis,) if place[0] == axis else place for place in found)
        order = sorted(known)
        split.append(tuple(known[place] for place in order))
        places += order
    numbers = [places.index(place) for place in found]
    if layout.combined and numbers[: len(heads)] == sorted(numbers[: len(heads)]):
        numbers.sort()
    queries = [place for place in places if place[0] == query and place not in found]
    if (query,) in found:  # another axis is theirs, or there is one query
        left = [axis for axis in layout.lacking if all(place[0] != axis for place in found)]
        left = [axis for axis in left if layout.axes[axis] > 1] or left
        queries = [place for place in places if place[0] in left[-1:]]
    return Layout(tuple(split), tuple(numbers), tuple(map(places.index, queries)))


def tells(trace: Trace, layout: Layout, parts: Parts, heads: Sequence[Place], times: int) -> bool:
    """Whether what was merged with the features can be the heads of a call.

    Args:
        trace: Of what was merged.
        layout: Of the call, if it is.
        parts: Of the axes of its output.
        heads: The parts that were merged.
        times: How many outputs were laid beside each other then.
    """
    assert trace.layout is not None
    query = len(trace.layout.axes) - 1
    count = math.prod(parts[place[0]][place] for place in heads)  # of all calls that were joined
    beside = trace.layout.beside
    if trace.projected and any(place[0] == query for place in heads):
        return False
    if (query,) in heads and not layout.queries:  # all positions, unless they are known to be heads
        alone = not trace.also and times == 1
        return alone and beside is not None and count in beside
    if any(place[0] == query for place in heads) and (query,) not in heads:
        return beside is None or count in beside
    return any(trace.layout.allows(number * times) for number in (layout.n_heads, count))


def _own_parts(
    axis: int, size: int, parts: dict[Place, int], joined: Sequence[Place]
) -> dict[Place, int] | None:
    """Lengths of the parts of an axis in the call alone; None: they are not known."""
    known = dict(parts) or {(axis,): 1}  # nothing is left of one of length 1
    whole = math.prod(known.values())
    if whole > size:
        grown = [place for place in joined if place[0] == axis]
        inner = [place for place in known if any(place[: len(g)] == g for g in grown)]
        place = min(inner or known)
        if known[place] * size % whole:
            return None
        known[place] = known[place] * size // whole
    elif whole != size:
        return None
    return known
