"""A merged folder is what was proven, file by file, before anything reads it: what the proof lists, and nothing else.

A merge writes the hash of every file into merge.json; of a run's, the marker of its stage holds the hash of them all,
and of what was published, publish.json lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from evaluation.files import hashes_of_folder, sha256_of_hashes
from finetune.base_hashes import is_of_base
from finetune.errors import DataError
from finetune.merge_records import MERGE_FILE
from finetune.publish_manifest import MANIFEST_FILE, load_manifest
from finetune.run_directory import RunDirectory


class _Proven(BaseModel):
    """What every kind of merge.json says of the files beside it."""

    model_config = ConfigDict(frozen=True)

    merged_sha256: str
    files: dict[str, str] = {}


def model_folder(named: Path) -> Path:
    """Return the merged model of a run, or the model folder itself, as it was proven.

    Raises:
        DataError: it is neither, or not as it was proven.
    """
    folder = named / "merged" if (named / "merged").is_dir() else named
    check_merged_files(folder)
    if not (folder / "config.json").exists():
        raise DataError("no model in this folder", where=str(named), hint="name a run that was merged, or a model")
    return folder


def check_merged_files(folder: Path) -> None:
    """Check that a merged folder holds the files that were proven; one of which nothing is known is left alone.

    Raises:
        DataError: names the first file that is missing, changed or not listed.
    """
    if published := _published(folder):
        _compare(folder, hashes_of_folder(folder), *published)
        return
    run = RunDirectory(folder.parent)
    of_run = folder.name == run.merged.name and run.marker_file("merge").exists()
    if not of_run and not (folder / MERGE_FILE).is_file():
        return
    hashes = hashes_of_folder(folder)
    again = f"merge it again: finetune merge {run.recipe} --out {run.folder}" if of_run else "merge it again"
    proven = _load_proven(folder, again)
    if proven.files:
        _compare(folder, hashes, proven.files, MERGE_FILE, again)
    if of_run:
        marker = run.marker("merge")
        if marker is None or marker.outputs.get(folder.name) != sha256_of_hashes(hashes):
            what = f"{MERGE_FILE} was changed, or there are other files than the run's stages/merge.json vouches for"
            raise DataError(what, where=str(folder), hint=again)


def _load_proven(folder: Path, again: str) -> _Proven:
    try:
        return _Proven.model_validate_json((folder / MERGE_FILE).read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{MERGE_FILE} is missing", where=str(folder), hint=again) from error
    except ValidationError as error:
        raise DataError(f"{MERGE_FILE} is damaged", where=str(folder), hint=again) from error


def _published(folder: Path) -> tuple[Mapping[str, str], str, str] | None:
    """Return what publish.json in or above a folder lists of it, with its name and what to do; none without one."""
    for place, below in ((folder, ""), (folder.parent, f"{folder.name}/")):
        if not (place / MANIFEST_FILE).is_file():
            continue
        listed = {file.path: file.sha256 for file in load_manifest(place).files}
        inside = {name.removeprefix(below): sha256 for name, sha256 in listed.items() if name.startswith(below)}
        if inside:
            return inside, MANIFEST_FILE, "fetch it again: finetune pull"
    return None


def _compare(folder: Path, found: Mapping[str, str], listed: Mapping[str, str], by: str, again: str) -> None:
    """Compare the files that a loader would read, and the proof where it is listed; a readme changes nothing."""
    read = {name for name in {*found, *listed} if "/" not in name and is_of_base(name)}
    for name in sorted(read | ({MERGE_FILE} & listed.keys())):
        if found.get(name) == listed.get(name):
            continue
        if name not in listed:
            what, again = f"{name} is not listed in {by}", "it was not written with the model: move it elsewhere"
        elif name not in found:
            what = f"{name} is missing, which {by} lists"
        else:
            what = f"{name} has other bytes than {by} lists"
        raise DataError(what, where=str(folder), hint=again)
