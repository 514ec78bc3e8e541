"""Models and data sets of the Hugging Face hub, always at a commit; the only importer of huggingface_hub.

Import it where it is needed, inside functions: it brings in an HTTP client, which `finetune check` does
without.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

# Read once, when huggingface_hub is first imported; nothing of a run is reported to anybody.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import httpx2
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from evaluation.files import hashes_of_folder, sha256_of_json, staged_folder
from finetune.base_hashes import FileHashes, hash_base_files, is_vouched_for, vouch_for
from finetune.cache import fetched_voucher, hub_folder, locked
from finetune.errors import DataError, MachineError
from finetune.hub_cache import forget_links
from finetune.weight_files import refuse_pickled_weights

Kind = Literal["model", "dataset"]

MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")
"""What is fetched of a model: nothing that is pickled, nothing that is code."""
DATA_SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
_NOT_ROWS = ("dataset_infos.json", "dataset_dict.json", "state.json", "config.json")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class _Pin:
    """A repository at a commit; another endpoint than the public hub is a private one, or a test's."""

    repo: str
    commit: str
    kind: Kind
    endpoint: str | None

    def __str__(self) -> str:
        return f"{self.repo}@{self.commit}"


def resolve_revision(repo: str, revision: str | None, kind: Kind, *, endpoint: str | None = None) -> str:
    """Return the commit that a branch, tag or commit stands for; a full commit is returned without asking.

    Raises:
        DataError: there is no such repository or revision.
        MachineError: the hub cannot be reached, or does not let this user in.
    """
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    with _explained(repo, f"{repo}@{revision}" if revision else repo):
        commit = HfApi(endpoint=endpoint).repo_info(repo, revision=revision, repo_type=kind).sha
    if commit is None:
        raise DataError("the hub names no commit for it", where=repo, hint="write the commit as the revision")
    return commit


def fetch_model(repo: str, commit: str, cache: Path, *, endpoint: str | None = None) -> tuple[Path, FileHashes]:
    """Return the folder of a model at a commit and the hashes of its files; fetched unless the cache has it whole.

    Raises:
        DataError: there is no such model, or its weights are pickled only.
        MachineError: the hub cannot be reached, or does not let this user in.
    """
    pin, key = _Pin(repo, commit, "model", endpoint), sha256_of_json(["model", repo, commit])
    voucher = fetched_voucher(cache, key)
    if whole := _whole_model(pin, cache, voucher, key):
        return whole
    with locked(voucher):
        if whole := _whole_model(pin, cache, voucher, key):
            return whole  # another process has fetched it meanwhile
        with _explained(repo, str(pin)):
            refuse_pickled_weights(_list_files(pin), where=str(pin))
            folder = _fetch(pin, cache, MODEL_FILES)
        files = hash_base_files(folder)
        vouch_for(voucher, key, files)
    return folder, files


def fetch_dataset_files(repo: str, commit: str, split: str, cache: Path, *, endpoint: str | None = None) -> Path:
    """Return a folder with just the files of one split of a data set at a commit.

    Raises:
        DataError: there is no such data set, or its files do not say which of them are this split.
        MachineError: the hub cannot be reached, or does not let this user in.
    """
    pin, key = _Pin(repo, commit, "dataset", endpoint), sha256_of_json([repo, commit, split])
    folder, voucher = cache / "datasets" / key, fetched_voucher(cache, key)
    with locked(folder):
        if folder.is_dir() and is_vouched_for(voucher, key, tuple(hashes_of_folder(folder).items())):
            return folder
        with _explained(repo, str(pin)):
            chosen = choose_split_files(_list_files(pin), split, where=str(pin))
            snapshot = _fetch(pin, cache, chosen)
        with staged_folder(folder) as staging:
            for name in chosen:
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                (staging / name).symlink_to((snapshot / name).resolve())
        vouch_for(voucher, key, tuple(hashes_of_folder(folder).items()))
    return folder


def download_repository(repo: str, commit: str, folder: Path, patterns: Sequence[str]) -> None:
    """Write the files of a model repository at a commit into a folder, those that a pattern names.

    Raises:
        DataError: there is no such repository or commit.
        MachineError: the hub cannot be reached, or does not let this user in.
    """
    disable_progress_bars()
    with _explained(repo, f"{repo}@{commit}"):
        snapshot_download(repo, revision=commit, local_dir=folder, allow_patterns=list(patterns))
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # what the library remembers for the next download


def cached_model(repo: str, commit: str, cache: Path) -> Path | None:
    """Return the folder of a model at a commit where the cache has it; nothing is asked or fetched."""
    try:
        return _snapshot(_Pin(repo, commit, "model", None), cache, MODEL_FILES, offline=True)
    except LocalEntryNotFoundError:
        return None


def _whole_model(pin: _Pin, cache: Path, voucher: Path, key: str) -> tuple[Path, FileHashes] | None:
    if not voucher.is_file() or (folder := cached_model(pin.repo, pin.commit, cache)) is None:
        return None
    files = hash_base_files(folder)
    return (folder, files) if is_vouched_for(voucher, key, files) else None


def choose_split_files(names: Sequence[str], split: str, where: str) -> list[str]:
    """Return the data files whose path names the split, in order; the only data file needs no such name.

    Raises:
        DataError: none does, or the choice is not clear (several formats or folders).
    """
    data = sorted(n for n in names if n.endswith(DATA_SUFFIXES) and PurePosixPath(n).name not in _NOT_ROWS)
    marked = re.compile(rf"(?:^|[^A-Za-z0-9]){re.escape(split)}(?:[-./]|$)")
    chosen = [name for name in data if marked.search(name)] or (data if len(data) == 1 else [])
    places = {(PurePosixPath(name).parent, PurePosixPath(name).suffix) for name in chosen}
    if len(places) == 1:
        return chosen
    problem = "several sets of files" if places else "no file"
    raise DataError(
        f"{problem} for the split {split!r}",
        where=where,
        hint=f"its data files: {', '.join(data[:20]) or 'none'}; download one and name it as the source",
    )


def _list_files(pin: _Pin) -> list[str]:
    # list_repo_files would repeat its request for 23 seconds where there is no network; this says so at once.
    api = HfApi(endpoint=pin.endpoint)
    ask = api.model_info if pin.kind == "model" else api.dataset_info
    info = ask(pin.repo, revision=pin.commit)
    return [sibling.rfilename for sibling in info.siblings or ()]


def _fetch(pin: _Pin, cache: Path, patterns: Sequence[str]) -> Path:
    """Fetch what is missing of a snapshot, and what is there and damaged; the hub answers, so nothing is lost by it."""
    with suppress(LocalEntryNotFoundError):
        forget_links(_snapshot(pin, cache, patterns, offline=True))
    return _snapshot(pin, cache, patterns, offline=False)


def _snapshot(pin: _Pin, cache: Path, patterns: Sequence[str], *, offline: bool) -> Path:
    return Path(
        snapshot_download(
            pin.repo,
            repo_type=pin.kind,
            revision=pin.commit,
            cache_dir=hub_folder(cache),
            allow_patterns=list(patterns),
            local_files_only=offline,
            endpoint=pin.endpoint,
        )
    )


@contextmanager
def _explained(repo: str, where: str) -> Iterator[None]:
    """Turn what huggingface_hub and its HTTP client raise into a sentence and a way out."""
    try:
        yield
    except GatedRepoError as error:
        raise MachineError(
            "it is gated and this user has not been let in",
            where=where,
            hint=f"accept the licence on https://huggingface.co/{repo}, then `hf auth login`",
        ) from error
    except RevisionNotFoundError as error:
        raise DataError("there is no such revision", where=where) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise DataError(
            "the hub has no such repository, or it is private",
            where=where,
            hint="check the spelling `org/name`; for a private one, `hf auth login`",
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise MachineError(
            "it is not in the cache and the hub cannot be reached",
            where=where,
            hint="connect once to fetch it, or name a local folder; HF_HUB_OFFLINE=1 forbids every request, as does "
            "--offline",
        ) from error
    except HfHubHTTPError as error:
        raise MachineError(f"the hub answered: {str(error).splitlines()[0]}", where=where) from error
    except httpx2.HTTPError as error:
        raise MachineError(
            f"the hub cannot be reached ({type(error).__name__})",
            where=where,
            hint="connect once to fetch it, or name a local folder",
        ) from error
