"""The public questions: how well does each pattern fit, and what is this head called."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from attncheck.attention import AttentionLike, as_attention
from attncheck.attention.light import on_one_thread_if_light
from attncheck.patterns.classify import classify_evidence
from attncheck.patterns.collect import collect_evidence
from attncheck.patterns.labels import HeadLabel, HeadLabels, PatternScore

__all__ = ["classify_heads", "identify_attention_pattern", "pattern_scores"]


@on_one_thread_if_light
def classify_heads(
    attention: AttentionLike,
    *,
    tokens: Any = None,
    mask: Any = None,
    causal: bool | None = None,
    segment_ids: Any = None,
    delimiters: Collection[Any] | None = None,
) -> HeadLabels:
    """Name every head.

    A head is taken apart into what it is made of: the column of the first visible key, the
    strongest other column, the strongest diagonal or the band it belongs to, blocks, and, if
    tokens are given, duplicate, induction and delimiter targets. Each part has a *strength*, the
    share of attention it explains above chance in the rows where it can occur, the other parts
    taken off, and is *real* if it is strong enough and beyond what shuffled rows would give.
    Definitions, whose numbers stand in `attncheck.patterns.thresholds`:

    - One diagonal that holds 65 % of its band's mass names the head (``diagonal``,
      ``previous_token``, ``next_token``, else ``offset``); below that it is ``local``. Two
      diagonals that are not neighbours and hold 80 % together are two parts, not a band. A band
      is searched up to a third of the length.
    - ``first_token`` is the first key that anyone sees, so left padding does not matter;
      ``broadcast`` is any other column.
    - ``block`` needs more mass above chance inside its segments than the best band and the best
      column have; segments are searched unless ``segment_ids`` are given.
    - A pattern of tokens is preferred to a diagonal or column that it explains as well: on
      repeated text an induction head is also an offset. Rows without a target do not count,
      neither for the pattern nor for the first token on which a head rests there.
    - ``mixed``: the second part, of another kind, has 65 % of the strength of the first.
    - ``uniform`` or ``heterogeneous``: no part is real; what remains is even (its entropy lies
      less than 0.55 nats or 30 % below that of even attention) or not.
    - ``undetermined``: fewer than 8 usable positions. Patterns of distance are never given to
      cross-attention.

    Heads of a batch are judged over the whole batch, not sequence by sequence.

    Args:
        attention: What holds the weights, see `attncheck.as_attention`.
        tokens: Strings or ids, ``(key,)`` or ``(batch, key)``.
        mask: Which keys are visible, as `attncheck.as_attention` takes it.
        causal: Whether queries see no later key; default: as the maps say or the zeros show.
        segment_ids: Segment of each key, ``(key,)`` or ``(batch, key)``.
        delimiters: Tokens that count as delimiters; default: punctuation and separators.

    Returns:
        One `HeadLabel` per head, with ranked scores and margin.

    Raises:
        ValueError: The input is no attention, or tokens, mask or segments do not fit it.

    Example:
        >>> from attncheck.patterns import create_synthetic_attention
        >>> weights = create_synthetic_attention(16, "previous_token", causal=True, heads=2, seed=0)
        >>> classify_heads(weights)
        HeadLabels(L0H0 previous_token, L0H1 previous_token)
    """
    maps = as_attention(attention, tokens=tokens, mask=mask, causal=causal)
    evidence = [
        collect_evidence(
            layer,
            None if layer.kind == "cross" else maps.tokens,
            segment_ids=segment_ids,
            delimiters=delimiters,
        )
        for layer in maps.layers
    ]
    return classify_evidence(
        evidence, [layer.heads for layer in maps.layers], [layer.index for layer in maps.layers]
    )


def identify_attention_pattern(
    attention: AttentionLike, *, tokens: Any = None, mask: Any = None, causal: bool | None = None
) -> str:
    """Name the pattern of one head.

    Args:
        attention: ``(query, key)``, or anything that holds exactly one head.
        tokens: Strings or ids, one per key.
        mask: Which keys are visible.
        causal: Whether queries see no later key; default: as the zeros show.

    Returns:
        A name of `attncheck.PATTERNS`, or ``"mixed"``, ``"heterogeneous"``, ``"undetermined"``;
        `classify_heads` says how they are chosen.

    Raises:
        ValueError: No attention, or more than one head.

    Example:
        >>> import torch
        >>> identify_attention_pattern(torch.eye(10))
        'diagonal'
    """
    return _one(classify_heads(attention, tokens=tokens, mask=mask, causal=causal)).label


def pattern_scores(
    attention: AttentionLike, *, tokens: Any = None, mask: Any = None, causal: bool | None = None
) -> dict[str, PatternScore]:
    """Score every pattern on one head: mass, chance, lift, strength; strongest first.

    What these are of ``uniform``, whose keys are all, `PatternScore` says.

    Args:
        attention: ``(query, key)``, or anything that holds exactly one head.
        tokens: Strings or ids, one per key; without them the three patterns of tokens are left out.
        mask: Which keys are visible.
        causal: Whether queries see no later key; default: as the zeros show.

    Raises:
        ValueError: No attention, or more than one head.

    Example:
        >>> import torch
        >>> scores = pattern_scores(torch.eye(10), causal=False)
        >>> print(scores["diagonal"])
        diagonal 1.00 (chance 0.10)

        Of ``uniform`` the chance level is what a head on a single key would have:

        >>> print(scores["uniform"], "|", pattern_scores(torch.full((10, 10), 0.1))["uniform"])
        uniform 0.10 (chance 0.10) | uniform 1.00 (chance 0.10)
    """
    label = _one(classify_heads(attention, tokens=tokens, mask=mask, causal=causal))
    return {score.pattern: score for score in label.ranked}


def _one(labels: HeadLabels) -> HeadLabel:
    if len(labels) != 1:
        raise ValueError(
            f"attention: holds {len(labels)} heads; one is expected here. Use classify_heads, or "
            "pick a head first: attention[layer][batch, head]"
        )
    return labels[0]
