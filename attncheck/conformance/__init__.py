"""The conformance battery: break any attention implementation, or trust it."""

from __future__ import annotations

from attncheck.conformance.battery import check_attention
from attncheck.conformance.capabilities import Capabilities
from attncheck.conformance.pytest_door import parametrize_with_checks
from attncheck.conformance.registry import PROPERTIES, Property
from attncheck.conformance.report import ConformanceReport, Failure

__all__ = [
    "PROPERTIES",
    "Capabilities",
    "ConformanceReport",
    "Failure",
    "Property",
    "check_attention",
    "parametrize_with_checks",
]
