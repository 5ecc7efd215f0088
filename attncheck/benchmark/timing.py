"""Interleaved timing: functions run in turn, so that a slow moment of the machine hits them all."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

__all__ = ["interleave", "median_ratio", "synchroniser"]


def interleave(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    device: str | torch.device = "cpu",
    *,
    before: Callable[[str], object] = lambda _: None,
) -> dict[str, list[float]]:
    """Time functions in turn, in a new random order every round, after one untimed round.

    Args:
        functions: What to time, by name.
        rounds: How often each is timed.
        device: An accelerator is waited for before and after each call.
        before: Called with the name before each call, untimed.

    Returns:
        Seconds of each call, in round order: index ``k`` of every list is the same round.

    Example:
        >>> times = interleave({"one": lambda: 1, "two": lambda: 2}, rounds=3)
        >>> {name: len(seconds) for name, seconds in times.items()}
        {'one': 3, 'two': 3}
    """
    synchronise = synchroniser(device)
    for name, function in functions.items():
        before(name)
        function()
    order = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name in order.sample(list(functions), len(functions)):
            before(name)
            synchronise()
            start = time.perf_counter()
            functions[name]()
            synchronise()
            times[name].append(time.perf_counter() - start)
    return times


def median_ratio(times: Mapping[str, Sequence[float]], a: str, b: str) -> float:
    """Median over rounds of the time of ``a`` divided by the time of ``b`` in the same round.

    Example:
        >>> median_ratio({"a": [2.0, 9.0, 4.0], "b": [1.0, 3.0, 4.0]}, "a", "b")
        2.0
    """
    return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))


def synchroniser(device: str | torch.device) -> Callable[[], object]:
    """Return what waits until a device has done all it was given; on a CPU nothing to wait for.

    Example:
        >>> synchroniser("cpu")()
    """
    chosen = torch.device(device)
    if chosen.type == "cpu":
        return lambda: None
    module = getattr(torch, chosen.type)
    if chosen.type == "mps":
        return lambda: module.synchronize()
    return lambda: module.synchronize(chosen)
