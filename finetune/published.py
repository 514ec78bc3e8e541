"""What was published, brought back: from the hub, a folder or an address into a folder, and its base if it is here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from finetune.bases import hash_published_base
from finetune.errors import DataError
from finetune.publish_manifest import MANIFEST_FILE, PublishedBase, load_manifest
from finetune.push_targets import SAFE_PATTERNS, FolderTarget, HubTarget, Target, UrlTarget, is_safe_name

TEMPLATE_FILE = "chat_template.jinja"


def fetch_published(source: Target, revision: str | None, folder: Path) -> str | None:
    """Write what was published into an empty folder; returns the commit, where it lies on the hub.

    Raises:
        DataError: there is no such thing, or it is not whole.
        MachineError: it cannot be reached.
    """
    if revision is not None and not isinstance(source, HubTarget):
        raise DataError("only repositories of the hub have revisions", where=str(source), hint="leave --revision out")
    match source:
        case HubTarget(repo):
            from finetune.hub import download_repository, resolve_revision

            commit = resolve_revision(repo, revision, "model")
            download_repository(repo, commit, folder, SAFE_PATTERNS)
            return commit
        case FolderTarget(path):
            _copy(path, folder)
        case UrlTarget(url):
            from finetune.file_store import fetch_from_store

            fetch_from_store(url, folder)
    return None


def find_base(base: PublishedBase, given: Path | None, cache: Path) -> Path | None:
    """Return the folder of the base where it was given or the cache has it; nothing is fetched.

    Its chat template may be another one: the published folder has its own.

    Raises:
        DataError: what was given is another model.
    """
    if given is not None:
        if not (given / "config.json").is_file():
            raise DataError("no model in this folder", where=str(given), hint=f"name the folder of {base.model}")
        if (found := hash_published_base(given)) != base.sha256:
            what = f"it is not the published base: the sha256 of its files is {found}, published was {base.sha256}"
            raise DataError(what, where=str(given), hint=f"the base is {base.model}")
        return given
    return next((folder for folder in _cached(base, cache) if hash_published_base(folder) == base.sha256), None)


def check_published_base(adapter: Path, base: Path) -> None:
    """Check that a base is the one that an adapter was published for, where the adapter's folder says which.

    Raises:
        DataError: it is another one.
    """
    if not (adapter / MANIFEST_FILE).is_file():
        return
    published, found = load_manifest(adapter).base, hash_published_base(base)
    if found != published.sha256:
        what = f"it was published for {published.model} with the sha256 {published.sha256}, and this base has {found}"
        raise DataError(what, where=str(adapter), hint=f"name the folder of {published.model}")


def template_of(folder: Path) -> str:
    """Return the chat template of a folder with a tokenizer; "" where it has none."""
    file = folder / TEMPLATE_FILE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    try:
        stated = json.loads((folder / "tokenizer_config.json").read_bytes()).get("chat_template")
    except (FileNotFoundError, ValueError):
        stated = None
    return stated if isinstance(stated, str) else ""


def _cached(base: PublishedBase, cache: Path) -> list[Path]:
    from finetune.hub import cached_model

    found = []
    if base.revision is not None:
        snapshot = cached_model(base.model, base.revision, cache)
        found += [snapshot] if snapshot is not None else []
    return found + [config.parent for kind in ("gguf", "templated") for config in cache.glob(f"{kind}/*/config.json")]


def _copy(source: Path, folder: Path) -> None:
    if not source.is_dir():
        raise DataError("there is no such folder", where=str(source))
    if (source / MANIFEST_FILE).is_file():
        names = [file.path for file in load_manifest(source).files] + [MANIFEST_FILE]
    else:
        names = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
        names = [name for name in names if is_safe_name(name)]
    for name in names:
        if not is_safe_name(name):
            raise DataError(f"it names {name!r}, which is not fetched", where=str(source))
        if not (source / name).is_file():
            raise DataError(f"{name} is missing, which {MANIFEST_FILE} names", where=str(source))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)
