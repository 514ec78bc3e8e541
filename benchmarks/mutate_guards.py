"""Breaks the guards one place at a time, and says which breaks no test notices.

    python -m benchmarks.mutate_guards [MODULE …] [--workers 2] [--sample N] [--write]

Each mutant (benchmarks/mutants.py) is written into a copy of the tree, and the module's tests are run on it until one
fails: first those that reach its line, the quickest first, as they were seen to when nothing was broken. What is ended
because it takes too long is counted apart, since a machine that stands still looks the same.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import coverage
import pytest

from benchmarks.mutants import ROOT, Mutant, mutants_of
from benchmarks.mutation_table import Score, summed, write_scores

GUARDS: dict[str, tuple[str, ...]] = {
    "evaluation/adapter_files.py": ("tests/hostile/test_adapter_guards.py",),
    "evaluation/files.py": ("tests/unit/evaluation/test_eval_files.py",),
    "evaluation/model_files.py": ("tests/hostile/test_model_guards.py",),
    "evaluation/offline.py": ("tests/hostile/test_offline.py",),
    "evaluation/screen.py": ("tests/hostile/test_screen.py",),
    "finetune/base_hashes.py": ("tests/unit/test_base_hashes.py",),
    "finetune/batch_cutting.py": ("tests/unit/test_memory_fit.py",),
    "finetune/checkpoint_state.py": ("tests/unit/test_checkpoint_state.py",),
    "finetune/checkpoints.py": ("tests/unit/test_checkpoints.py",),
    "finetune/disk_faults.py": ("tests/unit/test_disk_space.py",),
    "finetune/disk_space.py": ("tests/unit/test_disk_space.py",),
    "finetune/gguf_header.py": ("tests/hostile/test_model_guards.py",),
    "finetune/hub_cache.py": ("tests/unit/test_hub_cache.py",),
    "finetune/loss_watch.py": ("tests/unit/test_loss_watch.py",),
    "finetune/memory_fit.py": ("tests/unit/test_memory_fit.py",),
    "finetune/merged_files.py": ("tests/unit/test_merged_files.py",),
    "finetune/peft_config.py": ("tests/unit/test_peft_config.py",),
    "finetune/process_ends.py": ("tests/unit/test_workers.py",),
    "finetune/publish_claims.py": ("tests/unit/test_publish_claims.py",),
    "finetune/recipe_yaml.py": ("tests/unit/test_recipe_yaml.py", "tests/hostile/test_bad_recipes.py"),
    "finetune/run_directory.py": ("tests/unit/test_run_directory.py",),
    "finetune/run_lock.py": ("tests/unit/test_run_lock.py",),
    "finetune/run_locking.py": ("tests/unit/test_run_locking.py",),
    "finetune/sandbox.py": ("tests/unit/test_sandbox.py",),
    "finetune/secret_rules.py": ("tests/unit/test_secret_rules.py",),
    "finetune/signals.py": ("tests/unit/test_signals.py",),
    "finetune/training_guards.py": ("tests/unit/test_training_guards.py",),
    "finetune/upstream_contracts.py": ("tests/unit/test_upstream_contracts.py",),
    "finetune/weight_files.py": ("tests/hostile/test_model_guards.py", "tests/unit/test_bases.py"),
}
"""A guard → the tests that have to notice when it is broken, the quickest first."""
LIBRARIES = (
    *("transformers", "peft", "trl.trainer.sft_trainer", "bitsandbytes", "accelerate", "gguf", "pyarrow.parquet"),
    *("pydantic.main", "typer.testing", "rich.progress", "hypothesis", "anyio.pytest_plugin", "xdist.plugin"),
)
"""Imported once: every mutant is tried in a fork of this process, which has nothing of ours."""
IGNORED = (".git", ".mypy_cache", ".ruff_cache", "__pycache__", ".hypothesis", "*.egg-info", "runs")
PATIENCE = 40.0
"""Least seconds for the tests of one mutant."""
SLOWER = 6
"""Times what they take without a break, for a busy machine."""
PAUSE = 2.0
"""Seconds between two looks at a process after which the machine, or this process, stood still."""

Verdict = Literal["noticed", "survived", "ran out of time"]


@dataclass(frozen=True)
class Reached:
    """What the tests of a module do where nothing is broken."""

    seconds: dict[str, float]
    """Test → what it takes."""
    lines: dict[int, list[str]]
    """Line of the module → tests that run it."""

    def order(self, mutant: Mutant) -> dict[str, int]:
        """Give every test its place: those that reach the mutant come first, file by file, the quickest first."""
        reach = {test for line in mutant.lines for test in self.lines.get(line, ())}
        files = list(dict.fromkeys(test.partition("::")[0] for test in self.seconds))

        def place(test: str) -> tuple[bool, int, float]:
            return test not in reach, files.index(test.partition("::")[0]), self.seconds[test]

        return {test: number for number, test in enumerate(sorted(self.seconds, key=place))}

    @property
    def patience(self) -> float:
        """Return how many seconds a mutant is given."""
        return max(PATIENCE, SLOWER * sum(self.seconds.values()))


@dataclass(frozen=True)
class Watched:
    """Writes down how long each test takes and, through coverage, what it runs."""

    coverage: coverage.Coverage
    seconds: dict[str, float]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Run one test."""
        self.coverage.switch_context(item.nodeid)
        began = time.perf_counter()
        done = yield
        self.seconds[item.nodeid] = time.perf_counter() - began
        return done


@dataclass(frozen=True)
class Ordered:
    """Runs the tests in an order; what a mutant has made of them comes last."""

    place: dict[str, int]

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put the tests in order."""
        items.sort(key=lambda item: self.place.get(item.nodeid, len(self.place)))


def reached(module: str, place: Path) -> Reached:
    """Run the tests of a module without a break, and see what they reach.

    Raises:
        SystemExit: one fails, or takes no part.
    """
    copied, told = _own_tree(place), place / f"reached-{module.replace('/', '-')}.json"

    def record() -> int:
        sys.dont_write_bytecode = False  # what is compiled now is read by every mutant, whose own file is another
        measured = coverage.Coverage(data_file=None, config_file=False, include=[str(copied / module)])
        measured.start()
        watched = Watched(measured, {})
        status = _run_tests(module, copied, watched)
        measured.stop()
        lines = measured.get_data().contexts_by_lineno(str(copied / module))
        told.write_text(json.dumps([watched.seconds, [[line, [t for t in by if t]] for line, by in lines.items()]]))
        return status

    if _forked(record, float("inf")) != 0:
        raise SystemExit(f"the tests of {module} fail without a break")
    seconds, lines = json.loads(told.read_text())
    return Reached(seconds, dict(lines))


def verdict_on(mutant: Mutant, known: Reached, place: Path) -> Verdict:
    """Run the module's tests on a mutant until one fails."""
    copied = _own_tree(place)
    file = copied / mutant.module
    original = file.read_text(encoding="utf-8")
    file.write_text(mutant.text, encoding="utf-8")
    try:
        status = _forked(lambda: _run_tests(mutant.module, copied, Ordered(known.order(mutant))), known.patience)
    finally:
        file.write_text(original, encoding="utf-8")
    if status is None:
        return "ran out of time"
    return "survived" if status == 0 else "noticed"


def _own_tree(place: Path) -> Path:
    """Return this process's copy of the tree."""
    copied = place / f"tree-{os.getpid()}"
    if not copied.exists():
        shutil.copytree(ROOT, copied, ignore=shutil.ignore_patterns(*IGNORED))
    return copied


def _run_tests(module: str, copied: Path, plugin: object) -> int:
    os.chdir(copied)
    sys.path.insert(0, str(copied))
    os.environ["PYTHONPATH"] = str(copied)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    return int(pytest.main(["-n", "0", "-x", "-q", "-p", "no:cacheprovider", *GUARDS[module]], plugins=[plugin]))


def _forked(run: Callable[[], int], patience: float) -> int | None:
    """Run something in a fork, again where the machine stood still meanwhile; none where patience ran out."""
    while True:
        child = os.fork()
        if child == 0:
            os.setsid()
            os._exit(run())
        waited, stood_still, looked = 0.0, False, time.monotonic()
        while waited < patience:
            ended, status = os.waitpid(child, os.WNOHANG)
            passed, looked = time.monotonic() - looked, time.monotonic()
            stood_still = stood_still or passed > PAUSE
            waited += min(passed, PAUSE)
            if ended and stood_still:
                break
            if ended:
                return status
            time.sleep(0.02)
        else:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None


def score(module: str, sample: int | None, pool: Executor, place: Path) -> Score:
    """Try the mutants of a module, print those that were not noticed, and count."""
    mutants = list(mutants_of(module))
    tried = random.Random(0).sample(mutants, min(sample or len(mutants), len(mutants)))
    known = pool.submit(reached, module, place).result()
    counts: Counter[Verdict] = Counter()
    verdicts = pool.map(partial(verdict_on, known=known, place=place), tried)
    for mutant, verdict in zip(tried, verdicts, strict=True):
        counts[verdict] += 1
        if verdict != "noticed":
            print(f"{module}:{mutant.line}: {mutant.what}: {verdict}", flush=True)
    found = Score(module, len(mutants), counts["noticed"], counts["ran out of time"], counts["survived"])
    print(found.told(), flush=True)
    return found


def main() -> int:
    """Mutate the guards that are named, or all, and print the score of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=list(GUARDS))
    parser.add_argument("--workers", type=int, default=1, help="mutants that are tried at a time")
    parser.add_argument("--sample", type=int, help="try so many mutants of each module, drawn at random")
    parser.add_argument("--write", action="store_true", help="put the scores into docs/guarantees.md")
    wanted = parser.parse_args()
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    sys.dont_write_bytecode = True
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that no fork goes through the libraries again
    forks = ProcessPoolExecutor(wanted.workers, multiprocessing.get_context("fork"))
    with tempfile.TemporaryDirectory() as place, forks as pool:
        scores = []
        for module in wanted.modules:
            scores.append(score(module, wanted.sample, pool, Path(place)))
            if wanted.write:
                write_scores(scores[-1:])
    print(summed(scores).told())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
