"""Time and memory of several ways against the length of the input."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from attncheck.benchmark.ceilings import Ceilings
from attncheck.benchmark.flops import count_flops
from attncheck.benchmark.memory import peak_memory
from attncheck.benchmark.timing import interleave, median_ratio
from attncheck.benchmark.ways import PLAIN, Inputs, Way

__all__ = ["Cost", "CostTable", "LeftOut", "measure_costs"]

ROOM = 1.5
"""A way that holds all maps is let run if so many times its foreseen peak is free."""


@dataclass(frozen=True)
class Cost:
    """What one way costs at one length.

    Attributes:
        way: Its name.
        length: Tokens of the input.
        seconds: Median.
        ratio: Median over rounds of its time by that of the plain forward in the same round.
        peak_bytes: Allocated at the peak of an untimed call; None where no allocator tells.
        tokens_per_second: Of all sequences of the input.
        flop_share: Operations of the plain forward by the time of this way, as a share of what a
            large matrix product reaches; None where either is not known.
    """

    way: str
    length: int
    seconds: float
    ratio: float
    peak_bytes: int | None
    tokens_per_second: float | None = None
    flop_share: float | None = None


@dataclass(frozen=True)
class LeftOut:
    """What was not measured, and why; ``way`` is empty where no way was."""

    way: str
    length: int
    reason: str


@dataclass
class CostTable:
    """All that was measured.

    Attributes:
        model: Its name.
        device: Where it ran.
        rounds: How often each way was timed.
        costs: By length, then in the order of the ways.
        left_out: What was not measured.
        interrupted: Whether somebody stopped it; lengths that were done are whole.
        batch: Sequences of the input.
        ceilings: The best rates of the device, measured in the same run.
    """

    model: str
    device: str
    rounds: int
    costs: list[Cost] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    interrupted: bool = False
    batch: int = 1
    ceilings: Ceilings | None = None

    def series(self, way: str) -> list[Cost]:
        """The costs of one way, by length."""
        return [cost for cost in self.costs if cost.way == way]

    @property
    def ways(self) -> list[str]:
        """Names of the ways that were measured."""
        return list(dict.fromkeys(cost.way for cost in self.costs))


def measure_costs(
    table: CostTable,
    ways: Mapping[str, Way],
    inputs_of: Callable[[int], Inputs],
    lengths: Sequence[int],
    *,
    free: Callable[[], int | None] = lambda: None,
    say: Callable[[str], object] = lambda _: None,
    done: Callable[[int], object] = lambda _: None,
) -> CostTable:
    """Measure every way at every length, shortest first, into ``table``, which is returned.

    A way that fails is left out from there on, with its reason; one that holds all maps is left out
    before it asks for more memory than there is, as its peak at the length before foretells.
    Ctrl-C ends the work and keeps the lengths that are done.

    Args:
        table: Where to put the results; says the device and the rounds.
        ways: What to measure; `PLAIN` must be one of them.
        inputs_of: Makes the inputs of a length.
        lengths: How many tokens.
        free: Tells the bytes that can be allocated; None: nobody knows.
        say: Told about progress.
        done: Called with each length when its costs stand in the table.

    Example:
        >>> from attncheck.benchmark import ways_of
        >>> from attncheck.models import load_tiny_model, repeated_tokens
        >>> ways, _ = ways_of(load_tiny_model())
        >>> table = CostTable("tiny", "cpu", rounds=1)
        >>> ids = repeated_tokens(4)
        >>> _ = measure_costs(table, ways, lambda n: ((ids[:, :n],), {}), [8])
        >>> [(cost.way, cost.length) for cost in table.costs]
        [('plain forward', 8), ('capture', 8), ('profile', 8)]
    """
    left = dict(ways)
    try:
        for length in sorted(set(lengths)):
            if PLAIN in left:
                _one_length(table, left, inputs_of(length), length, free, say)
                done(length)
            else:
                table.left_out.append(LeftOut("", length, "the plain forward failed before"))
    except KeyboardInterrupt:
        table.interrupted = True
    return table


def _one_length(
    table: CostTable,
    left: dict[str, Way],
    inputs: Inputs,
    length: int,
    free: Callable[[], int | None],
    say: Callable[[str], object],
) -> None:
    def calls(name: str) -> Callable[[], object]:
        return lambda: left[name].run(*inputs)

    peaks: dict[str, int | None] = {}
    for name in list(left):
        say(f"n = {length}: {name}, memory")
        reason = _too_large(table, left[name], length, free())
        try:
            if reason is None:
                left[name].prepare()
                calls(name)()
                peaks[name] = peak_memory(calls(name), table.device)
        except Exception as error:
            text = " ".join(str(error).split())
            reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
        if reason is not None:
            table.left_out.append(LeftOut(name, length, reason))
            del left[name]
            if name == PLAIN:
                return
    flops = None if table.ceilings is None else count_flops(calls(PLAIN))
    done = 0

    def before(name: str) -> None:
        nonlocal done
        number = done // len(left)
        say(f"n = {length}: {f'round {number} of {table.rounds}' if number else 'warm-up'}, {name}")
        done += 1
        left[name].prepare()

    times = interleave(
        {name: calls(name) for name in left}, table.rounds, table.device, before=before
    )
    for name in left:
        seconds = statistics.median(times[name])
        cost = Cost(
            name,
            length,
            seconds,
            ratio=median_ratio(times, name, PLAIN),
            peak_bytes=peaks[name],
            tokens_per_second=table.batch * length / seconds,
            flop_share=_share(flops, seconds, table.ceilings),
        )
        table.costs.append(cost)


def _share(flops: int | None, seconds: float, ceilings: Ceilings | None) -> float | None:
    return None if flops is None or ceilings is None else flops / seconds / ceilings.flops


def _too_large(table: CostTable, way: Way, length: int, free: int | None) -> str | None:
    """Why a way that holds all maps would not fit, judged by its peak at the length before."""
    known = table.series(way.name)
    peak = known[-1].peak_bytes if known else None
    if not way.holds_maps or peak is None or free is None:
        return None
    needed = peak * (length / known[-1].length) ** 2
    if ROOM * needed <= free:
        return None
    return f"needs about {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"
