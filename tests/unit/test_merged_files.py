"""A merged folder is what its proof lists, the run's marker vouches for, or publish.json lists; told by small files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluation.files import hashes_of_folder, sha256_of_hashes, write_model
from finetune.errors import DataError
from finetune.merge_records import MERGE_FILE
from finetune.merged_files import check_merged_files, model_folder
from finetune.publish_manifest import MANIFEST_FILE, Manifest, PublishedBase, describe_files
from finetune.records import StageTime
from finetune.run_directory import RunDirectory

TIME = StageTime(stage="merge", seconds=1.0, peak_memory_bytes=1)
MODEL = ("model.safetensors", "config.json", "tokenizer.json")


def write_proven(folder: Path) -> None:
    """Write a merged folder with its proof, as a merge of folders leaves it."""
    folder.mkdir(parents=True)
    for name in MODEL:
        (folder / name).write_text(name)
    files = hashes_of_folder(folder)
    (folder / MERGE_FILE).write_text(json.dumps({"merged_sha256": sha256_of_hashes(files), "files": files}))


def write_published(folder: Path) -> None:
    """Write publish.json over what a folder holds."""
    manifest = Manifest(
        name="tiny",
        parts=("adapter", "merged"),
        base=PublishedBase(model="tiny", revision=None, sha256=""),
        dtype="float32",
        quantization=None,
        template_sha256="",
        seed=0,
        versions={},
        scores=(),
        answers=(),
        files=describe_files(folder),
    )
    write_model(folder / MANIFEST_FILE, manifest)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run that was merged."""
    made = RunDirectory(tmp_path / "run")
    write_proven(made.merged)
    made.finish("merge", {}, TIME)
    return made


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """A merge of folders."""
    write_proven(tmp_path / "place" / "model")
    return tmp_path / "place" / "model"


def refused(folder: Path, said: str) -> str:
    """Check that a folder is refused, and return the advice."""
    with pytest.raises(DataError, match=said) as error:
        check_merged_files(folder)
    assert str(folder) in str(error.value)
    return error.value.hint


def test_the_model_of_a_run_is_found_and_so_is_one_by_itself(run: RunDirectory, alone: Path) -> None:
    assert model_folder(run.folder) == run.merged
    assert model_folder(run.merged) == run.merged
    assert model_folder(alone) == alone


def test_where_there_is_no_model_it_is_said(tmp_path: Path, alone: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no model in this folder"):
        model_folder(tmp_path / "empty")
    (alone / "config.json").unlink()
    with pytest.raises(DataError, match=r"config\.json is missing, which merge.json lists"):
        model_folder(alone)


def test_a_file_that_is_missing_changed_or_not_listed_is_named(run: RunDirectory, alone: Path) -> None:
    for folder, advice in ((run.merged, f"finetune merge {run.recipe} --out {run.folder}"), (alone, "merge it again")):
        check_merged_files(folder)
        (folder / "vocab.json").write_text("{}")
        assert "move it elsewhere" in refused(folder, "vocab.json is not listed in merge.json")
        (folder / "vocab.json").unlink()
        (folder / "config.json").write_text("other")
        assert advice in refused(folder, "config.json has other bytes than merge.json lists")
        (folder / "config.json").unlink()
        assert advice in refused(folder, "config.json is missing, which merge.json lists")


def test_what_no_loader_reads_may_lie_beside_a_merge_of_folders_and_not_in_a_runs(
    run: RunDirectory, alone: Path
) -> None:
    for folder in (run.merged, alone):
        (folder / "README.md").write_text("mine")
        (folder / "below").mkdir()
        (folder / "below" / "config.json").write_text("{}")
    check_merged_files(alone)
    assert "merge it again" in refused(run.merged, "there are other files than the run's stages/merge.json vouches for")


def test_a_proof_that_is_damaged_or_missing_is_told(run: RunDirectory, alone: Path) -> None:
    for folder in (run.merged, alone):
        (folder / MERGE_FILE).write_text("{")
        refused(folder, "merge.json is damaged")
    (run.merged / MERGE_FILE).unlink()
    refused(run.merged, "merge.json is missing")


def test_a_proof_from_before_files_were_listed_is_told_by_the_runs_marker(run: RunDirectory, alone: Path) -> None:
    for folder in (run.merged, alone):
        (folder / MERGE_FILE).write_text(json.dumps({"merged_sha256": ""}))
    check_merged_files(alone)
    refused(run.merged, "merge.json was changed")
    run.finish("merge", {}, TIME)
    check_merged_files(run.merged)
    (run.merged / "config.json").write_text("other")
    refused(run.merged, "vouches for")


def test_a_marker_that_cannot_be_read_vouches_for_nothing(run: RunDirectory) -> None:
    run.marker_file("merge").write_text("{")
    refused(run.merged, "vouches for")


def test_of_a_run_that_was_not_merged_and_of_a_strangers_model_nothing_is_known(run: RunDirectory, alone: Path) -> None:
    run.marker_file("merge").unlink()
    (run.merged / MERGE_FILE).unlink()
    (run.merged / "config.json").write_text("other")
    check_merged_files(run.merged)
    beside = run.merged.rename(run.folder / "other")
    run.marker_file("merge").touch()
    check_merged_files(beside)


def test_what_was_published_is_what_publish_json_lists(run: RunDirectory, alone: Path) -> None:
    write_published(alone)
    check_merged_files(alone)
    (alone / MERGE_FILE).write_text("{")
    assert refused(alone, "merge.json has other bytes than publish.json lists") == "fetch it again: finetune pull"
    (alone / MERGE_FILE).unlink()
    refused(alone, "merge.json is missing, which publish.json lists")
    write_published(run.folder)
    (run.merged / "README.md").write_text("mine")
    check_merged_files(run.merged)
    (run.merged / "config.json").write_text("other")
    refused(run.merged, "config.json has other bytes than publish.json lists")


def test_a_publish_json_that_says_nothing_of_the_model_is_left_alone(run: RunDirectory) -> None:
    moved = run.merged.rename(run.folder.parent / "elsewhere")
    write_published(run.folder)
    moved.rename(run.merged)
    check_merged_files(run.merged)
    (run.merged / "config.json").write_text("other")
    refused(run.merged, "config.json has other bytes than merge.json lists")
