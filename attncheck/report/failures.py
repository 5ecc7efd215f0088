"""From a finding to what a page says about it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from attncheck.checks.finding import Evidence, Finding
from attncheck.checks.render import render
from attncheck.report.entries import FailureEntry
from attncheck.report.images import evidence_uri

__all__ = ["describe_failure"]


def describe_failure(finding: Finding | None, where: str, text: str = "") -> FailureEntry:
    """Describe one failed check.

    Args:
        finding: What the check found; its evidence becomes pictures.
        where: Node id of the test, or whatever else says where it was found.
        text: The message. Default: what `render` makes of the finding.

    Example:
        >>> import torch
        >>> from attncheck.checks import check_causal
        >>> finding = check_causal(torch.full((1, 2, 4, 4), 0.25), name="attn")
        >>> failure = describe_failure(finding, "test_it.py::test_causal")
        >>> failure["text"].splitlines()[0], failure["heads"]
        ('not causal: 12 of 12 future weights > 1e-05', ['L0H0', 'L0H1'])
    """
    if finding is None:
        return {"where": where, "text": text, "heads": [], "images": []}
    heads = dict.fromkeys(name for one in finding.offenders for name in one.head.split())
    return {
        "where": where,
        "text": text or render(finding),
        "heads": list(heads),
        "images": [] if finding.evidence is None else _images(finding.evidence),
    }


def _images(evidence: Evidence) -> list[list[str]]:
    """The head as it is, and before it what was recorded of it, where that is known."""
    caption = evidence.head if evidence.expected is None else f"{evidence.head} now"
    images = [[caption, evidence_uri(evidence)]]
    if evidence.expected is not None:
        before = replace(
            evidence,
            weights=evidence.expected,
            offending=np.zeros(evidence.offending.shape, dtype=np.bool_),
        )
        images.insert(0, [f"{evidence.head} before", evidence_uri(before)])
    return images
