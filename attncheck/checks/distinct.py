"""No two heads do the same."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from attncheck.attention import AttentionLike, AttentionMaps, LayerAttention
from attncheck.attention.arguments import flag
from attncheck.attention.light import on_one_thread_if_light
from attncheck.checks.door import raise_if_failed, require_tolerance
from attncheck.checks.finding import Evidence, Finding, Offender
from attncheck.checks.select import HeadSelection
from attncheck.checks.subject import Subject, head_label, open_subject
from attncheck.metrics import head_similarity

__all__ = ["DISTINCT", "assert_heads_distinct", "check_heads_distinct"]

DISTINCT: Final = 0.01
"""Default distance. Measured on the 72 heads of MiniLM-L6: noise of 5 % on the model's weights
moves a head by at most 0.0054, and the two most alike heads of one layer lie 0.053 apart."""


@on_one_thread_if_light
def check_heads_distinct(
    attn: AttentionLike,
    *,
    min_distance: float = DISTINCT,
    across_layers: bool = False,
    tokens: Any = None,
    mask: Any = None,
    causal: bool | None = None,
    heads: HeadSelection = None,
    name: str = "attn",
) -> Finding:
    """Find pairs of heads that do the same; arguments and errors as `assert_heads_distinct`."""
    if min_distance is None:
        raise TypeError("min_distance: is None; expected a number above 0, up to 1")
    require_tolerance(min_distance, "min_distance")
    across_layers = flag(across_layers, "across_layers")
    if not 0 < min_distance <= 1:
        raise ValueError(f"min_distance: got {min_distance}; expected above 0, up to 1")
    subject = open_subject(
        attn, tokens=tokens, mask=mask, causal=causal, heads=heads, name=name, weights_only=True
    )
    within = not across_layers
    shapes = {(layer.batch, layer.n_query, layer.n_key) for layer in subject.layers}
    if across_layers and len(shapes) > 1:
        raise ValueError(
            f"across_layers: the layers of {name} differ in (batch, query, key): "
            f"{', '.join(map(str, sorted(shapes)[:4]))}, so that rows of their heads do not "
            "correspond; pass across_layers=False, or heads= of layers that are alike"
        )
    distance = head_similarity(AttentionMaps(subject.layers), within_layers=within).distance
    places = [(layer, head) for layer in subject.layers for head in range(layer.n_heads)]
    one, other = np.triu_indices(len(places), 1)
    apart = distance[one, other]
    judged = ~np.isnan(apart)
    if not judged.any():
        where = " within a layer" if within else ""
        raise ValueError(f"{name}: no two heads to compare{where}; nothing to judge")
    alike = np.flatnonzero(judged & (apart < min_distance))
    alike = alike[np.argsort(apart[alike], kind="stable")]
    offenders = tuple(
        Offender(
            head=f"{head_label(*places[one[pair]])}, {head_label(*places[other[pair]])}",
            worst=float(apart[pair]),
        )
        for pair in alike
    )
    n_pairs, n_alike = int(judged.sum()), len(alike)
    return Finding(
        check="heads_distinct",
        passed=not n_alike,
        verdict=f"heads alike: {n_alike} of {n_pairs} pairs"
        if n_alike
        else f"heads distinct: {n_pairs} pairs",
        name=name,
        subject=subject.description,
        rule=f"Jensen-Shannon distance >= {min_distance:g}{' within a layer' if within else ''}",
        columns=("distance",),
        offenders=offenders,
        n_passed=n_pairs - n_alike,
        n_total=n_pairs,
        unit="pairs",
        hints=("were weights tied or copied? head_redundancy lists every head's double",)
        if n_alike
        else (),
        evidence=_evidence(subject, places[one[alike[0]]]) if n_alike else None,
    )


def assert_heads_distinct(
    attn: AttentionLike,
    *,
    min_distance: float = DISTINCT,
    across_layers: bool = False,
    tokens: Any = None,
    mask: Any = None,
    causal: bool | None = None,
    heads: HeadSelection = None,
    name: str = "attn",
) -> None:
    """Assert that no two heads do the same.

    The distance is that of `head_similarity`: the mean over rows of the Jensen-Shannon divergence,
    divided by ln 2; 0 for equal heads, 1 for heads that share no key (Clark et al. 2019).

    Args:
        attn: Attention weights in any form that `as_attention` takes.
        min_distance: Least distance of two heads, above 0, up to 1. Default: 0.01, beyond what 5 %
            noise on a model's weights does, and well below the two most alike heads of MiniLM-L6.
        across_layers: Compare heads of different layers too.
        tokens: Strings or ids, one per key.
        mask: Which keys are visible, see `as_visible`. Default: what maps carry.
        causal: Whether queries see no later key. Default: as `as_attention` finds it.
        heads: Which heads: ``"L5H1"``, ``"L5"``, ``3`` (of every layer), ``[(5, 1)]``, or a list.
            Default: all.
        name: What the message calls the attention.

    Raises:
        CheckFailure: Two heads are closer than ``min_distance``.
        ValueError: There are no two heads to compare, or ``attn`` does not hold attention weights.

    Example:
        >>> import torch
        >>> heads = torch.stack([torch.eye(4), torch.full((4, 4), 0.25)])
        >>> assert_heads_distinct(heads)
        >>> assert_heads_distinct(heads[[0, 0]])
        Traceback (most recent call last):
        attncheck.CheckFailure: heads alike: 1 of 1 pairs
        ...
    """
    __tracebackhide__ = True
    raise_if_failed(
        check_heads_distinct(
            attn,
            min_distance=min_distance,
            across_layers=across_layers,
            tokens=tokens,
            mask=mask,
            causal=causal,
            heads=heads,
            name=name,
        )
    )


def _evidence(subject: Subject, place: tuple[LayerAttention, int]) -> Evidence:
    layer, head = place
    return subject.evidence(layer, head, 0)
