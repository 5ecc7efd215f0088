"""Reports to look at."""

from __future__ import annotations

from collections.abc import Collection

import torch

from attncheck import AttentionMaps, as_attention, create_synthetic_attention, profile_attention
from attncheck.report import ModelEntry, Report, describe_model, heatmaps_of

PATTERNS = ("diagonal", "previous_token", "first_token", "uniform", "local", "broadcast")

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "&amp;",
    "\"'`",
    "\u2028\u2029",
    "\ud800",
    "\u202e",
    "<!--",
    "]]>",
    "line\nbreak",
    "\x00",
    "${hash}$title",
)


def maps_of(layers: int, heads: int, n: int = 24) -> AttentionMaps:
    """Heads of six patterns in turn, causal, with some noise."""
    built = [
        create_synthetic_attention(n, name, 0.05, causal=True, seed=seed)
        for seed, name in enumerate(PATTERNS)
    ]
    stacks = [
        torch.stack([built[(layer * heads + head) % len(built)] for head in range(heads)])[None]
        for layer in range(layers)
    ]
    return as_attention(stacks, tokens=[[f"t{place}" for place in range(n)]], causal=True)


def entry_of(
    maps: AttentionMaps, name: str = "a model", failed: Collection[str] = ()
) -> ModelEntry:
    heatmaps = {head: [one] for layer in maps.layers for head, one in heatmaps_of(layer)}
    tokens = maps.tokens[0] if maps.tokens else None
    return describe_model(name, profile_attention(maps), heatmaps, tokens=tokens, failed=failed)


def report_of(layers: int, heads: int, failed: Collection[str] = ()) -> Report:
    return Report("a report", models=[entry_of(maps_of(layers, heads), failed=failed)])
