"""An extension of attention: an adapter to the plain signature, and an oracle of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from attncheck.conformance.capabilities import Capabilities
from attncheck.conformance.oracle import Rules
from attncheck.conformance.registry import Property

__all__ = ["ON_TOP", "Extension", "Variant"]

ON_TOP: Final = (
    "scale-default",
    "scale-given",
    "mask-bool",
    "mask-float",
    "causal-square",
    "causal-rectangular",
    "gqa-ratios",
    "softmax-large-logits",
    "softmax-running-maximum",
    "accuracy-dtypes",
    "shape-head-sizes",
    "layout-strides",
    "relation-batch-independent",
    "gradient-values",
    "state-inputs-untouched",
    "state-calls-independent",
    "state-deterministic",
    "design-small",
    "lengths-blocks",
    "lengths-long",
)
"""Properties of the battery that hold under any rules, since they ask the oracle of the rules."""


@dataclass(frozen=True)
class Variant:
    """One setting of an extension.

    Attributes:
        label: Names it in ids.
        rules: Its arithmetic.
        adapt: Turns the implementation into a function of the plain signature.
    """

    label: str
    rules: Rules
    adapt: Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class Extension:
    """An extension of attention.

    Attributes:
        name: How it is asked for.
        signature: How the implementation is called.
        source: Where the extension comes from.
        variants: Settings to try; each runs the battery.
        properties: What is checked besides, on the implementation itself.
        capabilities: What its adapter can express.
        select: Ids of the battery's properties that apply.
    """

    name: str
    signature: str
    source: str
    variants: Sequence[Variant]
    properties: Sequence[Property] = ()
    capabilities: Capabilities = field(default_factory=Capabilities)
    select: Sequence[str] = ON_TOP
