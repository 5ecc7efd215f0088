"""Models whose heads are known: one set by hand with closed forms, one small and trained."""

from attncheck.models.analytic import ANALYTIC_HEADS, AnalyticTransformer
from attncheck.models.fixture_files import fixture_path
from attncheck.models.tiny import (
    VOCABULARY,
    TinyTransformer,
    encode,
    load_tiny_model,
    repeated_tokens,
    tokens_of,
)

__all__ = [
    "ANALYTIC_HEADS",
    "VOCABULARY",
    "AnalyticTransformer",
    "TinyTransformer",
    "encode",
    "fixture_path",
    "load_tiny_model",
    "repeated_tokens",
    "tokens_of",
]
