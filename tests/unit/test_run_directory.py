from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation.files import STAGING_PREFIX
from finetune.errors import DataError, MachineError
from finetune.records import StageTime
from finetune.run_directory import OUTDATED_BY, OUTPUTS, STAGES, RunDirectory, Stage, hash_of

INPUTS = {"seed": "0", "training": "aaaa"}


def took(stage: Stage) -> StageTime:
    return StageTime(stage=stage, seconds=1.5, peak_memory_bytes=10)


def write_outputs(run: RunDirectory, stage: Stage) -> None:
    for name in OUTPUTS[stage]:
        path = run.folder / name
        if path.suffix:
            path.write_text(f"{stage} wrote {name}")
        else:
            (path / "deep").mkdir(parents=True)
            (path / "deep" / "file").write_text(f"{stage} wrote {name}")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run of which every stage is finished."""
    finished = RunDirectory(tmp_path / "run")
    for stage in STAGES:
        finished.folder.mkdir(exist_ok=True)
        write_outputs(finished, stage)
        finished.finish(stage, INPUTS, took(stage))
    return finished


def marker_file(run: RunDirectory, stage: Stage) -> Path:
    return run.folder / "stages" / f"{stage}.json"


def test_every_stage_has_outputs_of_its_own() -> None:
    assert list(OUTPUTS) == list(STAGES)
    names = [name for outputs in OUTPUTS.values() for name in outputs]
    assert len(names) == len(set(names))


def test_paths_are_below_the_folder(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    paths = (
        run.data,
        run.training,
        run.adapter,
        run.merged,
        run.evaluation,
        run.recipe,
        run.lock_file,
        run.environment,
    )
    assert {path.parent for path in paths} == {tmp_path}
    assert len(set(paths)) == 8


@pytest.mark.parametrize("stage", STAGES)
def test_finished_stage_is_not_stale(run: RunDirectory, stage: Stage) -> None:
    assert run.why_stale(stage, INPUTS) is None
    marker = run.marker(stage)
    assert marker is not None
    assert (marker.inputs, marker.time, set(marker.outputs)) == (INPUTS, took(stage), set(OUTPUTS[stage]))
    assert run.stage_times() == tuple(took(one) for one in STAGES)


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ({**INPUTS, "training": "bbbb"}, "training changed"),
        ({**INPUTS, "seed": "1", "training": "bbbb"}, "seed, training changed"),
        ({**INPUTS, "base": "new"}, "base changed"),
        ({"seed": "0"}, "training changed"),
    ],
)
def test_changed_section_is_named(run: RunDirectory, inputs: dict[str, str], why: str) -> None:
    assert run.why_stale("train", inputs) == why


DAMAGE: dict[str, Callable[[Path], object]] = {
    "file changed": lambda folder: (folder / "deep" / "file").write_text("other"),
    "file gone": lambda folder: (folder / "deep" / "file").unlink(),
    "file added": lambda folder: (folder / "new").write_text("x"),
    "file renamed": lambda folder: (folder / "deep" / "file").rename(folder / "deep" / "other"),
    "folder gone": lambda folder: folder.rename(folder.with_name("elsewhere")),
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("output", ["training", "adapter"])
def test_changed_output_is_named(run: RunDirectory, how: str, output: str) -> None:
    DAMAGE[how](run.folder / output)
    assert run.why_stale("train", INPUTS) == f"{output} is missing or was changed"
    assert run.why_stale("merge", INPUTS) is None


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"stage": "train"}', "null", "\x00"])
def test_damaged_marker_is_no_marker(run: RunDirectory, content: str | None) -> None:
    file = marker_file(run, "train")
    if content is None:
        whole = file.read_text()
        file.write_text(whole[: len(whole) // 2])
    else:
        file.write_text(content)
    assert run.marker("train") is None
    assert run.why_stale("train", INPUTS) == "not finished yet"


def test_outputs_without_a_marker_are_not_finished(run: RunDirectory) -> None:
    marker_file(run, "train").unlink()
    assert run.adapter.exists()
    assert run.why_stale("train", INPUTS) == "not finished yet"


@pytest.mark.parametrize("stage", STAGES)
def test_what_speaks_of_replaced_outputs_is_removed(run: RunDirectory, stage: Stage) -> None:
    run.remove_outdated(stage)
    for one in STAGES:
        outdated = one in OUTDATED_BY[stage]
        assert (run.marker(one) is None) == outdated
        assert all((run.folder / name).exists() != outdated for name in OUTPUTS[one])
    run.remove_outdated(stage)  # once more, with nothing there


def test_an_account_of_refused_rows_is_the_last_ones(run: RunDirectory) -> None:
    def account(folder: Path) -> None:
        folder.mkdir()
        (folder / "set_aside.jsonl").write_text("a row")

    for _ in range(2):  # the second takes the place of the first
        with pytest.raises(DataError, match="no rows"), run.refusing(account):
            raise DataError("no rows")
        assert (run.refused / "set_aside.jsonl").read_text() == "a row"
    with run.refusing(account):
        pass
    assert not run.refused.exists()


def test_a_stage_that_fails_has_lost_nothing(run: RunDirectory) -> None:
    for stage in STAGES:
        assert stage not in OUTDATED_BY[stage]
        assert stage == "report" or "report" in OUTDATED_BY[stage]  # a page must not outlive what it shows
    assert "train" not in OUTDATED_BY["prepare"]  # hours of training are not given up for a mistyped key


@pytest.mark.parametrize("stage", STAGES)
def test_forgetting_removes_the_marker_and_the_outputs(run: RunDirectory, stage: Stage) -> None:
    run.forget(stage)
    assert run.marker(stage) is None
    assert not any((run.folder / name).exists() for name in OUTPUTS[stage])
    run.forget(stage)  # once more, with nothing there


def test_finishing_without_an_output_is_not_possible(run: RunDirectory) -> None:
    run.forget("train")
    with pytest.raises(FileNotFoundError):
        run.finish("train", INPUTS, took("train"))
    assert run.marker("train") is None


def test_hash_of_the_outputs_changes_with_each_of_them(run: RunDirectory) -> None:
    before = run.output_hash("train")
    assert before == f"adapter:{hash_of(run.adapter)} training:{hash_of(run.training)}"
    (run.adapter / "deep" / "file").write_text("other")
    run.finish("train", INPUTS, took("train"))
    assert run.output_hash("train") != before
    run.forget("train")
    with pytest.raises(AssertionError, match="train is not finished"):
        run.output_hash("train")


# ------------------------------------------------------------------ one process at a time

HOLD = """
import sys
from pathlib import Path
from finetune.run_directory import RunDirectory
with RunDirectory(Path(sys.argv[1])).hold():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        staged = run.folder / f"{STAGING_PREFIX}in-work"
        staged.mkdir()
        with pytest.raises(MachineError, match=f"process {holder.pid} is working on this run") as refused, run.hold():
            pass
        assert refused.value.exit_code == 6
        assert staged.exists()  # what the first one is writing is not swept
    finally:
        holder.kill()
        holder.communicate()
    with run.hold():
        assert (run.folder / ".holder").read_text() == str(os.getpid())
        assert not staged.exists()


def test_holding_sweeps_what_an_interrupted_process_left(run: RunDirectory) -> None:
    left = [
        run.folder / f"{STAGING_PREFIX}1-adapter",
        run.folder / "stages" / f"{STAGING_PREFIX}2-train.json",
        run.folder / f"{STAGING_PREFIX}3-old-merged",
        run.checkpoints / f"{STAGING_PREFIX}4-step-00000002",
    ]
    left[3].mkdir(parents=True)
    left[0].mkdir()
    left[1].write_text("{")
    left[2].mkdir()
    with run.hold():
        assert not any(path.exists() for path in left)
        assert all(run.why_stale(stage, INPUTS) is None for stage in STAGES)
    with run.hold():
        pass  # given back


@pytest.mark.parametrize("name", ["recipe.yaml", "recipe.lock.json", "environment.json", "stages/train.json"])
@pytest.mark.parametrize("how", ["changed", "gone", "new"])
def test_a_record_that_was_changed_is_named_by_the_last_stage(run: RunDirectory, name: str, how: str) -> None:
    file = run.folder / name
    if how != "new":
        file.write_text("as it was")
        run.finish("report", INPUTS, took("report"))
        assert run.why_stale("report", INPUTS) is None
    if how == "gone":
        file.unlink()
    else:
        file.write_text("other")
    assert run.why_stale("report", INPUTS) == f"{name} is missing or was changed"
    assert run.why_stale("evaluate", INPUTS) is None
