from __future__ import annotations

import importlib.util

import pytest


@pytest.fixture(autouse=True, scope="module")
def with_triton() -> None:
    """Skip without triton."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
