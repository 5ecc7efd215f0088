"""`profile_dataset`: the profile of all batches, kept whatever stops the loop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attncheck import HeadProfile, profile_dataset, profile_model
from tests.distributed.models import Decoder, batches

ROOT = Path(__file__).parents[2]


def require_same(found: HeadProfile, want: HeadProfile) -> None:
    for one, other in zip(found.layers, want.layers, strict=True):
        for metric, counts in other.counts.items():
            assert np.array_equal(one.counts[metric], counts)
    for measure in want.measures:
        np.testing.assert_allclose(found[measure], want[measure], atol=1e-9, err_msg=measure)


def merged(some: list[dict[str, Tensor]]) -> HeadProfile:
    return HeadProfile.merged(profile_model(Decoder(), **batch) for batch in some)


def test_mappings_tuples_and_tensors_add_up() -> None:
    model, held = Decoder(), batches()
    require_same(profile_dataset(model, held), merged(held))
    as_tuples = [(batch["input_ids"], batch["attention_mask"]) for batch in held]
    require_same(profile_dataset(model, as_tuples), merged(held))
    alone = [{"input_ids": batch["input_ids"]} for batch in held]
    require_same(profile_dataset(model, [batch["input_ids"] for batch in held]), merged(alone))
    labelled = [(batch, "label") for batch in held]
    found = profile_dataset(model, labelled, inputs=lambda batch: batch[0], limit=3)
    require_same(found, merged(held[:3]))


def test_padding_is_left_out() -> None:
    padded = batches()[3]
    n = int(padded["attention_mask"][0].sum())
    one = {name: held[:1] for name, held in padded.items()}
    short = {"input_ids": one["input_ids"][:, :n]}
    found, want = profile_dataset(Decoder(), [one]), profile_dataset(Decoder(), [short])
    assert found.layers[0].causal is want.layers[0].causal is True
    assert found.layers[0].counts["entropy"].tolist() == want.layers[0].counts["entropy"].tolist()
    np.testing.assert_allclose(found["entropy"], want["entropy"], atol=1e-5)


class Stopping(nn.Module):
    """Raises at its third call."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.inner, self.error, self.calls = Decoder(), error, 0

    def forward(self, **batch: Any) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            raise self.error
        return self.inner(**batch)  # type: ignore[no-any-return]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("full")])
def test_whatever_stops_it_leaves_what_was_done(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "heads.json"
    with pytest.raises(type(error)) as raised:
        profile_dataset(Stopping(error), batches(), save=path)
    kept: Any = raised.value
    assert kept.batches == 2
    for profile in (kept.profile, HeadProfile.load(path)):
        require_same(profile, merged(batches()[:2]))
    assert "stopped after 2 whole batches" in " ".join(kept.__notes__)


@pytest.mark.slow
def test_a_real_interrupt_keeps_whole_batches(tmp_path: Path) -> None:
    script, path = Path(__file__).with_name("interrupted.py"), tmp_path / "heads.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for _ in range(4):  # the fourth batch is asked for: three are done
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        done = int(process.stdout.read().split()[-1])
        assert process.wait(60) == 130
    assert done >= 3
    held = batches()
    require_same(HeadProfile.load(path), merged([held[i % len(held)] for i in range(done)]))


def test_errors_name_the_batch() -> None:
    held: list[Any] = [batches()[0], {"input_ids": torch.ones(1, 9)}]
    with pytest.raises(RuntimeError) as raised:
        profile_dataset(Decoder(), held)
    assert "in batch 1, counted from 0: dict with input_ids (1, 9)" in raised.value.__notes__
    with pytest.raises(TypeError, match=r"a batch is str; expected a mapping, .*Pass inputs="):
        profile_dataset(Decoder(), ["text"])
    with pytest.raises(TypeError, match="loader: is int; expected batches"):
        profile_dataset(Decoder(), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="loader: gave no batch; is it used up"):
        profile_dataset(Decoder(), [])
    with pytest.raises(ValueError, match="limit: 0; expected at least 1"):
        profile_dataset(Decoder(), batches(), limit=0)
    with pytest.raises(TypeError, match="limit: '3' is str; expected a number of batches"):
        profile_dataset(Decoder(), batches(), limit="3")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="limit: True is bool; expected a number of batches"):
        profile_dataset(Decoder(), batches(), limit=True)
    one = profile_dataset(Decoder(), batches(), limit=np.int64(1), progress=False)
    same = profile_dataset(Decoder(), batches(), limit=1, progress=False)
    assert one.layers[0].n_rows == same.layers[0].n_rows
    with pytest.raises(TypeError, match=r"loader: is NoneType; expected batches .*a DataLoader or"):
        profile_dataset(Decoder(), None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model: is NoneType; expected a torch\.nn\.Module"):
        profile_dataset(None, batches())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="progress: got str; expected True or False"):
        profile_dataset(Decoder(), batches(), progress="no")  # type: ignore[arg-type]


def test_progress_is_shown_or_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("attncheck.progress.PATIENCE", -1.0)
    profile_dataset(Decoder(), batches(), limit=2)
    shown = capsys.readouterr().err
    assert "batch 1 of 2 [##########..........]" in shown
    assert "batch 2 of 2" in shown

    def endless() -> Iterator[Any]:
        yield from batches()

    profile_dataset(Decoder(), endless())
    assert "batch 7, " in capsys.readouterr().err
    profile_dataset(Decoder(), batches(), progress=False)
    assert capsys.readouterr().err == ""


def test_tokens_come_from_the_batch() -> None:
    held = [{"hidden": batch["input_ids"]} for batch in batches()[:2]]

    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Decoder()

        def forward(self, hidden: Tensor) -> Tensor:
            return self.inner.layers[0](self.inner.embedding(hidden), None)  # type: ignore[no-any-return]

    assert "induction" not in profile_dataset(Renamed(), held).measures
    found = profile_dataset(Renamed(), held, tokens=lambda batch: batch["hidden"])
    assert "induction" in found.measures


def test_saved_files_of_workers_merge(tmp_path: Path) -> None:
    for worker in range(3):
        profile_dataset(Decoder(), batches()[worker::3], save=tmp_path / f"gw{worker}.json")
    whole = HeadProfile.merged(map(HeadProfile.load, sorted(tmp_path.glob("*.json"))))
    require_same(whole, merged(batches()))
    with pytest.raises(ValueError, match="profiles: empty"):
        HeadProfile.merged([])
