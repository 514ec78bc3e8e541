"""Chunks: bounded by number and size, made in order here or in several processes, and not where they are known."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import MachineError
from finetune.process_ends import how_ended, own_end
from finetune.workers import _without_interrupts, bounded_chunks, map_chunks


@given(st.lists(st.integers(0, 9)), st.integers(1, 5), st.integers(1, 20))
def test_chunks_are_bounded_and_lose_nothing(items: list[int], most: int, most_size: int) -> None:
    chunks = list(bounded_chunks(items, most, lambda item: item, most_size))
    assert [item for chunk in chunks for item in chunk] == items
    for chunk in chunks:
        assert 1 <= len(chunk) <= most
        assert sum(chunk[:-1]) < most_size, "only the last item may go beyond"
    for chunk in chunks[:-1]:
        assert len(chunk) == most or sum(chunk) >= most_size, "a chunk ends when it is full"


def doubled(number: int) -> int:
    time.sleep(0.05 * (number % 3 == 0))
    return 2 * number


def process_of(number: int) -> int:
    return os.getpid()


def end_process(number: int) -> int:
    os._exit(3)


def kill_process(number: int) -> int:
    time.sleep(0.2 * number)
    os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_what_is_known_is_not_worked_on(workers: int) -> None:
    assert list(map_chunks(doubled, range(9), workers, {1: -1, 2: False}.get)) == [0, -1, False, 6, 8, 10, 12, 14, 16]


def test_no_process_starts_where_all_is_known() -> None:
    def fails(number: int) -> int:  # a function that no other process could be sent
        raise AssertionError

    assert list(map_chunks(fails, range(20), 2, lambda number: number)) == list(range(20))


@pytest.mark.slow
def test_several_processes_work_and_read_only_a_little_ahead() -> None:
    asked: list[int] = []

    def numbers() -> object:
        for number in range(40):
            asked.append(number)
            yield number

    stream = map_chunks(process_of, numbers(), 2)  # type: ignore[arg-type]
    first = next(stream)
    assert first != os.getpid()
    assert len(asked) <= 6
    stream.close()  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "how"), [(end_process, "ended with status 3"), (kill_process, r"was killed \(SIGKILL\)")]
)
def test_a_process_that_dies_is_told(work: Callable[[int], int], how: str) -> None:
    with pytest.raises(MachineError, match=f"a process that prepares rows died: it {how}"):
        list(map_chunks(work, range(3), 2))


def test_an_end_is_told_in_words() -> None:
    assert how_ended(-signal.SIGKILL) == "was killed (SIGKILL)"
    assert how_ended(3) == "ended with status 3"
    assert how_ended(0) == "ended with status 0"
    assert own_end([-signal.SIGTERM, None, -signal.SIGKILL, 0]) == -signal.SIGKILL
    assert own_end([0, -signal.SIGTERM]) == -signal.SIGTERM
    assert own_end([0, None]) is None


def test_ctrl_c_waits_while_a_process_starts() -> None:
    """Also where another thread takes the signal, which the mask of this one does not keep from it."""
    stop = threading.Event()
    done: list[str] = []

    def interrupted() -> None:
        with _without_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            done.append("whole")

    other = threading.Thread(target=stop.wait)
    other.start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert done == ["whole"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
        stop.set()
        other.join()
