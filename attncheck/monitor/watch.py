"""Watch one forward pass of training: the first sequences of the batch, measured as they go by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from attncheck.attention import LayerAttention
from attncheck.capture.call import AttentionCall
from attncheck.capture.keeping import Settings
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
        self._session = Session(model, settings, self._measure, cut=self._cut)
        self._model, self._sequences = model, sequences
        self._measurement = measurement
        self._held: dict[tuple[str, int], AttentionCall] = {}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Watch until the context ends."""
        with ExitStack() as stack:
            for recorder in RECORDERS:
                stack.enter_context(recorder.installed(self._session))
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

    def _cut(self, call: AttentionCall, repeat: int) -> AttentionCall:
        with quiet(call.output.device.type):
            few = self._held[call.name, repeat] = _first(call, self._sequences)
        return few

    def _measure(self, layer: LayerAttention) -> None:
        call = self._held.pop((layer.name, layer.call), None)
        self._measurement.add(layer, call, self._session.sequences.ids(layer.name))

    def begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Take the arguments of the pass: layers are measured with the tokens that they read.

        Args:
            args: For the model.
            kwargs: For the model.
        """
        self._session.sequences.begin(self._model, args, kwargs)


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
