"""The pytest plugin: hooks and fixtures only. It imports nothing heavy until a test asks."""

from attncheck.pytest_plugin.artifacts import pytest_runtest_makereport
from attncheck.pytest_plugin.fixtures import (
    attention_device,
    attention_extractor,
    attention_pattern,
    pytest_generate_tests,
    synthetic_attention,
)
from attncheck.pytest_plugin.options import (
    pytest_addoption,
    pytest_configure,
    pytest_report_header,
)
from attncheck.pytest_plugin.profiles import attention_profiles
from attncheck.pytest_plugin.regression import head_regression
from attncheck.pytest_plugin.report import attention_report

__all__ = [
    "attention_device",
    "attention_extractor",
    "attention_pattern",
    "attention_profiles",
    "attention_report",
    "head_regression",
    "pytest_addoption",
    "pytest_configure",
    "pytest_generate_tests",
    "pytest_report_header",
    "pytest_runtest_makereport",
    "synthetic_attention",
]
