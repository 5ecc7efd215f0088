"""Work beside each other, a thread for each core, every thread with one core for torch."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

from attncheck.compiled.mkl import number_of_thread
from attncheck.compiled.openmp import torchs_team

__all__ = ["on_one_thread", "shares", "side_by_side"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Apply a function to every item, as many at once as torch uses threads here.

    Within the function torch uses one thread; what it computes is the same however many work. The
    caller's thread works too: were it to sleep, it could wake on the core of the thread with which
    torch shares its next operation. An exception, Ctrl-C too, ends the waiting items, is raised
    when the running ones are done.

    Args:
        work: The function; most of its time should be spent outside Python.
        items: What to apply it to.

    Returns:
        The results, in the order of the items.

    Example:
        >>> side_by_side(abs, [3, -4])
        [3, 4]
    """
    items, threads = list(items), torch.get_num_threads()
    if threads == 1 or len(items) <= 1 or not _OPENMP:
        return [work(item) for item in items]
    turns, turn, ended = iter(enumerate(items)), threading.Lock(), threading.Event()
    results: dict[int, Result] = {}

    def take() -> None:
        while not ended.is_set():
            with turn:
                mine = next(turns, None)
            if mine is None:
                return
            number, item = mine
            try:
                results[number] = work(item)
            except BaseException:
                ended.set()
                raise

    team, count = torchs_team(), min(threads, len(items))
    try:
        if team is None:
            _in_pool(take, threads, count)
        else:
            team.run(take, count)
    finally:
        ended.set()
    return [results[number] for number in range(len(items))]


def _in_pool(take: Callable[[], None], threads: int, count: int) -> None:
    """Call a function in threads of our own and in the caller's, where torch's are not lent."""
    helpers: list[Future[None]] = []
    try:
        for _ in range(count - 1):
            helpers.append(_pool(threads).submit(take))
        with on_one_thread():
            take()
    finally:
        wait([helper for helper in helpers if not helper.cancel()])
    for helper in helpers:
        if not helper.cancelled():
            helper.result()


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Let torch use one thread: for many small operations, at whose ends others would be awaited.

    Threads that begin to use torch meanwhile take the number of the process, which stays.

    Example:
        >>> with on_one_thread():
        ...     torch.get_num_threads()
        1
    """
    before = torch.get_num_threads()
    if before == 1 or not _OPENMP:
        yield
        return
    team = torchs_team()
    if team is not None:
        team.number(1)
        before_in_mkl = number_of_thread(1)
        try:
            yield
        finally:
            number_of_thread(before_in_mkl)
            team.number(before)
        return
    torch.set_num_threads(1)
    kept = _keeper().submit(torch.set_num_threads, before)
    try:
        yield
    finally:
        wait([kept])
        torch.set_num_threads(before)


def shares(count: int) -> list[slice]:
    """Cut so many things into two shares for every thread: one that is slow holds up less.

    Args:
        count: How many things.

    Example:
        >>> [share.stop - share.start for share in shares(1)]
        [1]
    """
    step = max(1, -(-count // (2 * torch.get_num_threads())))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


_OPENMP = "ATen parallel backend: OpenMP" in torch.__config__.parallel_info()
"""Whether torch's number of threads is one of each thread's own."""


@cache
def _keeper() -> ThreadPoolExecutor:
    """A thread that sets torch's number of the process, which goes with that of whoever sets it."""
    return ThreadPoolExecutor(1, "attncheck")


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Start all workers but the caller, with one thread of torch each."""
    started = threading.Barrier(threads)

    def begin() -> None:
        torch.get_num_threads()  # a thread takes the process's number when it first asks, once
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads - 1, "attncheck", initializer=begin)
    for _ in range(threads - 1):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(threads)  # threads that start later take this one
    return pool


if hasattr(os, "register_at_fork"):
    for _threads in (_pool, _keeper):  # a forked process has no such threads
        os.register_at_fork(after_in_child=_threads.cache_clear)
