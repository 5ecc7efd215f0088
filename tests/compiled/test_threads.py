"""`side_by_side`: the caller's thread and its helpers, and what they leave behind."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from attncheck.compiled import threads
from attncheck.compiled.openmp import torchs_team
from attncheck.compiled.threads import on_one_thread, side_by_side


@pytest.fixture(params=["torch's threads", "our own"], autouse=True)
def whose(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here holds for both kinds of threads."""
    if request.param == "our own":
        monkeypatch.setattr(threads, "torchs_team", lambda: None)
    elif torchs_team() is None:
        pytest.skip("torch's OpenMP lends no threads here")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("number", [1, 2])
def test_threads_are_as_they_were(number: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(number)
        assert side_by_side(lambda _: torch.get_num_threads(), range(5)) == [1] * 5
        assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(before)


def test_threads_that_start_later_have_the_process_s_number(two_threads: None) -> None:
    found: list[int] = []
    threads._pool.cache_clear()
    side_by_side(abs, [1, 2])
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert found == [2]


def mkl_threads() -> int:
    """How many threads MKL would use here."""
    for path in (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"):
        library = ctypes.CDLL(str(path))
        if hasattr(library, "MKL_Get_Max_Threads"):
            return int(library.MKL_Get_Max_Threads())
    pytest.skip("torch was built without MKL")


def test_on_one_thread_a_product_of_matrices_uses_one_too(two_threads: None) -> None:
    assert mkl_threads() == 2
    for _ in range(2):
        with on_one_thread():
            assert mkl_threads() == 1
            with on_one_thread():
                assert mkl_threads() == 1
            assert mkl_threads() == 1
        assert mkl_threads() == 2
    with pytest.raises(KeyboardInterrupt), on_one_thread():
        raise KeyboardInterrupt
    assert mkl_threads() == 2
    torch.set_num_threads(3)
    assert mkl_threads() == 3, "the number of the process was forgotten"


def test_an_exception_comes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda x: 1 // x, [1, 0, 2])


def own(thread: threading.Thread) -> bool:
    return thread is threading.main_thread()


@pytest.mark.parametrize("in_caller", [False, True])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_in_either_thread_ends_the_waiting_items(
    two_threads: None, in_caller: bool, error: type[BaseException]
) -> None:
    both, begun, ended = threading.Barrier(2), [], []

    def work(number: int) -> None:
        begun.append(number)
        if number < 2:
            both.wait()
            if own(threading.current_thread()) == in_caller:
                raise error
            time.sleep(0.05)
        ended.append(number)

    with pytest.raises(error):
        side_by_side(work, range(50))
    assert len(begun) < 50
    assert len(ended) == len(begun) - 1, "a running item was left alone"
    assert torch.get_num_threads() == 2
    assert side_by_side(abs, [-1, -2, -3]) == [1, 2, 3]


def test_both_threads_work_and_results_are_in_order(two_threads: None) -> None:
    both = threading.Barrier(2)

    def work(number: int) -> tuple[int, bool]:
        if number < 2:
            both.wait(10)  # only if both are here
        return number, own(threading.current_thread())

    found = side_by_side(work, range(20))
    assert [number for number, _ in found] == list(range(20))
    assert {mine for _, mine in found} == {False, True}


def test_whoever_comes_while_the_helpers_are_busy_works_alone(two_threads: None) -> None:
    busy, free = threading.Event(), threading.Event()

    def hold(number: int) -> None:
        if not own(threading.current_thread()):
            busy.set()
            free.wait(10)

    def other() -> None:
        side_by_side(hold, range(8))

    outer = threading.Thread(target=other)
    outer.start()
    try:
        assert busy.wait(10)
        assert side_by_side(abs, [-1, -2]) == [1, 2]
    finally:
        free.set()
        outer.join()


def test_threads_that_start_meanwhile_have_the_process_s_number(two_threads: None) -> None:
    found: list[int] = []

    def other() -> None:
        time.sleep(0.05)
        found.append(torch.get_num_threads())

    def work(_: int) -> None:
        time.sleep(0.1)

    with on_one_thread():
        started = threading.Thread(target=other)
        started.start()
        started.join()
        assert torch.get_num_threads() == 1
    started = threading.Thread(target=other)
    started.start()
    side_by_side(work, range(4))
    started.join()
    assert found == [2, 2]


def test_one_thread_is_for_a_while(two_threads: None) -> None:
    with on_one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_nothing_to_do_is_done(two_threads: None) -> None:
    assert side_by_side(abs, []) == []


def test_work_within_work_is_done_by_one_thread(two_threads: None) -> None:
    assert side_by_side(lambda x: side_by_side(abs, [x, -x]), [1, 2]) == [[1, 1], [2, 2]]
