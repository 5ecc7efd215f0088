"""Heads do what they are known, or trained, to do."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from attncheck.attention import AttentionLike, LayerAttention, head_name
from attncheck.attention.arguments import whole_number
from attncheck.attention.light import on_one_thread_if_light
from attncheck.checks.door import raise_if_failed, require_tolerance
from attncheck.checks.finding import Finding, Offender
from attncheck.checks.select import HeadSelection
from attncheck.checks.subject import Subject, head_label, open_subject
from attncheck.patterns import (
    PATTERNS,
    canonical_name,
    classify_evidence,
    collect_evidence,
)

__all__ = ["assert_pattern", "check_pattern"]


@dataclass(frozen=True)
class _Scored:
    """One head and what it scores."""

    layer: LayerAttention
    head: int
    mass: float
    chance: float
    lift: float
    label: str
    note: str

    @property
    def name(self) -> str:
        return head_label(self.layer, self.head)

    @property
    def telling(self) -> bool:
        """Whether attention could miss the pattern: not where its keys are all visible ones."""
        return not self.chance >= 1 - 1e-9


@dataclass(frozen=True)
class _Demand:
    """What a head must have: least mass, least lift, or (with neither) the label."""

    pattern: str
    min_mass: float | None
    min_lift: float | None
    atol: float

    @property
    def by_label(self) -> bool:
        return self.min_mass is None and self.min_lift is None

    def met(self, scored: _Scored) -> bool:
        if self.by_label:
            return scored.label == self.pattern
        mass = -math.inf if self.min_mass is None else self.min_mass - self.atol
        lift = -math.inf if self.min_lift is None else self.min_lift - self.atol
        return scored.telling and scored.mass >= mass and scored.lift >= lift

    def __str__(self) -> str:
        parts = [f"mass >= {self.min_mass:g}"] if self.min_mass is not None else []
        parts += [f"lift >= {self.min_lift:g}"] if self.min_lift is not None else []
        return f"{self.pattern} {' and '.join(parts)}" if parts else f"label == {self.pattern}"


@on_one_thread_if_light
def check_pattern(  # noqa: PLR0913 - a demand, what tokens mean, and the common arguments
    attn: AttentionLike,
    pattern: str,
    *,
    min_mass: float | None = None,
    min_lift: float | None = None,
    at_least: int | None = None,
    tokens: Any = None,
    segment_ids: Any = None,
    delimiters: Collection[Any] | None = None,
    mask: Any = None,
    causal: bool | None = None,
    heads: HeadSelection = None,
    atol: float | None = None,
    name: str = "attn",
) -> Finding:
    """Find heads that lack a pattern; arguments and errors as `assert_pattern`."""
    pattern = _pattern_name(pattern)
    for argument, bound in (("min_mass", min_mass), ("min_lift", min_lift)):
        require_tolerance(bound, argument)
        if bound is not None and bound > 1:
            raise ValueError(f"{argument}: got {bound}; no head can have more than 1")
    require_tolerance(atol)
    subject = open_subject(
        attn, tokens=tokens, mask=mask, causal=causal, heads=heads, name=name, weights_only=True
    )
    slack = subject.tolerance.row_sum if atol is None else atol
    demand = _Demand(pattern, min_mass, min_lift, slack)
    scored = list(_scores(subject, demand, segment_ids, delimiters))
    if all(math.isnan(one.mass) for one in scored):
        raise ValueError(f"{name}: no row has a key that {pattern} looks at; nothing to judge")
    needed = _needed(at_least, len(scored), every=heads is not None)
    shown = [one for one in scored if demand.met(one)]
    lacking = [one for one in scored if not demand.met(one)]
    passed = len(shown) >= needed
    every = needed == len(scored) and (heads is not None or needed > 1)
    # All must show it: the worst matters most. Some must: the one that came closest.
    lacking.sort(key=lambda one: (0 if math.isnan(one.mass) else one.mass) * (1 if every else -1))
    how_many = "every head" if every else f"at least {needed} head{'s' * (needed > 1)}"
    return Finding(
        check="pattern",
        passed=passed,
        verdict=_verdict(demand, scored, shown, needed),
        name=name,
        subject=subject.description,
        rule=f"{demand} in {how_many}",
        columns=("mass", "chance", "lift", *(["label"] if demand.by_label else [])),
        offenders=() if passed else tuple(_offender(one, demand) for one in lacking),
        n_passed=len(shown),
        n_total=len(scored),
        hints=() if passed else _hints(pattern, lacking[0]),
        evidence=None if passed else subject.evidence(lacking[0].layer, lacking[0].head, 0),
    )


def assert_pattern(  # noqa: PLR0913
    attn: AttentionLike,
    pattern: str,
    *,
    min_mass: float | None = None,
    min_lift: float | None = None,
    at_least: int | None = None,
    tokens: Any = None,
    segment_ids: Any = None,
    delimiters: Collection[Any] | None = None,
    mask: Any = None,
    causal: bool | None = None,
    heads: HeadSelection = None,
    atol: float | None = None,
    name: str = "attn",
) -> None:
    """Assert that heads show a pattern: every head named, or else one of all.

    Mass is the share of attention on the pattern's keys, the mean over rows that have such a key;
    chance is the mass that uniform attention would have, and lift the part of the way from chance
    to 1. Where a pattern has a parameter (which offset, how wide), the best one is taken. Where
    its keys are all the visible ones (chance 1), any head has that mass, and none counts.

    Args:
        attn: Attention weights in any form that `as_attention` takes.
        pattern: A name of `PATTERNS` or an alias: ``"previous_token"``, ``"induction"``, ...
        min_mass: Least mass, 0 to 1.
        min_lift: Least lift, 0 to 1. With neither of the two, the head's label must be the pattern,
            as `classify_heads` gives it.
        at_least: How many of the heads must show it. Default: all if ``heads`` are named, else 1.
        tokens: Strings or ids, one per key; induction, duplicate_token and delimiter need them.
            Default: what maps carry.
        segment_ids: Segment of each key, for block. Default: segments are searched for.
        delimiters: The tokens that count as delimiters. Default: punctuation and separators.
        mask: Which keys are visible, see `as_visible`. Default: what maps carry.
        causal: Whether queries see no later key. Default: as `as_attention` finds it.
        heads: Which heads: ``"L5H1"``, ``"L5"``, ``3`` (of every layer), ``[(5, 1)]``, or a list.
            Default: all.
        atol: How far below the bounds a head may be. Default: what rounding does to a row sum.
        name: What the message calls the attention.

    Raises:
        CheckFailure: Too few heads show the pattern.
        ValueError: Unknown pattern, a pattern that needs tokens without them, no row to judge, or
            ``attn`` does not hold attention weights.

    Example:
        >>> from attncheck.patterns import create_synthetic_attention
        >>> weights = create_synthetic_attention(16, "previous_token", causal=True, seed=0)
        >>> assert_pattern(weights, "previous_token", min_mass=0.9)
        >>> assert_pattern(weights, "diagonal", min_mass=0.9)
        Traceback (most recent call last):
        attncheck.CheckFailure: no diagonal head: best L0H0 mass 0.0...
        ...
    """
    __tracebackhide__ = True
    raise_if_failed(
        check_pattern(
            attn,
            pattern,
            min_mass=min_mass,
            min_lift=min_lift,
            at_least=at_least,
            tokens=tokens,
            segment_ids=segment_ids,
            delimiters=delimiters,
            mask=mask,
            causal=causal,
            heads=heads,
            atol=atol,
            name=name,
        )
    )


def _pattern_name(pattern: str) -> str:
    canonical = canonical_name(pattern)
    if canonical not in PATTERNS:
        raise ValueError(
            f"pattern: {canonical!r} is a verdict about a head, no pattern; expected one of "
            f"{', '.join(PATTERNS)}"
        )
    return canonical


def _scores(
    subject: Subject,
    demand: _Demand,
    segment_ids: Any,
    delimiters: Collection[Any] | None,
) -> Iterator[_Scored]:
    """Score every head of the layers in which the pattern means something."""
    known = False
    why: ValueError | None = None
    for layer in subject.layers:
        tokens = None if layer.kind == "cross" else subject.tokens
        found = collect_evidence(
            layer,
            tokens,
            segment_ids=segment_ids,
            delimiters=None if tokens is None else delimiters,
        )
        try:
            masses = found.mass(demand.pattern)
        except ValueError as error:
            why = why or error
            continue
        known = True
        chances, lifts = found.chance(demand.pattern), found.lift(demand.pattern)
        named = [("", "")] * layer.n_heads
        if demand.by_label:
            labels = classify_evidence([found], [layer.heads], [layer.index])
            named = [(one.label, one.note) for one in labels]
        for head in range(layer.n_heads):
            scores = (float(masses[head]), float(chances[head]), float(lifts[head]))
            yield _Scored(layer, head, *scores, *named[head])
    if not known and why is not None:
        raise ValueError(str(why)) from None


def _needed(at_least: int | None, n_heads: int, *, every: bool) -> int:
    if at_least is None:
        return n_heads if every else 1
    at_least = whole_number(at_least, "at_least", "a number of heads")
    if not 1 <= at_least <= n_heads:
        raise ValueError(f"at_least: got {at_least}; expected 1 to {n_heads}, the heads judged")
    return at_least


def _offender(scored: _Scored, demand: _Demand) -> Offender:
    if demand.by_label:
        return Offender(scored.name, (scored.mass, scored.chance, scored.lift), scored.label)
    return Offender(scored.name, (scored.mass, scored.chance), scored.lift)


def _verdict(demand: _Demand, scored: list[_Scored], shown: list[_Scored], needed: int) -> str:
    pattern = demand.pattern
    if len(shown) >= needed:
        return f"{pattern}: {len(shown)} of {len(scored)} heads"
    if shown or needed == len(scored) > 1:
        return f"{pattern} lacking: {len(scored) - len(shown)} of {len(scored)} heads"
    best = max(scored, key=lambda one: -1.0 if math.isnan(one.mass) else one.mass)
    head = head_name(best.layer.index, best.layer.heads[best.head])
    if demand.by_label:
        return f"no {pattern} head: {head} is {best.label}"
    return f"no {pattern} head: best {head} mass {best.mass:.4f}"


def _hints(pattern: str, first: _Scored) -> tuple[str, ...]:
    """Say why the first head of the table lacks the pattern, where numbers do not."""
    hints = ["attncheck.classify_heads(attn) names what each head does"]
    if not first.telling:
        hints.insert(0, f"chance 1: {pattern} would take in every visible key, and says nothing")
    if first.note:
        hints.insert(0, f"{first.name}: {first.note}")
    return tuple(hints)
