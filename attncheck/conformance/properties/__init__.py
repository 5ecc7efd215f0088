"""The properties, one family a file; importing this package fills the registry."""

from __future__ import annotations

from attncheck.conformance.properties import (  # noqa: F401
    scale,
    scale_causal,
    masks,
    odd_masks,
    causal,
    softmax,
    shapes,
    relations,
    averages,
    bias,
    gradients,
    accumulation,
    state,
    calling,
    several_calls,
    surroundings,
    threads,
    dropout,
    dropout_masks,
    weights,
    general,
    searched,
)  # fmt: skip  # isort: skip
