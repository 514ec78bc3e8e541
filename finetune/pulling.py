"""`finetune pull`: fetches what somebody published, and says of it what can be known before it is used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from evaluation.files import staged_folder
from finetune.base_files import open_base
from finetune.bases import check_model_folder
from finetune.console import Reporter
from finetune.errors import DataError
from finetune.merging_shards import check_fits
from finetune.peft_config import CONFIG_FILE
from finetune.peft_weights import PeftFolder, open_peft_folder
from finetune.publish_manifest import (
    ADAPTER_FOLDER,
    MANIFEST_FILE,
    Manifest,
    check_files,
    load_manifest,
    merged_folder,
)
from finetune.published import fetch_published, find_base, template_of
from finetune.push_targets import FolderTarget, HubTarget, Target, UrlTarget, parse_source


@dataclass(frozen=True)
class Pull:
    """What is fetched, and where its base may be."""

    source: str
    revision: str | None
    base: Path | None
    """Folder of the base, if one was named."""
    cache: Path


def pull(wanted: Pull, out: Path | None, reporter: Reporter) -> Path:
    """Fetch into a folder and check; where a check fails, the folder is not written.

    Raises:
        TaskError: the source is none that can be read.
        DataError: what was fetched is not what its publish.json says, or does not fit its base.
        MachineError: the source cannot be reached.
    """
    source = parse_source(wanted.source)
    out = out or Path(_name_of(source))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError("it is there already", where=str(out), hint="name another folder with --out")
    with staged_folder(out) as staging:
        with reporter.bar(f"fetch {wanted.source}", None):
            commit = fetch_published(source, wanted.revision, staging)
        reporter.say(f"{wanted.source}{f' at commit {commit}' if commit else ''}")
        if (staging / MANIFEST_FILE).is_file():
            _check_published(staging, wanted, reporter.say)
        else:
            _check_foreign(staging, wanted, reporter.say)
    reporter.say(f"  in {out}")
    return out


def _name_of(source: Target) -> str:
    match source:
        case HubTarget(repo):
            return repo.rpartition("/")[2]
        case FolderTarget(path):
            return path.resolve().name
        case UrlTarget(url):
            return url.rpartition("/")[2]


def _check_published(folder: Path, wanted: Pull, say: Callable[[str], None]) -> None:
    manifest = load_manifest(folder)
    check_files(folder, manifest)
    say(f"  {manifest.name}: {', '.join(manifest.parts)}; every sha256 is that of {MANIFEST_FILE}")
    base = find_base(manifest.base, wanted.base, wanted.cache)
    if "adapter" in manifest.parts:
        say(f"  {_check_adapter(folder, base, manifest.base.model)}")
    if "merged" in manifest.parts:
        merged = folder / merged_folder(manifest)
        check_model_folder(merged, wanted.source)
        say(f"  merged model: {_check_finite(merged)} weights, all finite")
    if "gguf" in manifest.parts:
        say("  GGUF: its bytes are those that were published; its weights were not looked at")
    places = {"adapter": ADAPTER_FOLDER, "merged": merged_folder(manifest)}
    own = [places[part] for part in manifest.parts if part in places]
    for name in own:
        _check_template(folder / name, manifest)
    say("  chat template: as published" if own else "  chat template: inside the GGUF file, not looked at")
    say(f"  {len(manifest.scores)} figures on its card, which `finetune verify` scores again")


def _check_foreign(folder: Path, wanted: Pull, say: Callable[[str], None]) -> None:
    """Say what can be said of something that was published by other means."""
    if (folder / CONFIG_FILE).is_file():
        if wanted.base is not None and not (wanted.base / "config.json").is_file():
            raise DataError("no model in this folder", where=str(wanted.base))
        say(f"  {_check_adapter(folder, wanted.base, 'not named')}")
    elif (folder / "config.json").is_file():
        check_model_folder(folder, wanted.source)
        say(f"  a model: {_check_finite(folder)} weights, all finite")
    else:
        hint = f"{CONFIG_FILE} or config.json with safetensors is looked for; pickled weights and code are not fetched"
        raise DataError("neither an adapter nor a model in it", where=wanted.source, hint=hint)
    say(f"  it has no {MANIFEST_FILE}: nothing says which bytes, base, template or figures were meant")


def _check_adapter(folder: Path, base: Path | None, named: str) -> str:
    """Check every tensor of an adapter, and its fit where the base is here; returns the sentence about it."""
    adapter = open_peft_folder(folder)
    for module in adapter.modules:
        adapter.change(module)  # refuses what is not finite, or of another shape than the settings say
    held = f"adapter: {adapter.config.kind} of rank {adapter.config.r}, {len(adapter.modules)} modules, all finite"
    if base is None:
        return (
            f"{held}; its base {_base_name(adapter, named)} is not here, so its fit was not checked (--base names it)"
        )
    check_fits(open_base(base), adapter)
    return f"{held}, all fit the base"


def _base_name(adapter: PeftFolder, named: str) -> str:
    return adapter.config.base_model_name_or_path or named


def _check_finite(folder: Path) -> int:
    """Count the weights of a model folder.

    Raises:
        DataError: one of them is not finite, or a file is damaged.
    """
    count = 0
    for path, name in _tensors(folder):
        with safe_open(path, framework="pt") as opened:
            if not torch.isfinite(opened.get_tensor(name)).all():
                raise DataError(f"{name} holds values that are not finite", where=str(path.name))
        count += 1
    return count


def _tensors(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as opened:
                names = list(opened.keys())
        except SafetensorError as error:
            raise DataError(f"the weights cannot be read: {error}", where=path.name) from error
        yield from ((path, name) for name in names)


def _check_template(folder: Path, manifest: Manifest) -> None:
    found = hashlib.sha256(template_of(folder).encode()).hexdigest()
    if found != manifest.template_sha256:
        what = f"its chat template is another one: sha256 {found}, published was {manifest.template_sha256}"
        raise DataError(what, where=str(folder.name))
