"""A checkpoint is whole or it is not taken; no training needed, files of a few bytes will do."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from finetune.checkpoints import (
    MANIFEST,
    PROGRESS,
    MadeFrom,
    Progress,
    checkpoint_to_go_on_from,
    checkpoints,
    discard_checkpoints,
    discard_finished,
    new_checkpoint,
    newest_checkpoint,
    read_progress,
    require_same,
    verify_checkpoint,
)
from finetune.errors import DataError
from finetune.run_directory import RunDirectory
from finetune.training_records import MemorySetting

INPUTS = MadeFrom(decisive={"base": "b", "training": "t"}, origins={"rows.csv": "r", "base": "o", "torch": "2"})


def progress(step: int) -> Progress:
    return Progress(
        step=step,
        made_from=INPUTS,
        devices=2,
        seconds=1.0,
        peak_memory_bytes=1,
        memory=MemorySetting(),
        validation_losses={},
        resumed_after=(),
    )


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run with the checkpoints of steps 3 and 20; there was one of step 1."""
    made = RunDirectory(tmp_path / "run")
    for step in (1, 3, 20):
        with new_checkpoint(made.checkpoints, step) as folder:
            (folder / PROGRESS).write_text(progress(step).model_dump_json())
            (folder / "weights.safetensors").write_bytes(b"weights")
    return made


def newest(run: RunDirectory) -> Path:
    return checkpoints(run.checkpoints)[-1]


def test_the_newest_two_are_kept_in_order(run: RunDirectory) -> None:
    assert [folder.name for folder in checkpoints(run.checkpoints)] == ["step-00000003", "step-00000020"]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-00000003", "step-00000020"]
    assert read_progress(newest(run)) == progress(20)
    verify_checkpoint(newest(run))


def test_a_file_or_a_link_of_such_a_name_is_no_checkpoint(run: RunDirectory, tmp_path: Path) -> None:
    (run.checkpoints / "step-00000021").write_text("")
    (run.checkpoints / "step-00000022").symlink_to(shutil.copytree(newest(run), tmp_path / "elsewhere"))
    assert newest(run).name == "step-00000020"


def renamed_outside(folder: Path) -> None:
    """Have the manifest list a file outside the folder, as it is there."""
    (folder / "weights.safetensors").rename(folder.parent.parent / "weights.safetensors")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["../../weights.safetensors"] = manifest["files"].pop("weights.safetensors")
    (folder / MANIFEST).write_text(json.dumps(manifest))


def linked(file: Path) -> None:
    elsewhere = file.parent.parent.parent / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def without_progress(folder: Path) -> None:
    (folder / PROGRESS).unlink()
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["files"][PROGRESS]
    (folder / MANIFEST).write_text(json.dumps(manifest))


DAMAGES = {
    "changed": (lambda folder: (folder / "weights.safetensors").write_bytes(b"WEIGHTS"), "its hash differs"),
    "longer": (lambda folder: (folder / "weights.safetensors").write_bytes(b"weights!"), "8 bytes, and 7 were written"),
    "missing": (lambda folder: (folder / "weights.safetensors").unlink(), "is missing"),
    "a folder": (lambda folder: ((folder / PROGRESS).unlink(), (folder / PROGRESS).mkdir()), "is missing"),
    "a link": (lambda folder: linked(folder / "weights.safetensors"), "is missing"),
    "outside": (renamed_outside, "is missing"),
    "without progress": (without_progress, "is missing"),
    "more": (lambda folder: (folder / "more").write_text(""), "it is no file of the checkpoint"),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "is missing"),
    "linked manifest": (lambda folder: linked(folder / MANIFEST), "it is a link"),
    "other manifest": (lambda folder: (folder / MANIFEST).write_text("[]"), "not what was written"),
    "manifest is a folder": (lambda folder: ((folder / MANIFEST).unlink(), (folder / MANIFEST).mkdir()), "be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_whole_is_named_and_the_one_before_it_taken(run: RunDirectory, damage: str) -> None:
    before, last = checkpoints(run.checkpoints)
    make, said = DAMAGES[damage]
    make(last)
    with pytest.raises(DataError, match=said) as refused:
        verify_checkpoint(last)
    assert str(last) in str(refused.value)
    told: list[str] = []
    assert newest_checkpoint(run.checkpoints, told.append) == before
    assert len(told) == 1
    assert "damaged and is removed" in told[0]
    assert checkpoints(run.checkpoints) == [before]


def test_where_none_is_whole_nothing_is_removed_and_where_there_is_none_it_begins(run: RunDirectory) -> None:
    for folder in checkpoints(run.checkpoints):
        (folder / "weights.safetensors").unlink()
    with pytest.raises(DataError, match="no checkpoint is whole"):
        newest_checkpoint(run.checkpoints, print)
    assert len(checkpoints(run.checkpoints)) == 2
    discard_checkpoints(run)
    assert list(run.folder.iterdir()) == []
    assert newest_checkpoint(run.checkpoints, print) is None
    assert checkpoint_to_go_on_from(run, INPUTS, 2, print) is None
    discard_checkpoints(run)


def test_what_does_not_read_back_removes_no_other(run: RunDirectory) -> None:
    with pytest.raises(DataError, match=PROGRESS), new_checkpoint(run.checkpoints, 21) as folder:
        (folder / "weights.safetensors").write_bytes(b"weights")
    assert len(checkpoints(run.checkpoints)) == 3


def test_it_goes_on_from_the_newest_and_says_so(run: RunDirectory) -> None:
    told: list[str] = []
    assert checkpoint_to_go_on_from(run, INPUTS, 2, told.append) == newest(run)
    assert told == ["  going on after step 20, which was saved"]


@pytest.mark.parametrize(
    ("decisive", "origins", "said"),
    [
        ({"base": "c"}, {}, "these changed since: base$"),
        ({"base": "c"}, {"base": "p", "torch": "3"}, r"these changed since: base \(torch\)$"),
        ({"base": "c", "training": "u"}, {"new.csv": "n"}, r"these changed since: base, training \(new.csv\)$"),
        ({"merge": "m"}, {}, "these changed since: merge$"),
    ],
)
def test_what_changed_is_named(run: RunDirectory, decisive: dict[str, str], origins: dict[str, str], said: str) -> None:
    now = MadeFrom(decisive=INPUTS.decisive | decisive, origins=INPUTS.origins | origins)
    with pytest.raises(DataError) as refused:
        checkpoint_to_go_on_from(run, now, 2, print)
    assert refused.value.what.startswith("training was interrupted after step 20")
    assert re.search(said, refused.value.what)


def test_the_same_inputs_whatever_stands_behind_them_go_on_and_other_devices_do_not(tmp_path: Path) -> None:
    require_same(progress(3), MadeFrom(decisive=INPUTS.decisive, origins={"torch": "3"}), 2, tmp_path)
    with pytest.raises(DataError, match="after step 3 on 2 devices, and now has 1"):
        require_same(progress(3), INPUTS, 1, tmp_path)


def test_those_of_a_finished_training_are_removed_and_others_kept(run: RunDirectory) -> None:
    discard_finished(run, INPUTS.decisive | {"base": "c"})
    (newest(run) / PROGRESS).write_text("{}")
    discard_finished(run, INPUTS.decisive)
    assert len(checkpoints(run.checkpoints)) == 2
    (newest(run) / PROGRESS).write_text(progress(20).model_dump_json())
    discard_finished(run, INPUTS.decisive)
    assert list(run.folder.iterdir()) == []
