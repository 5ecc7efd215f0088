"""Fixtures. Those that may meet ``@given`` are session-scoped; all import on use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest

from attncheck.pytest_plugin.options import device_word
from attncheck.pytest_plugin.report import remember

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from attncheck.capture import AttentionExtractor

__all__ = [
    "AttentionPattern",
    "attention_device",
    "attention_extractor",
    "attention_pattern",
    "pytest_generate_tests",
    "synthetic_attention",
]

SEQ_LEN: Final = 24
"""Length of the weights of `attention_pattern`: beyond the least that heads are named at."""


@dataclass(frozen=True, eq=False)
class AttentionPattern:
    """One pattern of the catalogue, built.

    Attributes:
        name: Its canonical name.
        weights: ``(query, key)``, 24 tokens, with 5 % noise, the same in every run.
        causal: Whether queries see no later key: wherever the pattern does not look ahead.
        tokens: One per key: a block that repeats for patterns about repeats, punctuation for
            ``delimiter``, else all distinct.
    """

    name: str
    weights: Tensor
    causal: bool
    tokens: list[str] | list[int]
    device: torch.device

    def create(self, seq_len: int = SEQ_LEN, noise_level: float = 0.05, **options: Any) -> Tensor:
        """Build other weights of this pattern; arguments as `create_synthetic_attention`.

        Causality is as above, the seed 0, unless given; tokens are the pattern's default ones.
        """
        from attncheck.patterns import create_synthetic_attention

        given = {"causal": self.causal, "seed": 0, "device": self.device, **options}
        return create_synthetic_attention(seq_len, self.name, noise_level, **given)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `attention_pattern` once per pattern; ids are their names.

    A test may choose some: ``@pytest.mark.parametrize("attention_pattern", [...], indirect=True)``.
    """
    wanted = "attention_pattern"
    if wanted not in metafunc.fixturenames:
        return
    for mark in metafunc.definition.iter_markers("parametrize"):
        names = mark.args[0] if mark.args else mark.kwargs.get("argnames", "")
        listed = names.split(",") if isinstance(names, str) else names
        if wanted in [name.strip() for name in listed]:
            return
    from attncheck.patterns import PATTERNS

    metafunc.parametrize(wanted, list(PATTERNS), indirect=True, scope="session")


@pytest.fixture(scope="session")
def attention_device(pytestconfig: pytest.Config) -> torch.device:
    """The `torch.device` of ``--attncheck-device`` or ini ``attncheck_device`` (default: cpu)."""
    from attncheck.pytest_plugin.device import resolve_device

    return resolve_device(device_word(pytestconfig))


@pytest.fixture(scope="session")
def synthetic_attention(attention_device: torch.device) -> Callable[..., Tensor]:
    """Factory of synthetic attention: `create_synthetic_attention` on `attention_device`.

    The seed is 0 unless given: equal calls give equal weights, in every run and on every worker.
    """
    from attncheck.patterns import create_synthetic_attention

    def create(
        seq_len: int, pattern: str = "diagonal", noise_level: float = 0.05, **options: Any
    ) -> Tensor:
        given = {"seed": 0, "device": attention_device, **options}
        return create_synthetic_attention(seq_len, pattern, noise_level, **given)

    return create


@pytest.fixture(scope="session")
def attention_pattern(
    request: pytest.FixtureRequest, attention_device: torch.device
) -> AttentionPattern:
    """Each pattern of the catalogue in turn, as an `AttentionPattern`."""
    from attncheck.patterns import (
        PATTERNS,
        canonical_name,
        create_synthetic_attention,
        tokens_with_repeats,
    )

    name = canonical_name(request.param)
    pattern = PATTERNS[name]
    causal = pattern.direction != "bidirectional"
    tokens: list[Any] = list(range(SEQ_LEN))
    if pattern.requires == "tokens":
        tokens = tokens_with_repeats(SEQ_LEN)
    elif pattern.requires == "delimiters":
        tokens = ["." if place % 4 == 3 else f"word{place}" for place in tokens]
    weights = create_synthetic_attention(
        SEQ_LEN, name, causal=causal, seed=0, tokens=tokens, device=attention_device
    )
    return AttentionPattern(name, weights, causal, tokens, attention_device)


@pytest.fixture
def attention_extractor(
    request: pytest.FixtureRequest,
) -> Iterator[Callable[..., AttentionExtractor]]:
    """Factory of `AttentionExtractor`; what is still capturing when the test ends is closed.

    What it captured stands on the page of ``--attncheck-report``.
    """
    from attncheck.capture import AttentionExtractor

    made: list[AttentionExtractor] = []

    def make(model: nn.Module, layers: Any = None, **options: Any) -> AttentionExtractor:
        made.append(AttentionExtractor(model, layers, **options))
        remember(request.node, made[-1], type(model).__name__)
        return made[-1]

    yield make
    for extractor in reversed(made):
        extractor.clear_hooks()
