"""`HeadMonitor`: watch the heads of a model while it trains."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from attncheck import __version__
from attncheck.attention.arguments import whole_number
from attncheck.capture.modules import module_names, require_module
from attncheck.capture.select import LayerChoice, LayerSelection
from attncheck.errors import HeadAlertError, MonitorWarning
from attncheck.monitor.history import HeadHistory, HistoryFile
from attncheck.monitor.measure import Measurement
from attncheck.monitor.replay import is_compiled, replay
from attncheck.monitor.rules import Judge, Thresholds
from attncheck.monitor.sample import HeadAlert
from attncheck.monitor.telling import warn
from attncheck.monitor.trigger import Trigger
from attncheck.monitor.watch import Watch

__all__ = ["HeadMonitor", "OnAlert"]

OnAlert: TypeAlias = Literal["warn", "raise", "ignore"] | Callable[[HeadAlert], object]


class HeadMonitor:
    """Watches the heads of a model while it trains, and tells what goes wrong.

    Every so many steps one forward pass of the training itself is watched, for a few sequences of
    its batch: measures of each head, what it does, the largest score, how much it passes on, which
    other head it resembles. Outputs, gradients, random state and buffers are bitwise what they are
    without. Where parts of the model are compiled, or with ``probe=``, a second pass without
    gradients is watched instead, and random state and buffers are put back.

    A step is a forward pass in training mode with gradients, until `step` is called for the first
    time; from then on it is what `step` counts, for loops that accumulate gradients.

    Nothing is ever raised into the training unless ``on_alert="raise"``.

    Args:
        model: Any module that `AttentionExtractor` captures; one wrapped in
            ``DistributedDataParallel`` is unwrapped.
        every: Sample when the step is a multiple of this.
        path: Append the samples to this file (JSON lines), see `HeadHistory.load`. A file that is
            there is continued.
        on_alert: ``"warn"`` with `MonitorWarning`, ``"raise"`` `HeadAlertError`, ``"ignore"``, or a
            function that takes each `HeadAlert`. They are in `alerts` and in the file in any case.
        thresholds: When to raise an alert.
        layers: Which layers, as `AttentionExtractor` takes them. Default: all.
        sequences: How many sequences of the batch to measure.
        probe: Inputs (a dict, a tuple, or one tensor) to run in eval mode at each sample, instead
            of watching the training's own batch: the same prompt every time.
        start: Number of the first step. Default: 0, or the one behind the last of the file.
        ranks: ``"first"``: with ``torch.distributed`` only rank 0 watches. ``"all"``: each rank
            does, and writes a file of its own (``heads.rank3.jsonl``). Nothing is exchanged.

    Raises:
        TypeError: ``model`` is no module, ``thresholds`` no `Thresholds`, or a number is none.
        ValueError: An argument makes no sense, or ``path`` is another kind of file.

    Example:
        >>> from attncheck.models import TinyTransformer, repeated_tokens
        >>> model = TinyTransformer().train()
        >>> with HeadMonitor(model, every=50) as monitor:
        ...     for batch in [repeated_tokens(8, batch=4)] * 3:
        ...         loss = model(batch).square().mean()
        ...         loss.backward()
        >>> monitor.history.steps, monitor.alerts
        ([0], [])
    """

    def __init__(
        self,
        model: nn.Module,
        every: int = 50,
        *,
        path: str | os.PathLike[str] | None = None,
        on_alert: OnAlert = "warn",
        thresholds: Thresholds | None = None,
        layers: LayerChoice = None,
        sequences: int = 1,
        probe: Mapping[str, Any] | tuple[Any, ...] | Tensor | None = None,
        start: int | None = None,
        ranks: Literal["first", "all"] = "first",
    ) -> None:
        _require(model, on_alert, ranks)
        self.model = _unwrapped(model)
        self.every = whole_number(every, "every", low=1)
        self.active = ranks == "all" or _rank() == 0
        self._on_alert = on_alert
        self._layers = LayerSelection(layers, list(module_names(self.model).values()))
        self._sequences = whole_number(sequences, "sequences", low=1)
        self._probe = _call_of(probe)
        if thresholds is not None and not isinstance(thresholds, Thresholds):
            raise TypeError(
                f"thresholds: is {type(thresholds).__name__}; expected attncheck.monitor.Thresholds"
            )
        self._judge = Judge(thresholds or Thresholds())
        self._file: HistoryFile | None = None
        self.history = HeadHistory(about=self._about())
        if path is not None and self.active:
            self._file = HistoryFile(_path_of_rank(path, ranks), self._about())
            self.history = self._file.history
        for sample in self.history:
            self._judge.judge(sample)
        after = self.history.steps[-1] + 1 if len(self.history) else 0
        self._start = self._step = after if start is None else whole_number(start, "start")
        self._counted_by_caller = False
        self._seen = False
        self._sampled: int | None = None
        this = weakref.proxy(self)
        self._trigger = Trigger(lambda *call: this._before(*call), lambda how: this._after(how))
        self._stack = ExitStack()
        self._open = False
        self._watching: ExitStack | None = None
        self._running: tuple[Watch, Measurement] | None = None
        self._said: set[str] = set()

    @property
    def alerts(self) -> list[HeadAlert]:
        """What went wrong so far, in order."""
        return self.history.alerts

    def __enter__(self) -> HeadMonitor:
        self.attach()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._seen = self._seen or error is not None
        self.detach()

    def attach(self) -> None:
        """Begin to watch, as the ``with`` statement does.

        Raises:
            RuntimeError: It watches already.
        """
        if self._open:
            raise RuntimeError("this HeadMonitor is attached already")
        self._open = True
        if self.active:
            self._stack.enter_context(self._trigger.installed(self.model))

    def detach(self) -> None:
        """Stop watching; the history stays."""
        self._open = False
        self._stop_watching()
        self._stack.close()
        if self.active and not self._seen:
            self._warn(
                "no forward pass in training mode was seen: call the module given to HeadMonitor, "
                "not a copy of it, and not from inside compiled code"
            )

    def step(self, number: int | None = None) -> None:
        """Say that an optimiser step is done.

        Args:
            number: Of the step that begins. Default: one more than the last.
        """
        if number is not None:
            self._step = number
        else:
            self._step = (self._step if self._counted_by_caller else self._start) + 1
        self._counted_by_caller = True

    def lightning_callback(self) -> Any:
        """Return a callback for Lightning's ``Trainer``; see `attncheck.monitor.callbacks`."""
        from attncheck.monitor.callbacks import lightning_callback

        return lightning_callback(self)

    def transformers_callback(self) -> Any:
        """Return a callback for transformers' ``Trainer``; see `attncheck.monitor.callbacks`."""
        from attncheck.monitor.callbacks import transformers_callback

        return transformers_callback(self)

    def _before(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A forward pass of training begins."""
        self._seen = True
        self._stop_watching()  # of a pass that an interrupt ended
        if self._step % self.every or self._sampled == self._step:
            return
        self._sampled = self._step
        try:
            probed = self._probe is not None
            args, kwargs = self._probe or (args, kwargs)
            measurement = Measurement()
            watch = Watch(self.model, self._layers, self._sequences, measurement)
            watch.begin(args, kwargs)
            self._running = watch, measurement
            if probed or is_compiled(self.model):
                self._trigger.paused = True
                try:
                    with watch.installed():
                        replay(self.model, args, kwargs, training=not probed)
                finally:
                    self._trigger.paused = False
                self._finish()
            else:
                self._watching = ExitStack()
                self._watching.enter_context(watch.installed())
        except (HeadAlertError, MonitorWarning):
            raise
        except Exception as error:
            self._give_up(error)

    def _after(self, broke: bool) -> None:
        """A forward pass of training is over, or broke off."""
        if self._watching is not None:
            self._stop_watching(measured=not broke)
        if not self._counted_by_caller:
            self._step += 1

    def _stop_watching(self, *, measured: bool = False) -> None:
        if self._watching is not None:
            self._watching.close()
            self._watching = None
        if not measured:
            self._running = None
            return
        try:
            self._finish()
        except (HeadAlertError, MonitorWarning):
            raise
        except Exception as error:
            self._give_up(error)

    def _finish(self) -> None:
        """Turn what was measured into a sample; judge, keep, write and tell."""
        assert self._running is not None
        watch, measurement = self._running
        self._running = None
        for problem in watch.finish():
            self._warn(f"not measured: {problem}")
        if not measurement.layers:
            self._warn("no attention was seen in the forward pass; AttentionExtractor says why")
            return
        sample = measurement.sample(self._step, time.time())
        alerts = self._judge.judge(sample)
        sample = replace(sample, alerts=tuple(alerts))
        self.history.append(sample)
        if self._file is not None:
            try:
                self._file.append(sample)
            except OSError as error:
                self._warn(f"cannot write {self._file.path}: {error.strerror}")
        self._tell(alerts)

    def _tell(self, alerts: list[HeadAlert]) -> None:
        if self._on_alert == "ignore" or not alerts:
            return
        if self._on_alert == "raise":
            raise HeadAlertError("\n".join(map(str, alerts)), alerts)
        for alert in alerts:
            if callable(self._on_alert):
                self._on_alert(alert)
            else:
                warn(str(alert))

    def _give_up(self, error: Exception) -> None:
        """Training goes on without this sample."""
        if self._watching is not None:
            self._watching.close()
        self._watching = self._running = None
        self._warn(f"step {self._step} was not measured: {type(error).__name__}: {error}")

    def _warn(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            warn(text)

    def _about(self) -> dict[str, Any]:
        return {
            "attncheck": __version__,
            "torch": torch.__version__,
            "model": type(self.model).__name__,
            "every": self.every,
            "sequences": self._sequences,
            "thresholds": asdict(self._judge.thresholds),
        }


def _require(model: Any, on_alert: Any, ranks: Any) -> None:
    require_module(model)
    if on_alert not in ("warn", "raise", "ignore") and not callable(on_alert):
        raise ValueError(f"on_alert: got {on_alert!r}; expected warn, raise, ignore or a function")
    if ranks not in ("first", "all"):
        raise ValueError(f"ranks: got {ranks!r}; expected first or all")


def _unwrapped(model: nn.Module) -> nn.Module:
    from torch.nn.parallel import DistributedDataParallel

    inner: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
    return inner


def _rank() -> int:
    distributed = torch.distributed
    there = distributed.is_available() and distributed.is_initialized()
    return distributed.get_rank() if there else 0


def _path_of_rank(path: str | os.PathLike[str], ranks: str) -> str:
    stem, suffix = os.path.splitext(os.fspath(path))
    return f"{stem}.rank{_rank()}{suffix}" if ranks == "all" and _rank() else os.fspath(path)


def _call_of(
    probe: Mapping[str, Any] | tuple[Any, ...] | Tensor | None,
) -> tuple[tuple[Any, ...], Mapping[str, Any]] | None:
    if probe is None:
        return None
    if isinstance(probe, Mapping):
        return (), probe
    return (probe, {}) if isinstance(probe, tuple) else ((probe,), {})
