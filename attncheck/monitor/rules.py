"""When a sample of the heads is alarming, with the thresholds and where they come from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Final

from attncheck.monitor.sample import HeadAlert, HeadSample

__all__ = ["Judge", "Thresholds"]

EXPLAINING: Final = (
    "diagonal",
    "previous_token",
    "next_token",
    "duplicate_token",
    "induction",
    "delimiter",
)
"""Patterns that a healthy head may follow with all of its attention."""

EVEN: Final = 1e-6
"""Distance of the normalised entropy from 1 up to which a head does not look at its input."""

FACTOR: Final = 10.0
"""A score that passed the limit is told again at this multiple of what was told before."""


@dataclass(frozen=True)
class Thresholds:
    """When to raise an alert; None switches one off.

    Args:
        collapse: ``entropy_collapse``: normalised entropy below this, after the head has lost at
            least three quarters of the most it had. Vanishing attention entropy goes with training
            that diverges (Zhai et al. 2023, where no number is set; this one is ours). A crisp head
            is not ill as such: with half of its mass on a pattern (previous token, induction, ...)
            it counts only if its scores pass `max_logit` as well.
        max_logit: ``max_logit``: largest score before softmax. 100 is where Kimi K2 (2025) begins
            to clip query and key; runs with scores beyond 10,000 diverged in Wortsman et al. 2023.
            Told again at 1,000, 10,000 and so on.
        sink_growth: ``sink_growth``: mass on the first key has grown by this since the first
            sample, and is more than half. 0.3 is the mass from which Gu et al. 2024 speak of a
            sink. Language models grow sinks as they learn: a fact worth knowing, not always a
            fault.
        dead: ``dead``: the head passes on less than this share of what the median head of its
            layer does, or looks at all keys alike whatever the input, in two samples in a row.
        duplicate: ``duplicate``: two heads of a layer lie closer than this share of what they do
            (see ``twin_distance``), in two samples in a row. Not where both rest on the first key.
        not_finite: ``not_finite``: NaN or infinity in weights or output.

    Example:
        >>> Thresholds(sink_growth=None).max_logit
        100.0
    """

    collapse: float | None = 0.05
    max_logit: float | None = 100.0
    sink_growth: float | None = 0.3
    dead: float | None = 1e-3
    duplicate: float | None = 0.01
    not_finite: bool = True

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not None and (math.isnan(value) or value < 0):
                raise ValueError(f"{one.name}: got {value}; expected a number >= 0, or None")


class Judge:
    """Finds what is wrong in one sample after the other; each fault is told when it begins.

    A fault that ended may be told again. Samples of an earlier run are shown by `judge` too, and
    what it returns thrown away.

    Args:
        thresholds: When to speak.
    """

    def __init__(self, thresholds: Thresholds) -> None:
        self.thresholds = thresholds
        self._most: dict[str, tuple[float, int]] = {}
        self._first_sink: dict[str, tuple[float, int]] = {}
        self._told: dict[tuple[str, str], float] = {}
        self._suspect: dict[tuple[str, str], int] = {}

    def judge(self, sample: HeadSample) -> list[HeadAlert]:
        """Return what begins to be wrong with this sample."""
        found: list[HeadAlert] = []
        for place, head in enumerate(sample.heads):
            bad = [*self._not_finite(sample, place)]
            # Of a head that holds NaN nothing else is known.
            rules = () if bad else (self._collapse, self._logit, self._sink, self._dead, self._twin)
            now = [*bad, *(alert for rule in rules for alert in rule(sample, place))]
            found += [alert for alert in now if self._begins(alert)]
            kinds = {alert.kind for alert in now}
            for kind, name in [key for key in self._told if key[1] == head]:
                if kind not in kinds:
                    del self._told[kind, name]
        return found

    def _begins(self, alert: HeadAlert) -> bool:
        key = alert.kind, alert.head
        told = self._told.get(key)
        again = alert.kind == "max_logit" and told is not None and alert.value >= FACTOR * told
        if told is None or again:
            # Scores are told at the limit, then at its tenfold, so from the power below.
            power = math.floor(math.log10(max(alert.value / alert.limit, 1))) if alert.limit else 0
            self._told[key] = alert.limit * FACTOR**power if alert.kind == "max_logit" else 1.0
            return True
        return False

    def _not_finite(self, sample: HeadSample, place: int) -> Iterator[HeadAlert]:
        share = sample.value("bad_rows", place)
        if self.thresholds.not_finite and share > 0:
            yield _alert(sample, place, "not_finite", share, 0.0, f"NaN or inf in {share:.0%} rows")

    def _collapse(self, sample: HeadSample, place: int) -> Iterator[HeadAlert]:
        head, limit = sample.heads[place], self.thresholds.collapse
        now = sample.value("normalized_entropy", place)
        most, then = self._most.get(head, (-1.0, sample.step))
        if now > most:
            most, then = self._most[head] = now, sample.step
        if limit is None or not (now < limit and now <= most / 4):
            return
        logit = sample.value("max_logit", place)
        blown = logit > (
            math.inf if self.thresholds.max_logit is None else self.thresholds.max_logit
        )
        explained = any(sample.value(name, place) >= 0.5 for name in EXPLAINING)
        if blown or not explained:
            text = f"normalised entropy {now:.3g}, was {most:.3g} at step {then}"
            yield _alert(sample, place, "entropy_collapse", now, limit, text)

    def _logit(self, sample: HeadSample, place: int) -> Iterator[HeadAlert]:
        limit, value = self.thresholds.max_logit, sample.value("max_logit", place)
        if limit is not None and value > limit:
            yield _alert(
                sample,
                place,
                "max_logit",
                value,
                limit,
                f"scores reach {value:.4g}, over {limit:g}",
            )

    def _sink(self, sample: HeadSample, place: int) -> Iterator[HeadAlert]:
        limit, now = self.thresholds.sink_growth, sample.value("sink_mass", place)
        if math.isnan(now):
            return
        first, then = self._first_sink.setdefault(sample.heads[place], (now, sample.step))
        if limit is not None and now > 0.5 and now - first > limit:
            text = f"{now:.2f} of it on the first key, was {first:.2f} at step {then}"
            yield _alert(sample, place, "sink_growth", now, first + limit, text)

    def _dead(self, sample: HeadSample, place: int) -> Iterator[HeadAlert]:
        limit = self.thresholds.dead
        if limit is None:
            return
        layer = _layer_of(sample, place)
        sizes = sorted(sample.value("output_rms", other) for other in layer)
        size, median = sample.value("output_rms", place), sizes[len(sizes) // 2]
        evenness = 1 - sample.value("normalized_entropy", place)
        silent = len(layer) > 1 and size < limit * median
        even = (
            len(layer) > 1
            and evenness < EVEN
            and not all(1 - sample.value("normalized_entropy", other) < EVEN for other in layer)
        )
        since = self._since(sample, "dead", sample.heads[place], silent or even)
        if since is None:
            return
        if silent:
            text = f"passes on {size:.2g}, the median head {median:.2g}, since step {since}"
            yield _alert(sample, place, "dead", size, limit * median, text)
        else:
            text = f"looks at all keys alike whatever the input, since step {since}"
            yield _alert(sample, place, "dead", evenness, EVEN, text)

    def _twin(self, sample: HeadSample, place: int) -> Iterator[HeadAlert]:
        limit, distance = self.thresholds.duplicate, sample.value("twin_distance", place)
        twin = sample.twins[place]
        if limit is None:
            return
        close = distance < limit and twin in sample.heads
        if close:
            other = sample.heads.index(twin)
            close = place < other or sample.twins[other] != sample.heads[place]  # told once
            close = close and not all(sample.value("sink_mass", x) > 0.9 for x in (place, other))
        since = self._since(sample, "duplicate", sample.heads[place], close)
        if since is not None:
            text = f"does what {twin} does, {distance:.2g} apart, since step {since}"
            yield _alert(sample, place, "duplicate", distance, limit, text)

    def _since(self, sample: HeadSample, kind: str, head: str, suspect: bool) -> int | None:
        """Step of the first of several suspect samples in a row; None for the first of them."""
        if not suspect:
            self._suspect.pop((kind, head), None)
            return None
        since = self._suspect.setdefault((kind, head), sample.step)
        return since if since != sample.step else None


def _layer_of(sample: HeadSample, place: int) -> Sequence[int]:
    layer = sample.heads[place].partition("H")[0]
    return [i for i, name in enumerate(sample.heads) if name.partition("H")[0] == layer]


def _alert(
    sample: HeadSample, place: int, kind: str, value: float, limit: float, text: str
) -> HeadAlert:
    return HeadAlert(kind, sample.heads[place], sample.step, value, limit, text)
