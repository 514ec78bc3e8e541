"""One commit on the Hugging Face hub: the repository, what lies there already, and all files of a folder at once.

Large files go by the LFS protocol and not by Xet, whose own client does not tell and bound its waits; the commit comes
after them, names the one it follows, and holds every file. Until it is made, nobody sees any of it.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_session,
    get_token,
    set_client_factory,
)
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._http import default_client_factory, hf_raise_for_status
from huggingface_hub.utils.tqdm import disable_progress_bars

from finetune.console import Reporter
from finetune.errors import DataError, MachineError
from finetune.hub_patience import Advance, PatientClient
from finetune.hub_refusals import LOGIN, NOTHING_PUBLISHED, explained_push, short_of
from finetune.publish_manifest import MANIFEST_FILE, Manifest, PublishedFile, describe_files, parse_manifest

CARD = "README.md"
HUB_OWN_FILES = frozenset({".gitattributes"})
"""What the hub itself puts into a new repository."""


@dataclass(frozen=True)
class HubCommit:
    """Where a folder stands on the hub now."""

    commit: str
    is_new: bool
    """False where the repository held exactly these files before."""


@dataclass(frozen=True)
class _Remote:
    """A repository as it is."""

    commit: str
    private: bool
    files: dict[str, RepoFile]

    @property
    def own_files(self) -> set[str]:
        """Names of the files that a person put there."""
        return set(self.files) - HUB_OWN_FILES


def publish_to_hub(folder: Path, manifest: Manifest, repo: str, *, public: bool, reporter: Reporter) -> HubCommit:
    """Make a repository hold exactly the files of a staged folder, by one commit.

    Raises:
        DataError: the hub does not accept the card's metadata; or the repository belongs to something else.
        MachineError: the hub cannot be reached or does not let this user do it; nothing was published.
    """
    files = _all_files(folder)
    _refuse_without_access(repo)
    with reporter.bar(f"upload to {repo} (bytes)", None) as advance, _patient(reporter, advance), explained_push(repo):
        api = HfApi()
        _check_card(api, folder, repo, reporter)
        remote = _look(api, repo)
        if remote is None:
            api.create_repo(repo, private=not public, repo_type="model")
            reporter.say(f"  created {repo}, {'public' if public else 'private'}")
            remote = _look(api, repo)
        if remote is None:
            raise MachineError("it was created and cannot be found", where=repo, hint="try again in a minute")
        _refuse_other_use(api, repo, remote, manifest, public=public)
        return _commit_once(api, folder, files, repo, reporter)


def _commit_once(
    api: HfApi, folder: Path, files: tuple[PublishedFile, ...], repo: str, reporter: Reporter
) -> HubCommit:
    """Commit, and where it is not known whether the commit arrived, look before trying again."""
    failure: HfHubHTTPError | httpx2.TransportError | None = None
    for pause in (1.0, 2.0, 4.0, None):
        remote = _look_again(api, repo, failure)
        if _holds_exactly(remote, folder, files):
            return HubCommit(remote.commit, is_new=failure is not None)
        if failure is not None and (pause is None or _is_others_change(failure)):
            raise failure
        try:
            return HubCommit(_commit(api, folder, files, repo, remote), is_new=True)
        except (HfHubHTTPError, httpx2.TransportError) as error:
            if not _is_uncertain(error):
                raise
            failure = error
        reporter.say(f"  the hub: {short_of(failure)} while committing; looking whether it arrived")
        time.sleep(pause or 0)
    raise AssertionError("the last round returns or raises")


def _look_again(api: HfApi, repo: str, failure: Exception | None) -> _Remote:
    try:
        remote = _look(api, repo)
    except (HfHubHTTPError, httpx2.TransportError, MachineError) as error:
        if failure is None:
            raise
        what = f"the hub cannot be reached ({short_of(error)}), and it is not known whether the commit arrived"
        raise MachineError(what, where=repo, hint="the same command finds out, and goes on") from error
    if remote is None:
        raise MachineError("the repository is gone", where=repo, hint=NOTHING_PUBLISHED)
    return remote


def _commit(api: HfApi, folder: Path, files: tuple[PublishedFile, ...], repo: str, remote: _Remote) -> str:
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationDelete(path) for path in sorted(remote.own_files - {file.path for file in files})),
        *(CommitOperationAdd(file.path, folder / file.path) for file in files),
    ]
    message = f"finetune: {len(files)} files"
    return api.create_commit(repo, operations, commit_message=message, parent_commit=remote.commit).oid


def _is_uncertain(error: HfHubHTTPError | httpx2.TransportError) -> bool:
    """Tell whether a commit may have been made although the answer is a failure."""
    return isinstance(error, httpx2.TransportError) or error.response.status_code >= 500 or _is_others_change(error)


def _is_others_change(error: HfHubHTTPError | httpx2.TransportError) -> bool:
    """Tell whether another commit came first, be it the earlier try of this one: that is not written over."""
    return isinstance(error, HfHubHTTPError) and error.response.status_code in (409, 412)


def _all_files(folder: Path) -> tuple[PublishedFile, ...]:
    data = (folder / MANIFEST_FILE).read_bytes()
    mark = PublishedFile(path=MANIFEST_FILE, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return (*describe_files(folder), mark)


def _refuse_without_access(repo: str) -> None:
    if constants.is_offline_mode():
        raise MachineError("HF_HUB_OFFLINE=1 forbids every request", where=repo, hint="unset it to publish")
    if get_token() is None:
        raise MachineError("nobody is logged in to the hub here", where=repo, hint=LOGIN)


def _check_card(api: HfApi, folder: Path, repo: str, reporter: Reporter) -> None:
    """Let the hub check the card's metadata before anything is created or uploaded."""
    try:
        content = (folder / CARD).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"no {CARD} in the folder", where=str(folder)) from error
    # ModelCard.validate of huggingface_hub 2.4 sends what it understood of the card, not what stands in it.
    question = {"content": content, "repoType": "model"}
    response = get_session().post(f"{api.endpoint}/api/validate-yaml", json=question)
    if response.status_code != 400:
        hf_raise_for_status(response)
    verdict = response.json()
    for warning in verdict.get("warnings", ()):
        reporter.say(f"  {CARD}: {warning.get('message')}")
    errors = [str(error.get("message")) for error in verdict.get("errors", ())]
    if errors or response.status_code == 400:
        told = "\n".join(f"  - {error}" for error in errors or ["the hub does not say why"])
        raise DataError(f"the metadata of {CARD} is not accepted\n{told}", where=repo, hint=NOTHING_PUBLISHED)


def _look(api: HfApi, repo: str) -> _Remote | None:
    try:
        info = api.model_info(repo)
    except RepositoryNotFoundError:
        return None
    if info.sha is None:
        raise MachineError("the hub names no commit for it", where=repo)
    tree = api.list_repo_tree(repo, recursive=True, revision=info.sha)
    return _Remote(info.sha, bool(info.private), {entry.path: entry for entry in tree if isinstance(entry, RepoFile)})


def _refuse_other_use(api: HfApi, repo: str, remote: _Remote, manifest: Manifest, *, public: bool) -> None:
    """Refuse a repository that is somebody's or something else's, or is seen by others than was asked for."""
    if remote.private == public:
        what = "it is private there, and --public was given" if public else "it is public there"
        hint = "leave --public out" if public else "--public says that this is meant"
        raise DataError(what, where=repo, hint=f"{hint}, or change it in the repository's settings")
    if not remote.own_files:
        return
    other = "choose another name, or delete the repository first"
    if MANIFEST_FILE not in remote.files:
        raise DataError(
            f"it holds files and no {MANIFEST_FILE}: it was not published from here", where=repo, hint=other
        )
    with tempfile.TemporaryDirectory() as place:
        api.hf_hub_download(repo, MANIFEST_FILE, revision=remote.commit, local_dir=place)
        there = parse_manifest((Path(place) / MANIFEST_FILE).read_bytes(), repo)
    if there.name != manifest.name:
        raise DataError(f"it holds {there.name!r}, and this is {manifest.name!r}", where=repo, hint=other)


def _holds_exactly(remote: _Remote, folder: Path, files: tuple[PublishedFile, ...]) -> bool:
    return remote.own_files == {file.path for file in files} and all(
        _is_same(remote.files[file.path], folder / file.path, file) for file in files
    )


def _is_same(there: RepoFile, path: Path, file: PublishedFile) -> bool:
    """Compare by what the hub keeps: the sha256 of a large file, the git hash of a small one."""
    if there.size != file.bytes:
        return False
    if there.lfs is not None:
        return there.lfs.sha256 == file.sha256
    return there.blob_id == hashlib.sha1(b"blob %d\0" % file.bytes + path.read_bytes()).hexdigest()


@contextmanager
def _patient(reporter: Reporter, advance: Advance) -> Iterator[None]:
    """Make huggingface_hub use our client, its LFS protocol, and no output of its own, until the block ends."""
    logger = logging.getLogger("huggingface_hub")
    level, xet = logger.level, constants.HF_HUB_DISABLE_XET
    set_client_factory(lambda: PatientClient(reporter.say, advance))
    constants.HF_HUB_DISABLE_XET = True
    disable_progress_bars()
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        set_client_factory(default_client_factory)
        constants.HF_HUB_DISABLE_XET = xet
        logger.setLevel(level)
