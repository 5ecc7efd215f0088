"""`head_regression`: the heads of a model against what was recorded beside the test."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from attncheck.errors import CheckFailure
from attncheck.pytest_plugin.options import device_word
from attncheck.pytest_plugin.update import Ledger, ledger_of, max_weights_bytes, wants_weights

if TYPE_CHECKING:
    import torch

    from attncheck.attention import AttentionMaps
    from attncheck.regression import Capture, Choice, Judgement, Place, Staged
    from attncheck.regression.tolerance import Atol

__all__ = ["HeadRegression", "head_regression"]


@pytest.fixture(scope="session")
def head_regression(pytestconfig: pytest.Config) -> HeadRegression:
    """Compare heads with the baseline beside the test: ``head_regression.check(maps)``."""
    return HeadRegression(pytestconfig)


class HeadRegression:
    """What the fixture `head_regression` gives; one for all tests, so that it meets ``@given``."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def check(
        self,
        attention: Any = None,
        name: str | None = None,
        *,
        runs: Sequence[Any] | None = None,
        atol: Atol = None,
        tokens: Any = None,
        mask: Any = None,
        causal: bool | None = None,
        weights: bool | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Fail if a head behaves differently from what was recorded.

        Without a baseline the test fails and nothing is written. ``--attncheck-update`` writes, for
        tests that pass otherwise. A second check of one name in one test is a repetition, which
        must agree with the first.

        Args:
            attention: Attention weights in any form that `as_attention` takes, or a `HeadProfile`.
            name: Of the check, where a test makes several: letters, digits, ``_`` and ``-``.
            runs: More captures of the same heads, on other seeds or prompts, at least three in
                all: their mean is kept and their spread decides what is allowed.
            atol: What a measure may move before its head has changed: one number, or some by name;
                of keys and tokens, in proportion beyond 1. Default: what was measured to tell
                rounding from changes, see `attncheck.regression.tolerance`.
            tokens: Strings or ids, one per key. Default: what maps carry.
            mask: Which keys are visible, see `as_visible`. Default: what maps carry.
            causal: Whether queries see no later key. Default: as `as_attention` finds it.
            weights: Keep the weights themselves too, to compare distributions and to draw both.
                Default: the ini setting ``attncheck_baseline_weights``.
            device: What the model ran on. Default: what a capture says, else where the weights
                are; of profiles and bare weights on the CPU, the device of ``--attncheck-device``.

        Raises:
            CheckFailure: A head changed, or there is no baseline.
            BaselineError: The baseline cannot be read.
            ValueError: ``attention`` is not attention, or an argument makes no sense.
        """
        __tracebackhide__ = True
        from attncheck.regression import open_capture
        from attncheck.regression.tolerance import require_atol

        require_atol(atol)  # also where nothing is compared, only recorded
        ledger = ledger_of(self._config)
        item = ledger.current()
        capture = open_capture(
            attention,
            runs=runs,
            tokens=tokens,
            mask=mask,
            causal=causal,
            device=device,
            fallback=self._device(),
        )
        # A traceback must not keep somebody's GPU memory: from here on only the capture knows.
        attention = runs = tokens = mask = None
        keep = wants_weights(self._config) if weights is None else weights
        try:
            failure = _Check(self._config, ledger, item, name, keep).judge(capture, atol)
        finally:
            del capture
        if failure is not None:
            raise failure

    def _device(self) -> torch.device:
        from attncheck.pytest_plugin.device import resolve_device

        return resolve_device(device_word(self._config))


class _Check:
    """One call of `HeadRegression.check`."""

    def __init__(
        self,
        config: pytest.Config,
        ledger: Ledger,
        item: pytest.Item,
        name: str | None,
        weights: bool,
    ) -> None:
        from attncheck.regression import baseline_path

        self.config, self.ledger, self.item = config, ledger, item
        self.test = item.nodeid.partition("::")[2]
        self.plain = baseline_path(item.path, self.test, name)
        self.weights = weights

    def judge(self, capture: Capture, atol: Atol) -> CheckFailure | None:
        """Compare, stage what an update is to write, return what is to be raised."""
        from attncheck.regression import (
            change_message,
            choose,
            judge_capture,
            load_weights,
            missing_message,
        )

        choice = choose(self.plain, capture.environment)
        self.ledger.use(self.item, self.plain)
        staged = self._passed.get(self.plain)
        repeats = self.plain in self._passed
        baseline = choice.baseline if staged is None else staged.baseline
        place = self._place(choice)
        if baseline is None:
            if "new" in self.ledger.update:
                self._stage(choice, capture, "new")
                return None
            heads = capture.records
            return CheckFailure(missing_message(heads, place, capture.environment))
        held: AttentionMaps | None = None if staged is None else staged.maps
        if staged is None and baseline.weights is not None and capture.maps is not None:
            held = load_weights(choice.path, baseline.weights)
        found = judge_capture(capture, baseline, held, atol=atol)
        if found.judgement.verdict == "changed":
            if "changed" in self.ledger.update and not repeats:
                self._stage(choice, capture, "changed")
                return None
            message = change_message(
                found.judgement,
                place,
                baseline.environment,
                capture.environment,
                other_input=None not in (baseline.input, capture.input)
                and baseline.input != capture.input,
                repeats="recorded" if staged else "passed" if repeats else None,
            )
            return CheckFailure(message, found.finding)
        self._pass(choice, capture, found.judgement, stored=baseline.weights is not None)
        return None

    def _pass(self, choice: Choice, capture: Capture, found: Judgement, *, stored: bool) -> None:
        drifted = found.verdict == "drifted"
        if drifted:
            self.ledger.drift(self.item, str(found.drift))
        if self.plain in self._passed:
            return
        self._passed[self.plain] = None
        if "all" in self.ledger.update and (drifted or (self.weights and not stored)):
            self._stage(choice, capture, "refreshed")

    def _stage(self, choice: Choice, capture: Capture, why: Any) -> None:
        from attncheck.regression import Baseline, Staged, target_of

        baseline = Baseline(
            test=f"{self.item.path.name}::{self.test}",
            environment=capture.environment,
            heads=capture.records,
            runs=capture.runs,
            input=capture.input,
        )
        maps = self._kept(capture) if self.weights else None
        staged = Staged(target_of(choice, capture.environment), baseline, why, maps)
        self._passed[self.plain] = staged

    @property
    def _passed(self) -> dict[Path, Staged | None]:
        """Checks that this test has passed."""
        return self.ledger.checked(self.item)

    def _kept(self, capture: Capture) -> AttentionMaps:
        """Copy the weights to the CPU, if they are not too many."""
        from attncheck.regression.storage import weights_size

        if capture.maps is None:
            raise ValueError("weights: a profile holds none; hand over the maps themselves")
        size, most = weights_size(capture.maps), max_weights_bytes(self.config)
        if size > most:
            raise ValueError(
                f"weights: {size / 1e6:.1f} MB, more than attncheck_max_weights_mb = "
                f"{most / 1e6:g}; use shorter inputs, raise it, or pass weights=False"
            )
        return capture.maps.to("cpu")

    def _place(self, choice: Choice) -> Place:
        from attncheck.regression import Place
        from attncheck.regression.message import accept_command

        start = self.config.invocation_params.dir
        node = f"{_relative(self.item.path, start)}::{self.test}"
        variant = ""
        if choice.among > 1:
            which = f"variant {choice.variant}" if choice.variant else "no variant"
            variant = f"{which} of {choice.among} files"
        return Place(_relative(choice.path, start), accept_command(node), variant)


def _relative(path: Path, start: Path) -> str:
    try:
        return Path(os.path.relpath(path, start)).as_posix()
    except ValueError:  # another drive
        return path.as_posix()
