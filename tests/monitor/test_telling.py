"""A warning of the monitor names the line that a user would look at: the one that ran the step."""

from __future__ import annotations

import _thread
import linecache
import time
import types
import warnings
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import torch
from torch import nn

from attncheck import HeadMonitor, MonitorWarning
from attncheck.models import TinyTransformer
from tests.monitor.training import head_rows

IDS = torch.arange(12)[None]


def dead(*, compiled: bool = False) -> TinyTransformer:
    """A model with a head that passes nothing on."""
    model = TinyTransformer().train()
    head_rows(model, 0, 1, 2).zero_()
    if compiled:
        model.compile(backend="eager")
    return model


def told_at(run: Callable[[], object]) -> set[str]:
    """The lines that warnings point at; each must be in this file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    assert caught
    assert {warning.category for warning in caught} == {MonitorWarning}
    assert {warning.filename for warning in caught} == {__file__}
    return {linecache.getline(one.filename, one.lineno).strip() for one in caught}


@pytest.mark.parametrize("how", ["watched", "compiled", "probed"])
def test_an_alert_names_the_line_that_called_the_model(how: str) -> None:
    model = dead(compiled=how == "compiled")

    def run() -> None:
        with HeadMonitor(model, every=1, probe=IDS if how == "probed" else None):
            for _ in range(2):
                model(IDS).sum().backward()

    assert told_at(run) == {"model(IDS).sum().backward()"}


def test_what_cannot_be_measured_names_it_too() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).train()

    def run() -> None:
        with HeadMonitor(model):
            model(torch.ones(1, 4))

    assert told_at(run) == {"model(torch.ones(1, 4))"}


def test_the_end_of_a_training_that_was_not_seen_names_where_it_ended() -> None:
    def run() -> None:
        monitor = HeadMonitor(TinyTransformer())
        monitor.attach()
        monitor.detach()
        with ExitStack() as stack:
            stack.enter_context(HeadMonitor(TinyTransformer()))

    assert told_at(run) == {"monitor.detach()", "with ExitStack() as stack:"}


@pytest.mark.parametrize("library", ["transformers.trainer", "pytorch_lightning", "accelerate.x"])
def test_in_a_trainer_the_users_line_is_the_one_that_ran_the_trainer(library: str) -> None:
    trainer = types.ModuleType(library)
    loop = "def train(model, ids):\n    for _ in range(2):\n        model(ids)\n"
    exec(compile(loop, f"{library}.py", "exec"), vars(trainer))
    model = dead()

    def run() -> None:
        with HeadMonitor(model, every=1):
            trainer.train(model, IDS)

    assert told_at(run) == {"trainer.train(model, IDS)"}


def test_where_nothing_on_the_stack_is_the_users_the_warning_comes_all_the_same() -> None:
    monitor = HeadMonitor(TinyTransformer())
    monitor.attach()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _thread.start_new_thread(monitor.detach, ())  # its stack begins with a line of ours
        end = time.monotonic() + 60
        while not caught and time.monotonic() < end:
            time.sleep(0.01)
    assert [warning.category for warning in caught] == [MonitorWarning]
