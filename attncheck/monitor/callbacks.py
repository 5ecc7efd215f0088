"""A `HeadMonitor` as a callback of Lightning's or transformers' ``Trainer``.

The classes are made when they are asked for: neither library is imported, nor needed, before.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from attncheck.monitor.monitor import HeadMonitor

__all__ = ["lightning_callback", "transformers_callback"]

LIGHTNING: Final = ("lightning.pytorch", "pytorch_lightning")


def transformers_callback(monitor: HeadMonitor) -> Any:
    """Return a ``transformers.TrainerCallback`` that counts steps as the trainer does.

    It watches from the beginning of the training to its end; ``monitor.model`` must be the model
    given to the trainer, or the one inside it.

    Raises:
        ImportError: transformers is not installed.
    """
    from transformers import TrainerCallback

    base: Any = TrainerCallback

    class HeadMonitorCallback(base):  # type: ignore[misc]
        """Feeds a `HeadMonitor` from a transformers trainer."""

        def on_train_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            """Begin to watch at the step that the trainer is at."""
            _begin(monitor, state.global_step)

        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            """Count."""
            monitor.step(state.global_step)

        def on_train_end(self, *_: Any, **__: Any) -> None:
            """Stop watching."""
            monitor.detach()

    return HeadMonitorCallback()


def lightning_callback(monitor: HeadMonitor) -> Any:
    """Return a Lightning ``Callback`` that counts steps as the trainer does.

    The class comes from ``lightning.pytorch`` or ``pytorch_lightning``, whichever is in use.

    Raises:
        ImportError: Neither is installed.
    """
    names = [name for name in LIGHTNING if name in sys.modules]
    if not names:
        names = [name for name in LIGHTNING if find_spec(name.partition(".")[0]) is not None]
    if not names:
        raise ImportError("lightning_callback: neither lightning nor pytorch_lightning is there")
    base: Any = import_module(names[0]).Callback

    class HeadMonitorCallback(base):  # type: ignore[misc]
        """Feeds a `HeadMonitor` from a Lightning trainer."""

        def on_train_start(self, trainer: Any, *_: Any) -> None:
            """Begin to watch at the step that the trainer is at."""
            _begin(monitor, trainer.global_step)

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            """Count optimiser steps."""
            monitor.step(trainer.global_step)

        def on_train_end(self, *_: Any) -> None:
            """Stop watching."""
            monitor.detach()

        def on_exception(self, *_: Any) -> None:
            """Stop watching."""
            monitor.detach()

    return HeadMonitorCallback()


def _begin(monitor: HeadMonitor, step: int) -> None:
    monitor.step(step)
    monitor.attach()
