"""One thread for every test and every process that a test starts: the tiny model's matrices are too small to share.

On two busy cores the threads waited for each other ten times as long as they worked.
"""

from __future__ import annotations

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import asdict

import pytest
from figures import BOARDS, Figure, Figures
from xdist.workermanage import WorkerController

FIGURES = pytest.StashKey[Figures]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the size of the laws on data."""
    parser.addoption(
        "--figures",
        action="store_true",
        help="run the laws on data and the faults in full size and write their figures to docs/guarantees.md",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Keep the figures of this session; measured in full, the slow ones are among them."""
    full = bool(config.getoption("--figures"))
    config.stash[FIGURES] = Figures(full=full)
    if full and config.option.markexpr == "not slow":
        config.option.markexpr = ""


def pytest_collection_finish() -> None:
    """Leave what was imported out of garbage collection.

    accelerate collects at the end of every training, and going through all of torch took as long as the training.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the figures of a worker process over to the process that prints them."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["figures"] = [asdict(line) for line in session.config.stash[FIGURES].lines]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: WorkerController) -> None:
    """Take the figures of a worker process."""
    lines = getattr(node, "workeroutput", {}).get("figures", [])  # a worker that crashed has none
    node.config.stash[FIGURES].lines += [Figure(**line) for line in lines]


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """Return the figures that a test reports; its folder says on which board they are."""
    found = request.config.stash[FIGURES]
    return Figures(found.full, found.lines, next(board for board in BOARDS if f"/{board}/" in str(request.path)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the figures, and write them down where they were measured in full."""
    found = config.stash[FIGURES]
    if not found.lines:
        return
    terminalreporter.section("figures" if found.full else "figures (small; --figures measures them in full)")
    for board in found.boards():
        for line in found.table(board):
            terminalreporter.line(line)
        if found.full:
            found.write(board)
