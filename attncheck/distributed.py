"""Profiles of many ranks, put together over `torch.distributed`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, overload

import torch.distributed as dist

from attncheck.profile import HeadProfile

__all__ = ["announce_failure", "gather_profiles", "rank_of"]

Over: TypeAlias = Literal["batches", "heads"]

OVER: Final = ("batches", "heads")


@dataclass(frozen=True)
class _Failure:
    """Why there will be no profile; travels instead of one, so that nobody waits."""

    why: str


_Held: TypeAlias = HeadProfile | _Failure | None


@overload
def gather_profiles(
    profile: HeadProfile | None, group: Any = None, *, over: Over = "batches", dst: None = None
) -> HeadProfile: ...
@overload
def gather_profiles(
    profile: HeadProfile | None, group: Any = None, *, over: Over = "batches", dst: int
) -> HeadProfile | None: ...
def gather_profiles(
    profile: HeadProfile | None,
    group: Any = None,
    *,
    over: Over = "batches",
    dst: int | None = None,
) -> HeadProfile | None:
    """Put the profiles of all ranks together: every rank calls it, every rank gets the whole.

    Ranks that divide a data set add up to the profile of one process that saw all of it: counts bit
    for bit, sums to rounding. Profiles are added pair by pair, along a tree over the ranks, so that
    none holds more than two, and in the same order every time. Works with any backend that sends
    objects (gloo, nccl); without an initialised process group it returns the profile as it is, so
    that one script serves one process and many.

    Whatever is wrong on one rank (other layers, no profile, no `HeadProfile`) is raised on all.

    Args:
        profile: What this rank measured. None: it had no batch.
        group: Process group, or one-dimensional device mesh. Default: all ranks.
        over: What the ranks divide. ``"batches"``: each ran the whole model on input of its own
            (data parallel). ``"heads"``: all ran the same input, each with some heads of every
            layer (tensor parallel); the heads of rank 1 are numbered after those of rank 0, and so
            on, unless the profiles hold distinct numbers already. Key-value heads are added up too.
            For both at once, gather over heads first, then over batches.
        dst: Rank in the group that gets the whole; the others get None. Default: all do.

    Raises:
        ValueError: The profiles are not of the same layers, no rank has one, ``over`` is unknown,
            or the group has no rank ``dst``.

    Example:
        >>> import torch
        >>> from attncheck import profile_attention
        >>> gather_profiles(profile_attention(torch.eye(8)))  # one process
        HeadProfile(1 layer, 1 head, 8 rows each, float32)
    """
    if over not in OVER:
        raise ValueError(f"over: {over!r}; expected one of {', '.join(OVER)}")
    held: Any = profile
    if not isinstance(held, HeadProfile | None):
        held = _Failure(f"profile: is {type(held).__name__}; expected a HeadProfile or None")
    return _gather(held, group, over, dst)


def announce_failure(why: str, group: Any = None) -> None:
    """Take part in `gather_profiles` without a profile, so that it raises on the other ranks."""
    try:
        _gather(_Failure(why), group, "batches", None)
    except ValueError:
        return


def rank_of(group: Any = None) -> int:
    """Number of this process in a group; 0 without one."""
    return dist.get_rank(_plain(group)) if _running() else 0


def _gather(held: _Held, group: Any, over: Over, dst: int | None) -> HeadProfile | None:
    group = _plain(group)
    rank, size = (dist.get_rank(group), dist.get_world_size(group)) if _running() else (0, 1)
    if rank < 0:
        raise ValueError("group: this process is not in it; only members gather")
    if dst is not None and not 0 <= dst < size:
        raise ValueError(f"dst: no rank {dst}; the group has {size}, 0 to {size - 1}")
    if isinstance(held, _Failure) and size > 1:
        held = _Failure(f"rank {rank}: {held.why}")
    step = 1
    while step < size:
        if rank % (2 * step):
            _send(held, rank - step, group)
            break
        if rank + step < size:
            ranks = (rank, rank + step, min(size, rank + 2 * step))
            held = _together(held, _receive(rank + step, group), over, ranks)
        step *= 2
    if size > 1:
        held = _share(held, rank, dst, group)
    elif held is None:
        held = _nothing()
    if isinstance(held, _Failure):
        raise ValueError(held.why)
    return held


def _share(held: _Held, rank: int, dst: int | None, group: Any) -> _Held:
    """Give what rank 0 has to everybody, or to one rank and to the others only the failure."""
    if rank == 0 and held is None:
        held = _nothing()
    for_all = held if dst is None or isinstance(held, _Failure) else None
    box = [for_all]
    dist.broadcast_object_list(box, src=_global(0, group), group=group)
    if dst is None or isinstance(box[0], _Failure):
        return box[0]
    if dst != 0 and rank == 0:
        _send(held, dst, group)
    if dst == rank:
        return held if rank == 0 else _receive(0, group)
    return None


def _together(mine: _Held, theirs: _Held, over: Over, ranks: tuple[int, int, int]) -> _Held:
    """Add up two parts; whoever fails stays."""
    for held in (mine, theirs):
        if isinstance(held, _Failure):
            return held
    assert not isinstance(mine, _Failure)
    assert not isinstance(theirs, _Failure)
    if over == "batches" and (mine is None or theirs is None):
        return theirs if mine is None else mine
    first, second, end = ranks
    if mine is None or theirs is None:
        return _Failure(f"profile: None among ranks {first} to {end - 1}, whose heads are missing")
    try:
        return mine.merge(theirs) if over == "batches" else mine.join_heads(theirs)
    except (ValueError, TypeError) as error:
        mine_of, theirs_of = _ranks(first, second), _ranks(second, end)
        return _Failure(f"profile: {theirs_of} beside {mine_of}: {error}")


def _ranks(first: int, end: int) -> str:
    return f"rank {first}" if end - first == 1 else f"ranks {first} to {end - 1}"


def _nothing() -> _Failure:
    return _Failure("profile: no rank has seen a batch")


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()


def _plain(group: Any) -> Any:
    """Return the process group of a device mesh."""
    return group.get_group() if hasattr(group, "get_group") else group


def _global(rank: int, group: Any) -> int:
    return rank if group is None else dist.get_global_rank(group, rank)


def _send(held: _Held, rank: int, group: Any) -> None:
    dist.send_object_list([held], dst=_global(rank, group), group=group)


def _receive(rank: int, group: Any) -> _Held:
    box: list[_Held] = [None]
    dist.recv_object_list(box, src=_global(rank, group), group=group)
    return box[0]
