"""Rows whose preparation is killed again and again become, in the end, what they become undisturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from tiny_runs import WORDS, Workplace, finetune_process, hear_ctrl_c, left_over, process_command, write_instructions

from finetune.run_directory import RunDirectory

pytestmark = pytest.mark.slow

ROWS = 24_000
"""Enough for several processes, both for reading and for rendering."""
PADDING = 1300
"""Characters of a column that nobody reads: they make the file large enough for several processes."""
KILLS = 3
HUNG_SECONDS = 60
ENDED_SECONDS = 10
"""How long processes may take to notice that their parent is gone."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Many short rows, with some that repeat and some that cannot be used."""
    workplace = write_instructions(tmp_path_factory.mktemp("kills"))
    order = random.Random(0)
    with (workplace.folder / "rows.csv").open("w", encoding="utf-8") as file:
        file.write("instruction,input,output,unread\n")
        for i in range(ROWS):
            words = " ".join(order.choices(WORDS, k=12))
            answer = "" if i % 100 == 7 else f"It is {i % 7000}."
            file.write(f"Which word? {i % 23_500},{words},{answer},{'-' * PADDING}\n")
    recipe = yaml.safe_load(workplace.recipe.read_text(encoding="utf-8"))
    recipe["data"]["leakage"] = {"on_overlap": "set_aside"}
    recipe["data"] |= {"validation": {"fraction": 0.05}, "held_out": {"fraction": 0.05, "limit": 200}}
    recipe["data"]["audit"] = {"maximum_set_aside": 1.0, "maximum_duplicates": 1.0}
    workplace.recipe.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return workplace


def command(place: Workplace, folder: Path) -> list[str]:
    """Prepare into a run and with a cache of its own."""
    return ["prepare", str(place.recipe), "--out", str(folder / "run"), "--cache", str(folder / "cache")]


def result(folder: Path) -> dict[str, bytes]:
    """Return the bytes of everything that the stage wrote, without how long it took and what was found in the cache."""
    data = RunDirectory(folder / "run").data
    files = {path.name: path.read_bytes() for path in sorted(data.iterdir())}
    audit = json.loads(files.pop("audit.json"))
    for measured in ("rows_per_second", "chunks_from_cache"):
        audit.pop(measured)
    return files | {"audit.json": json.dumps(audit, sort_keys=True).encode()}


def chunks(folder: Path) -> list[Path]:
    """Name the chunks of examples that are in the cache."""
    return list((folder / "cache" / "examples").glob("??/*.sha256"))


def start(arguments: list[str], folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "stderr").open("wb") as stderr:
        return subprocess.Popen(
            process_command(*arguments), stderr=stderr, start_new_session=True, preexec_fn=hear_ctrl_c
        )


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def preparing(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the processes that prepare rows, also those that have only just begun."""
    found = []
    for one in descendants(process):
        with suppress(psutil.Error):  # it has just ended
            if "spawn_main" in " ".join(one.cmdline()):
                found.append(one)
    return found


def wait_for_chunks(process: subprocess.Popen[bytes], folder: Path, count: int) -> None:
    """Wait until the cache has so many chunks."""
    while len(chunks(folder)) < count:
        assert process.poll() is None, (folder / "stderr").read_text(encoding="utf-8")
        time.sleep(0.02)


def orphans(processes: list[psutil.Process]) -> list[str]:
    """Name the processes that are still there after a while."""
    _, alive = psutil.wait_procs(processes, timeout=ENDED_SECONDS)
    found = [" ".join(one.cmdline()) for one in alive if one.is_running()]
    for one in alive:
        one.kill()
    return found


@pytest.fixture(scope="module")
def undisturbed(place: Workplace) -> tuple[dict[str, bytes], float, int]:
    """Prepare once without a kill: what came out, the seconds, and the chunks."""
    folder = place.folder / "undisturbed"
    began = time.perf_counter()
    outcome = finetune_process(*command(place, folder))
    assert outcome.status == 0, outcome.stderr
    return result(folder), time.perf_counter() - began, len(chunks(folder))


def test_prepare_ends_the_same_after_any_kills(
    place: Workplace, undisturbed: tuple[dict[str, bytes], float, int], tmp_path: Path
) -> None:
    expected, seconds, _ = undisturbed
    order = random.Random(0)
    for _ in range(KILLS):
        process = start(command(place, tmp_path), tmp_path)
        time.sleep(order.uniform(0.1, 0.8) * seconds)
        workers = descendants(process) if process.poll() is None else []
        process.send_signal(signal.SIGKILL)  # the parent alone: its workers have to notice
        process.wait()
        assert orphans(workers) == []
    outcome = finetune_process(*command(place, tmp_path))
    assert outcome.status == 0, outcome.stderr
    assert result(tmp_path) == expected
    assert left_over(tmp_path) == []


def test_what_was_rendered_before_a_kill_is_not_rendered_again(
    place: Workplace, undisturbed: tuple[dict[str, bytes], float, int], tmp_path: Path
) -> None:
    expected, _, total = undisturbed
    process = start(command(place, tmp_path), tmp_path)
    wait_for_chunks(process, tmp_path, total // 2)
    workers = descendants(process)
    assert len(workers) >= min(2, len(os.sched_getaffinity(0))), "several processes render"
    process.kill()
    process.wait()
    assert orphans(workers) == []
    kept = len(chunks(tmp_path))
    outcome = finetune_process(*command(place, tmp_path))
    assert outcome.status == 0, outcome.stderr
    audit = json.loads((RunDirectory(tmp_path / "run").data / "audit.json").read_text(encoding="utf-8"))
    assert audit["chunks_from_cache"] >= kept >= total // 2
    assert result(tmp_path) == expected
    assert left_over(tmp_path) == []


def test_a_process_that_is_killed_ends_the_command_with_a_cause(
    place: Workplace, undisturbed: tuple[dict[str, bytes], float, int], tmp_path: Path
) -> None:
    process = start(command(place, tmp_path), tmp_path)
    wait_for_chunks(process, tmp_path, 2)
    workers = preparing(process)
    workers[-1].kill()
    assert process.wait(timeout=HUNG_SECONDS) == 6
    said = (tmp_path / "stderr").read_text(encoding="utf-8")
    assert "a process that prepares rows died: it was killed (SIGKILL)" in " ".join(said.split())
    assert "Traceback" not in said
    assert orphans(workers) == []
    outcome = finetune_process(*command(place, tmp_path))
    assert outcome.status == 0, outcome.stderr
    assert result(tmp_path) == undisturbed[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_process_and_no_traceback(number: int, place: Workplace, tmp_path: Path) -> None:
    process = start(command(place, tmp_path), tmp_path)
    wait_for_chunks(process, tmp_path, 2)
    workers = descendants(process)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # a terminal sends it to all of them
    else:
        process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number, (tmp_path / "stderr").read_text(encoding="utf-8")
    assert orphans(workers) == []
    said = (tmp_path / "stderr").read_text(encoding="utf-8")
    assert "Traceback" not in said
    assert said.count("interrupted") == 1


@pytest.mark.parametrize("moment", [0.0, 0.1, 0.3])
def test_ctrl_c_while_the_workers_start_shows_no_traceback(moment: float, place: Workplace, tmp_path: Path) -> None:
    process = start(command(place, tmp_path), tmp_path)
    while not (workers := preparing(process)):
        assert process.poll() is None, (tmp_path / "stderr").read_text(encoding="utf-8")
    time.sleep(moment)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130, (tmp_path / "stderr").read_text(encoding="utf-8")
    assert orphans(workers) == []
    assert "Traceback" not in (tmp_path / "stderr").read_text(encoding="utf-8")


def test_a_worker_that_dies_is_named(place: Workplace, tmp_path: Path) -> None:
    process = start(command(place, tmp_path), tmp_path)
    wait_for_chunks(process, tmp_path, 1)
    workers = preparing(process)
    workers[0].kill()
    assert process.wait(timeout=60) == 6
    assert "a process that prepares rows died" in (tmp_path / "stderr").read_text(encoding="utf-8")
    assert orphans(workers) == []
