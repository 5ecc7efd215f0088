"""Watch one forward pass of training: the first sequences of the batch, measured as they go by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from attncheck.attention import LayerAttention
from attncheck.capture.call import AttentionCall
from attncheck.capture.keeping import Settings
from attncheck.capture.modules import ModuleTable
from attncheck.capture.quiet import quiet
from attncheck.capture.recorders import RECORDERS
from attncheck.capture.select import LayerSelection
from attncheck.capture.session import Session
from attncheck.monitor.measure import Measurement

__all__ = ["Watch"]


class Watch:
    """One sampled forward pass.

    The recorders of `attncheck.capture` report to it as they do to an `AttentionExtractor`, but
    every call is cut down to a few sequences before anything is computed of it.

    Args:
        model: Whose attention is watched.
        layers: Which layers.
        sequences: How many sequences of the batch.
        measurement: Takes the layers.
    """

    def __init__(
        self, model: nn.Module, layers: LayerSelection, sequences: int, measurement: Measurement
    ) -> None:
        settings = Settings(layers, keeps=False)
        self._session = Session(model, settings, self._measure)
        self._sequences = sequences
        self._measurement = measurement
        self._calls: Counter[str] = Counter()
        self._held: dict[tuple[str, int], AttentionCall] = {}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Watch until the context ends."""
        with ExitStack() as stack:
            for recorder in RECORDERS:
                stack.enter_context(recorder.installed(self))
            yield

    def finish(self) -> list[str]:
        """Measure what waited for the last layer; return what could not be read.

        Raises:
            Exception: Whatever measuring raised, or a layer asked for does not exist.
        """
        self._session.judge_parts()
        problems = [str(failure) for failure in self._session.failures]
        self._session.failures.clear()
        self._session.finish(strict=False)
        return problems + [str(failure) for failure in self._session.failures]

    @property
    def captured(self) -> bool:
        """Whether any attention was seen."""
        return bool(self._session.captured)

    def record(self, name: str, backend: str, build: Callable[[], AttentionCall]) -> None:
        """Take a call, see `attncheck.capture.call.Sink`."""
        place = name, self._calls[name]
        self._calls[name] += 1

        def few() -> AttentionCall:
            call = build()
            with quiet(call.output.device.type):
                call = self._held[place] = _first(call, self._sequences)
            return call

        self._session.record(name, backend, few)

    def _measure(self, layer: LayerAttention) -> None:
        self._measurement.add(layer, self._held.pop((layer.name, layer.call), None))

    @property
    def busy(self) -> bool:
        """As the session has it; so have the methods below."""
        return self._session.busy

    @property
    def modules(self) -> ModuleTable:
        """Of the model."""
        return self._session.modules

    @property
    def model_calls(self) -> int:
        """How often the model was called."""
        return self._session.model_calls

    def inside(self) -> AbstractContextManager[None]:
        """Keep other recorders silent."""
        return self._session.inside()

    def name_of(self, module: object) -> str | None:
        """Path of a module."""
        return self._session.name_of(module)

    def here(self) -> tuple[nn.Module, str] | None:
        """Innermost running module."""
        return self._session.here()

    def softmax_seen(self, number: int) -> None:
        """Note a softmax."""
        self._session.softmax_seen(number)

    def softmax_left(self, number: int) -> None:
        """See `Session`."""
        self._session.softmax_left(number)

    def softmax_used(self, number: int) -> None:
        """Note that it was attention."""
        self._session.softmax_used(number)

    def values_met(self, number: int) -> None:
        """Note that a softmax multiplied values."""
        self._session.values_met(number)

    def part_seen(self, number: int) -> None:
        """Note a part of a softmax."""
        self._session.part_seen(number)

    def parts_used(self, numbers: Iterable[int]) -> None:
        """Note what parts were."""
        self._session.parts_used(numbers)

    def unreadable(self, name: str, what: str, way_out: str) -> None:
        """Note attention that cannot be captured."""
        self._session.unreadable(name, what, way_out)


def _first(call: AttentionCall, count: int) -> AttentionCall:
    """Cut a call down to the first sequences of its batch."""
    batch = call.shape[0]
    if batch <= count:
        return call

    def cut(held: Tensor | None) -> Tensor | None:
        return held if held is None or held.shape[0] != batch else held[:count]

    parts: dict[str, Any] = {
        name: cut(getattr(call, name)) for name in ("query", "key", "value", "weights", "bias")
    }
    parts["mask"] = cut(call.mask)
    if call.sinks is not None and call.sinks.ndim == 4:
        parts["sinks"] = cut(call.sinks)
    if call.redone is None:
        parts["output"] = cut(call.output)
        again = call.without_dropout
        if again is not None:
            parts["without_dropout"] = lambda: again()[:count]
    return replace(call, **parts)
