"""The file of a run: appended whole, survives a crash, continued, never mistaken."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from attncheck import HeadHistory, HeadMonitor, MonitorWarning
from attncheck.models import TinyTransformer
from tests.monitor.training import train


def run(path: Path, steps: int = 4, *, start: int | None = None) -> HeadMonitor:
    """Watch every second step."""
    model = TinyTransformer().train()
    with HeadMonitor(model, every=2, path=path, start=start, on_alert="ignore") as monitor:
        for _ in range(steps):
            model(torch.arange(12)[None])
    return monitor


def test_what_is_written_is_what_was_seen(tmp_path: Path) -> None:
    def blow_up(model: TinyTransformer, step: int) -> None:
        if step == 15:
            model.attention[1].get_parameter("query_key_value.weight").data.mul_(60)

    path = tmp_path / "runs" / "heads.jsonl"
    _, monitor, _ = train(
        steps=31,
        fault=blow_up,
        watch=lambda model: HeadMonitor(model, every=10, path=path, on_alert="ignore"),
    )
    loaded = HeadHistory.load(path)
    assert monitor is not None
    assert loaded.steps == monitor.history.steps == [0, 10, 20, 30]
    assert loaded.heads == ("L0H0", "L0H1", "L1H0", "L1H1")
    assert [str(a) for a in loaded.alerts] == [str(a) for a in monitor.alerts] != []
    for measure in monitor.history.measures:
        np.testing.assert_allclose(loaded[measure], monitor.history[measure], rtol=1e-4, atol=1e-9)
    assert loaded.labels() == monitor.history.labels()
    assert loaded.about["model"] == "TinyTransformer"
    assert loaded.about["thresholds"]["max_logit"] == 100
    assert loaded["max_logit"].shape == (4, 4)
    with pytest.raises(KeyError, match="no measure 'speed'"):
        loaded["speed"]


def test_a_second_run_continues_the_file(tmp_path: Path) -> None:
    path = tmp_path / "heads.jsonl"
    run(path)
    first = path.read_bytes()
    again = run(path, steps=6)
    assert again.history.steps == [0, 2, 4, 6, 8]
    assert path.read_bytes().startswith(first)
    assert HeadHistory.load(path).steps == again.history.steps


def test_a_run_resumed_from_an_earlier_step_supersedes_what_came_after(tmp_path: Path) -> None:
    path = tmp_path / "heads.jsonl"
    run(path, steps=8)
    again = run(path, steps=3, start=4)
    assert again.history.steps == HeadHistory.load(path).steps == [0, 2, 4, 6]


def test_a_line_cut_short_is_skipped_and_closed_off(tmp_path: Path) -> None:
    path = tmp_path / "heads.jsonl"
    run(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    torn = HeadHistory.load(path)
    assert (torn.steps, torn.skipped) == ([0], 1)
    again = run(path, start=2)
    assert again.history.steps == [0, 2, 4]
    loaded = HeadHistory.load(path)
    assert (loaded.steps, loaded.skipped) == ([0, 2, 4], 1)


@pytest.mark.parametrize(
    "content", [b"step,loss\n0,1\n", b"{}\n", b'{"schema": "attncheck.history.9"}\n', b"\xff\xfe\n"]
)
def test_another_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "heads.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"path: .*heads\.jsonl"):
        HeadMonitor(TinyTransformer(), path=path)
    with pytest.raises(ValueError, match=r"path: .*heads\.jsonl"):
        HeadHistory.load(path)
    assert path.read_bytes() == content


def test_damaged_samples_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "heads.jsonl"
    run(path)
    lines = path.read_text().splitlines()
    broken = json.loads(lines[1])
    broken["labels"] = broken["labels"][:1]
    broken["step"] = 99
    path.write_text("\n".join([*lines, json.dumps(broken), "[]", '{"step": 1}', ""]))
    loaded = HeadHistory.load(path)
    assert (loaded.steps, loaded.skipped) == ([0, 2], 3)


def test_numbers_that_are_none_stay_valid_json(tmp_path: Path) -> None:
    path = tmp_path / "heads.jsonl"
    model = TinyTransformer().train()
    with HeadMonitor(model, path=path, on_alert="ignore"):
        model.embed.weight.data.fill_(float("nan"))
        model(torch.arange(12)[None])
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))
    loaded = HeadHistory.load(path)
    assert {alert.kind for alert in loaded.alerts} == {"not_finite"}
    assert loaded["bad_rows"].tolist() == [[1.0] * 4]


def test_a_disk_that_fails_costs_no_training(tmp_path: Path) -> None:
    path = tmp_path / "heads.jsonl"
    model = TinyTransformer().train()
    with HeadMonitor(model, every=1, path=path) as monitor:
        path.unlink()
        path.mkdir()
        with pytest.warns(MonitorWarning, match=r"cannot write .*heads\.jsonl"):
            model(torch.arange(12)[None])
        model(torch.arange(12)[None])
    assert monitor.history.steps == [0, 1]


def test_a_killed_run_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "heads.jsonl"
    code = (
        "import torch; from attncheck import HeadMonitor\n"
        "from attncheck.models import TinyTransformer\n"
        "model = TinyTransformer().train()\n"
        f"with HeadMonitor(model, every=1, path={str(path)!r}):\n"
        "    while True: model(torch.arange(12)[None])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ))
    end = time.monotonic() + 60
    while time.monotonic() < end and (not path.exists() or path.stat().st_size < 20_000):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    loaded = HeadHistory.load(path)
    assert len(loaded) > 5
    assert loaded.steps == list(range(len(loaded)))
    assert loaded.skipped <= 1
