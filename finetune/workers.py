"""The same work on many chunks, in this process or in several; results come in order, and few are held at a time."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from threading import current_thread, main_thread
from types import FrameType
from typing import TypeVar

from evaluation.offline import stay_offline
from finetune.errors import MachineError
from finetune.machine import end_with_parent
from finetune.process_ends import how_ended, own_end

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")

CHUNKS_A_WORKER = 2
"""Chunks under way for each process: one that it works on and one that waits for it."""

ENDED_SECONDS = 5
"""How long the processes of a pool may take to end once one of them has died."""


def count_workers(most: int = 8) -> int:
    """Count the processors that this process may use, at most `most`."""
    return min(most, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def chunked(items: Iterable[Chunk], size: int) -> Iterator[list[Chunk]]:
    """Cut a stream into lists of `size` items; the last may be shorter."""
    stream = iter(items)
    while chunk := list(islice(stream, size)):
        yield chunk


def bounded_chunks(
    items: Iterable[Chunk], most: int, size_of: Callable[[Chunk], int], most_size: int
) -> Iterator[list[Chunk]]:
    """Cut a stream into lists of at most `most` items that are full once their sizes add up to `most_size`."""
    chunk: list[Chunk] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += size_of(item)
        if len(chunk) >= most or size >= most_size:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def map_chunks(
    work: Callable[[Chunk], Result],
    chunks: Iterable[Chunk],
    workers: int,
    known: Callable[[Chunk], Result | None] | None = None,
) -> Iterator[Result]:
    """Yield what `work` makes of each chunk, in order; with several workers it must be picklable, and pure.

    What `known` has an answer to is not worked on. Processes start when there is work for them.

    Raises:
        MachineError: a worker process died.
    """
    answers = ((chunk, known(chunk) if known else None) for chunk in chunks)
    if workers <= 1:
        yield from (work(chunk) if answer is None else answer for chunk, answer in answers)
        return
    # `spawn`, since a fork of a process that has torch's threads can hang.
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_become_worker, initargs=(os.getpid(),)
    )
    with pool:
        under_way: deque[Future[Result]] = deque()
        processes: set[BaseProcess] = set()
        try:
            for chunk, answer in answers:
                with _without_interrupts():  # a process may start here
                    under_way.append(pool.submit(work, chunk) if answer is None else _done(answer))
                processes |= set(active_children())  # an executor does not say how its processes ended
                if len(under_way) >= CHUNKS_A_WORKER * workers:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        except BrokenProcessPool as error:
            raise MachineError(
                f"a process that prepares rows died: it {_end_of(processes)}",
                hint="most often memory ran out; use a machine with more, and the same command goes on from there",
            ) from error
        finally:
            for future in under_way:
                future.cancel()


def _end_of(processes: Collection[BaseProcess]) -> str:
    # The pool waits for them in another thread; until that one has noted an end, this one is told of none.
    latest = time.monotonic() + ENDED_SECONDS
    while any(process.exitcode is None for process in processes) and time.monotonic() < latest:
        time.sleep(0.01)
    status = own_end(process.exitcode for process in processes)
    return "ended" if status is None else how_ended(status)


def _done(answer: Result) -> Future[Result]:
    future: Future[Result] = Future()
    future.set_result(answer)
    return future


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Have Ctrl-C wait; a process that starts meanwhile never hears of it, not even while it imports.

    The mask is what the process inherits. It does not keep other threads of this one from taking the signal, and what
    one of them takes is answered in the main thread, hence the handler.
    """
    if current_thread() is not main_thread():
        yield
        return
    heard: list[tuple[int, FrameType | None]] = []
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    handler = signal.signal(signal.SIGINT, lambda number, frame: heard.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if heard and callable(handler):
            handler(*heard[0])


def _become_worker(parent: int) -> None:
    """End with the parent, ask nobody that it may not ask, and leave its tokenizer one thread."""
    stay_offline()
    end_with_parent()
    if os.getppid() != parent:
        os._exit(1)  # it ended before this process could ask to end with it
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
