"""The catalogue of head patterns: definitions, generators, evidence, scores, names of heads."""

from attncheck.patterns.catalogue import PATTERNS, VERDICTS, canonical_name
from attncheck.patterns.classify import classify_evidence
from attncheck.patterns.collect import collect_evidence
from attncheck.patterns.evidence import PatternEvidence, join_heads
from attncheck.patterns.grid import DELIMITERS, Grid, make_grid, tokens_with_repeats
from attncheck.patterns.labels import HeadLabel, HeadLabels, PatternScore
from attncheck.patterns.noise import NOISES
from attncheck.patterns.pattern import STRENGTH, Option, Pattern, Verdict
from attncheck.patterns.scoring import (
    classify_heads,
    identify_attention_pattern,
    pattern_scores,
)
from attncheck.patterns.synthetic import create_synthetic_attention

__all__ = [
    "DELIMITERS",
    "NOISES",
    "PATTERNS",
    "STRENGTH",
    "VERDICTS",
    "Grid",
    "HeadLabel",
    "HeadLabels",
    "Option",
    "Pattern",
    "PatternEvidence",
    "PatternScore",
    "Verdict",
    "canonical_name",
    "classify_evidence",
    "classify_heads",
    "collect_evidence",
    "create_synthetic_attention",
    "identify_attention_pattern",
    "join_heads",
    "make_grid",
    "pattern_scores",
    "tokens_with_repeats",
]
