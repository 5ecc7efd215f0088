"""Kernels of the device, what only CUDA has, and warnings of other libraries there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from attncheck.pytest_plugin.options import device_word
from tests.devices.kernels import cases_of

GPU = "only CUDA has it"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for a ``kernel_case`` with every kernel of the device, call and dtype."""
    if "kernel_case" in metafunc.fixturenames:
        kind = "cuda" if "cuda" in device_word(metafunc.config) else "cpu"
        metafunc.parametrize("kernel_case", cases_of(kind), ids=str)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only CUDA has; let other libraries warn on other devices than the CPU."""
    on_cuda = "cuda" in device_word(config)
    for item in items:
        if "tests/devices" not in item.path.as_posix():
            continue
        if not on_cuda and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=GPU))
        if device_word(config) != "cpu":
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Draw the same numbers in whatever order tests run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
