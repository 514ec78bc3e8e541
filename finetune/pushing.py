"""`finetune push`: sends a staged folder to where it is published, and proves from outside what lies there."""

from __future__ import annotations

import shutil
from pathlib import Path

from evaluation.files import sha256_of_file, staged_folder
from finetune.cache import default_cache
from finetune.console import Reporter
from finetune.errors import DataError
from finetune.publish_check import CheckJob, CheckResult, check_in_fresh_process
from finetune.publish_claims import check_claims
from finetune.publish_manifest import MANIFEST_FILE, Manifest, check_files, load_manifest, names_repository
from finetune.push_targets import FolderTarget, HubTarget, Target, UrlTarget, is_safe_name, parse_target


def push(
    folder: Path,
    target: str,
    *,
    public: bool,
    reporter: Reporter,
    base: Path | None = None,
    cache: Path | None = None,
) -> None:
    """Publish a staged folder whole or not at all, then download it in a fresh process and compare.

    `base` is the folder of the base, for the answers; where it is not given, it is looked for in the cache.

    Raises:
        TaskError: the target is none that can be published to.
        DataError: the folder is not what its publish.json says, or the target holds something else.
        MachineError: the target cannot be reached or written; nothing was published.
        ProofFailed: what is downloaded again is not what was sent.
    """
    where = parse_target(target)
    manifest = load_manifest(folder)
    check_files(folder, manifest)
    check_claims(folder, manifest)
    _refuse_unsafe(folder, manifest)
    if isinstance(where, HubTarget) and not names_repository(manifest.name, where.repo):
        # Licences ask for names, and the card says how to load it: both were settled for the name that was staged.
        what = f"it was staged as {manifest.name!r}, and its card and its licence speak of that name"
        hint = f"push it there, or stage it again: finetune publish RUN --stage-only --as {where.repo}"
        raise DataError(what, where=target, hint=hint)
    if public and not isinstance(where, HubTarget):
        raise DataError("--public is for the hub", where=target, hint="leave it out")
    total = sum(file.bytes for file in manifest.files)
    reporter.say(f"push to {target}: {len(manifest.files) + 1} files, {total / 2**20:,.1f} MiB")
    commit, is_new = _send(folder, manifest, where, public, reporter)
    at = f" at commit {commit}" if commit else ""
    reporter.say(f"  published{at}" if is_new else f"  already there{at}: nothing was sent")
    with reporter.bar("download in a fresh process and compare", None):
        job = CheckJob(
            target=str(where),
            commit=commit,
            manifest_sha256=sha256_of_file(folder / MANIFEST_FILE),
            base=base.resolve() if base else None,
            cache=(cache or default_cache()).resolve(),
        )
        _say(check_in_fresh_process(job), reporter)


def _send(
    folder: Path, manifest: Manifest, target: Target, public: bool, reporter: Reporter
) -> tuple[str | None, bool]:
    """Send the files; returns the commit, where there is one, and whether anything was new."""
    match target:
        case HubTarget(repo):
            # huggingface_hub brings in an HTTP client, which other targets do without.
            from finetune.hub_publish import publish_to_hub

            made = publish_to_hub(folder, manifest, repo, public=public, reporter=reporter)
            return made.commit, made.is_new
        case FolderTarget(path):
            return None, _publish_to_folder(folder, manifest, path)
        case UrlTarget(url):
            from finetune.file_store import publish_to_store

            return None, publish_to_store(folder, manifest, url, reporter)


def _publish_to_folder(folder: Path, manifest: Manifest, path: Path) -> bool:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        if not (path / MANIFEST_FILE).is_file():
            what = f"it is there and holds no {MANIFEST_FILE}: it was not published from here"
            raise DataError(what, where=str(path), hint="choose an empty place")
        there = load_manifest(path)
        if there.name != manifest.name:
            what = f"it holds {there.name!r}, and this is {manifest.name!r}"
            raise DataError(what, where=str(path), hint="choose another place")
        if _is_same(path, there, manifest):
            return False
    with staged_folder(path) as staging:
        shutil.copytree(folder, staging, dirs_exist_ok=True)
    return True


def _is_same(path: Path, there: Manifest, manifest: Manifest) -> bool:
    try:
        check_files(path, there)
    except DataError:
        return False
    return there == manifest


def _refuse_unsafe(folder: Path, manifest: Manifest) -> None:
    unsafe = [file.path for file in manifest.files if not is_safe_name(file.path)]
    if unsafe:
        raise DataError(f"{unsafe[0]!r} is of a kind that is not published", where=str(folder))


def _say(result: CheckResult, reporter: Reporter) -> None:
    reporter.say(f"  downloaded in a fresh process: {result.files} files, every sha256 as in {MANIFEST_FILE}")
    if result.not_asked is not None:
        reporter.say(f"  answers were not compared: {result.not_asked}")
    else:
        reporter.say(f"  answers: {result.answers} of {result.answers} as published, by plain transformers and peft")
