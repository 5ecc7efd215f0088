"""`Team`: torch's own threads, and when there are none to lend."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from attncheck.compiled import openmp
from attncheck.compiled.openmp import Team, torchs_team
from attncheck.compiled.threads import side_by_side


@pytest.fixture
def team() -> Iterator[Team]:
    """Torch's threads, where torch uses more than one."""
    found, before = torchs_team(), torch.get_num_threads()
    if found is None:
        pytest.skip("torch's OpenMP lends no threads here")
    torch.set_num_threads(2)
    yield found
    torch.set_num_threads(before)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU's OpenMP is Linux's")
def test_wheels_of_linux_lend_their_threads() -> None:
    if "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("torch was built without OpenMP")
    assert torchs_team() is not None


def test_so_many_threads_come_each_with_one_for_torch(team: Team) -> None:
    both, came = threading.Barrier(2), []

    def work() -> None:
        both.wait(10)
        came.append((threading.get_ident(), torch.get_num_threads()))

    before = torch.get_num_threads()
    team.run(work, 2)
    assert len({thread for thread, _ in came}) == 2
    assert [number for _, number in came] == [1, 1]
    assert torch.get_num_threads() == before


def test_a_number_is_of_one_thread(team: Team) -> None:
    before, found = torch.get_num_threads(), []
    team.number(before + 3)
    try:
        other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert torch.get_num_threads() == before + 3
        assert found == [before]
    finally:
        team.number(before)


def test_an_interrupt_before_the_first_line_is_not_lost(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is raised before a function that C calls can catch it is printed and forgotten."""
    monkeypatch.setattr(team, "_begin", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        team.run(lambda: None, 2)


def test_another_openmp_than_torch_s_is_told(monkeypatch: pytest.MonkeyPatch, team: Team) -> None:
    monkeypatch.setattr(team, "_set_number", lambda _: None)
    assert not team.is_torchs()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_has_other_threads() -> None:
    """Torch's threads are gone there, and OpenMP would wait for them for ever."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert side_by_side(abs, [-1, -2]) == [1, 2]
        child = os.fork()
        if child == 0:
            done = side_by_side(abs, [-1, -2]) == [1, 2] and torchs_team() is None
            os._exit(0 if done else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not openmp._forked
    finally:
        torch.set_num_threads(before)
