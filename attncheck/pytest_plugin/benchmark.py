"""`attention_benchmark`, on pytest-benchmark: registered only where that plugin runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

    from attncheck.benchmark import Ceilings

__all__ = ["AttentionBenchmark", "register"]

CEILINGS = pytest.StashKey[dict[Any, "Ceilings"]]()

MISSING = (
    "attention_benchmark: needs pytest-benchmark, which does not run here; install it with "
    "pip install 'attncheck[bench]', and drop -p no:benchmark where that is set"
)


def register(config: pytest.Config) -> None:
    """Provide the fixture: the real one, or one that says what is missing."""
    there = hasattr(config.hook, "pytest_benchmark_update_machine_info")
    provider = WithPytestBenchmark() if there else WithoutPytestBenchmark()
    config.pluginmanager.register(provider, "attncheck-benchmark")


class AttentionBenchmark:
    """Times a call; see the fixture `attention_benchmark`."""

    def __init__(self, benchmark: Any, device: torch.device, config: pytest.Config) -> None:
        self._benchmark, self._device, self._config = benchmark, device, config

    def __call__(
        self,
        function: Callable[..., Any],
        /,
        *args: Any,
        tokens: int | None = None,
        bytes_moved: float | None = None,
        flops: float | None = None,
        memory: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Time ``function(*args, **kwargs)`` and return what it returns.

        One call warms up; the device is waited for in every timed call. What is known of the work
        becomes rates beside the times, in ``extra_info``.

        Args:
            function: What to time.
            args: For the function. The first tensor among them says which device is waited for;
                without one it is `attention_device`.
            tokens: How many tokens one call handles: gives tokens per second.
            bytes_moved: How many bytes it must read and write: gives bytes per second, and their
                share of the memory bandwidth that a large sum or copy reaches in this session.
            flops: How many floating-point operations it must do: gives their rate, and its share of
                what a large matrix product of the same dtype reaches in this session.
            memory: Whether one more, untimed call tells its peak memory.
            kwargs: For the function.

        Raises:
            TypeError: ``function`` cannot be called, or an amount is no number.
            ValueError: An amount is not positive.
        """
        from attncheck.benchmark import peak_memory, synchroniser

        amounts = {"tokens": tokens, "bytes": bytes_moved, "flops": flops}
        device, dtype = _where((*args, *kwargs.values()), self._device)
        synchronise = synchroniser(device)

        def timed() -> Any:
            result = function(*args, **kwargs)
            synchronise()
            return result

        try:
            _require_callable(function)
            _require_positive(amounts)
            if self._benchmark.enabled:
                timed()
        except Exception as error:
            self._benchmark(_raise, error)  # else it complains of not being used, too
        if not self._benchmark.enabled:
            return self._benchmark(timed)
        result = self._benchmark(timed)
        info = self._benchmark.extra_info
        info["device"] = str(device)
        self._add_rates(info, amounts, device, dtype)
        if memory:
            info["peak_bytes"] = peak_memory(timed, device)
        return result

    def _add_rates(
        self,
        info: dict[str, Any],
        amounts: dict[str, float | None],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        seconds = self._benchmark.stats.stats.median
        rates = {name: amount / seconds for name, amount in amounts.items() if amount is not None}
        info |= {f"{name}_per_second": rate for name, rate in rates.items()}
        if "bytes" in rates:
            best = self._ceilings(device, dtype).bandwidth
            info |= {"bandwidth_ceiling": best, "bandwidth_share": rates["bytes"] / best}
        if "flops" in rates:
            best = self._ceilings(device, dtype).flops
            info |= {"flop_ceiling": best, "flop_share": rates["flops"] / best}

    def _ceilings(self, device: torch.device, dtype: torch.dtype) -> Ceilings:
        """Measure what the device can do, once in a session."""
        from attncheck.benchmark import measure_ceilings

        known = self._config.stash.setdefault(CEILINGS, {})
        if (device, dtype) not in known:
            known[device, dtype] = measure_ceilings(device, dtype)
        return known[device, dtype]


class WithPytestBenchmark:
    """The fixture, and what it adds to the files of pytest-benchmark."""

    @pytest.fixture
    def attention_benchmark(
        self, benchmark: Any, attention_device: torch.device, pytestconfig: pytest.Config
    ) -> AttentionBenchmark:
        """Time a call on any device: ``attention_benchmark(function, *args, tokens=..., ...)``.

        pytest-benchmark keeps the times and its own options; rates, their share of the machine's
        ceilings, and peak memory stand in ``extra_info``. See `AttentionBenchmark`.
        """
        return AttentionBenchmark(benchmark, attention_device, pytestconfig)

    def pytest_benchmark_update_machine_info(self, machine_info: dict[str, Any]) -> None:
        """Store versions, threads and GPU with the results, where torch was used at all."""
        if "torch" in sys.modules:
            from attncheck.benchmark import machine

            unstable = ("when", "load_average")  # would make every saved run look different
            found = {name: value for name, value in machine().items() if name not in unstable}
            machine_info["attncheck"] = found


class WithoutPytestBenchmark:
    """A fixture in its place, so that the message is ours."""

    @pytest.fixture
    def attention_benchmark(self) -> None:
        """Say what is missing: an error and no skip, so that no run is green without it."""
        raise pytest.UsageError(MISSING)


def _raise(error: Exception) -> None:
    raise error


def _require_callable(function: object) -> None:
    if not callable(function):
        raise TypeError(
            f"attention_benchmark: function: got {type(function).__name__}; expected what can be "
            "called, such as model or lambda: model(ids)"
        )


def _require_positive(amounts: dict[str, Any]) -> None:
    names = {"tokens": "tokens", "bytes": "bytes_moved", "flops": "flops"}
    for key, amount in amounts.items():
        if isinstance(amount, bool) or not isinstance(amount, int | float | None):
            kind = type(amount).__name__
            raise TypeError(
                f"attention_benchmark: {names[key]}: got {kind}; expected how many one call takes"
            )
        if amount is not None and not 0 < amount < float("inf"):
            raise ValueError(
                f"attention_benchmark: {names[key]}: got {amount}; expected a positive number"
            )


def _where(values: tuple[Any, ...], default: torch.device) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of what a function is given."""
    import torch

    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    device = tensors[0].device if tensors else default
    floating = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    return device, floating[0] if floating else torch.float32
