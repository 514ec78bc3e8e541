"""What is served: a folder, laid out as the hub's cache, that makes a server render, stop and draw as was trained.

Servers read their defaults from a model's files, so the files say what the run meant: which tokens end an answer,
nothing else than the whole distribution to draw from (a base may bring a temperature and a top_k of its own), and the
date that the template prints. Weights are linked, not copied.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from evaluation.chat_template import with_fixed_date
from evaluation.conversation import Conversation, Message
from evaluation.files import sha256_of_file, sha256_of_folder, sha256_of_json, staged_folder
from evaluation.rendering import Renderer
from evaluation.tokenizer import load_tokenizer
from finetune.base_hashes import is_of_base
from finetune.bases import check_model_folder, resolve_base
from finetune.console import Reporter
from finetune.errors import DataError
from finetune.exporting import ExportProof
from finetune.merged_files import check_merged_files
from finetune.merging_tokenizer import SETTINGS_FILE
from finetune.peft_config import CONFIG_FILE
from finetune.recipe import Base
from finetune.recipe_file import load_recipe
from finetune.run_directory import RunDirectory
from finetune.run_lock import find_run_base, load_lock
from finetune.voices import check_adapter_of, named_adapter

TEMPLATE_FILE = "chat_template.jinja"
DRAWING = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
"""The API's defaults. transformers 5.23 ignores a request's temperature where `do_sample` is false, and its top_k is 50
where none is stated; a temperature of 0 is greedy all the same."""
_OF_DRAWING = frozenset({*DRAWING, "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h"})
_ASKS_THE_CLOCK = re.compile(r"\bstrftime_now\s*\(")
_UNFIT = re.compile(r"[^A-Za-z0-9._]+")

_QUESTION = Message(role="user", content="Which word is it? 哪个词 🙂")
PROBES = (
    Conversation(messages=(_QUESTION,)),
    Conversation(messages=(_QUESTION, Message(role="assistant", content="This one."), _QUESTION)),
)
"""Chats whose prompts tell templates and tokenizers apart."""


@dataclass(frozen=True)
class Asked:
    """Which model is to be served."""

    named: str
    """Folder of a run or a model, a .gguf file, or a base as recipes name it."""
    adapters: tuple[str, ...] = ()
    """Folders of adapters, each as FOLDER or NAME=FOLDER; then the base is served with all of them."""
    sha256: str | None = None
    """Of a `pypi:` file."""


@dataclass(frozen=True)
class ServedModel:
    """A model that a server can be started with."""

    name: str
    """What requests call it."""
    folder: Path
    """Safetensors, configuration and tokenizer."""
    gguf: Path | None = None
    """The same as one GGUF file, where there is one."""
    adapters: tuple[tuple[str, Path], ...] = ()
    """Name and folder of adapters to be put on it."""


@dataclass(frozen=True)
class ServedFolder:
    """Where a server finds the model."""

    hub: Path
    """A hub cache that holds this model and nothing else."""
    snapshot: Path
    """The model's folder in it."""


def find_served(asked: Asked, cache: Path, reporter: Reporter) -> ServedModel:
    """Find the model: of a run the merged one, or with `adapters` its base, its own adapter and the others.

    Raises:
        DataError: there is none, or it is not merged.
    """
    path = Path(asked.named)
    run = RunDirectory(path)
    adapters = tuple(named_adapter(text) for text in asked.adapters)
    if (path / CONFIG_FILE).is_file():
        hint = "serve its base with it (finetune serve BASE --adapter FOLDER), or merge it (finetune adapter merge)"
        raise DataError("this is an adapter, not a model", where=asked.named, hint=hint)
    if not run.recipe.is_file():
        base = resolve_base(Base(model=asked.named, sha256=asked.sha256), cache, reporter.say)
        gguf = path if path.suffix.lower() == ".gguf" else None
        name = _name(path.resolve() if path.exists() else path)
        return _with_adapters(ServedModel(name, base.folder, gguf, adapters))
    recipe = load_recipe(str(run.recipe), []).recipe
    if adapters:
        base = find_run_base(recipe.base, load_lock(run), cache, reporter.say)
        return _with_adapters(ServedModel("base", base.folder, None, ((recipe.name, run.adapter), *adapters)))
    if not run.merged.is_dir():
        hint = f"finetune merge {run.recipe} --out {run.folder}"
        raise DataError(
            "this run is not merged yet, and a merged model is what is served", where=asked.named, hint=hint
        )
    check_merged_files(run.merged)
    check_model_folder(run.merged, str(run.merged))
    return ServedModel(recipe.name, run.merged, _proven_gguf(run, reporter))


def _with_adapters(model: ServedModel) -> ServedModel:
    """Check each adapter before a server, which may not, is started with it."""
    for _, folder in model.adapters:
        check_adapter_of(folder, model.folder)
    return model


def _proven_gguf(run: RunDirectory, reporter: Reporter) -> Path | None:
    """Return the one file of a run whose proof is about its merged model as it is now; none if there are several."""
    files = sorted(run.folder.glob("*.gguf"))
    if not files:
        return None
    proven = []
    with reporter.bar("compare the GGUF files with their proofs", len(files)) as advance:
        model = sha256_of_folder(run.merged)
        for file in files:
            if _is_of(file, model):
                proven.append(file)
            else:
                reporter.say(f"  {file.name} is left out: no proof beside it says that it is this run's merged model")
            advance(1)
    return proven[0] if len(proven) == 1 else None


def _is_of(file: Path, model_sha256: str) -> bool:
    try:
        proof = ExportProof.model_validate_json(file.with_name(f"{file.name}.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return False
    return proof.model_sha256 == model_sha256 and proof.file_sha256 == sha256_of_file(file)


def lay_out(model: ServedModel, cache: Path) -> ServedFolder:
    """Lay a model out as a hub cache with links to its weights and settings of its own.

    Raises:
        DataError: no chat template, or one whose date cannot be held still; or an adapter was trained with another.
    """
    source = model.folder.resolve()
    key = sha256_of_json([str(source), model.name])
    entry = cache / "served" / key
    with staged_folder(entry) as staging:
        repository = staging / f"models--{model.name}"
        snapshot = repository / "snapshots" / key[:40]
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(key[:40], encoding="utf-8")
        for path in sorted(source.iterdir()):
            if path.is_file() and is_of_base(path.name):
                (snapshot / path.name).symlink_to(path.resolve())
        renderer = Renderer(load_tokenizer(source))
        check_same_prompts(renderer, model.adapters)
        _put(snapshot / TEMPLATE_FILE, dated_template(renderer, str(model.folder)))
        _put(snapshot / SETTINGS_FILE, json.dumps(_settings(source, renderer), indent=2) + "\n")
    return ServedFolder(entry, entry / snapshot.relative_to(staging))


def dated_template(renderer: Renderer, where: str) -> str:
    """Return the chat template with the date that training put into it.

    Raises:
        DataError: there is none, or it asks the clock in a way that cannot be held still.
    """
    template = renderer.tokenizer.chat_template
    if not isinstance(template, str):
        what = "several chat templates" if template else "no chat template"
        raise DataError(f"it has {what}, and a server takes chats", where=where, hint="serve a model with exactly one")
    fixed = with_fixed_date(template)
    if _ASKS_THE_CLOCK.search(fixed):
        what = "its chat template prints the day on which it is asked, and training printed another"
        raise DataError(what, where=where, hint="train with a template that takes `date_string`")
    return fixed


def check_same_prompts(renderer: Renderer, adapters: Sequence[tuple[str, Path]]) -> None:
    """Check that adapters were trained with the prompts that a server makes for all of them, those of the base.

    Raises:
        DataError: one has a chat template or tokens of its own.
    """
    expected = [renderer.prompt(probe) for probe in PROBES], renderer.stop_ids()
    for name, folder in adapters:
        if not (folder / "tokenizer.json").is_file():
            continue
        own = Renderer(load_tokenizer(folder))
        if ([own.prompt(probe) for probe in PROBES], own.stop_ids()) != expected:
            what = f"{name} was trained with another chat template or tokenizer than its base has"
            raise DataError(what, where=str(folder), hint="merge it (finetune adapter merge), and serve the result")


def _settings(source: Path, renderer: Renderer) -> dict[str, object]:
    file = source / SETTINGS_FILE
    stated = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    kept = {name: value for name, value in stated.items() if name not in _OF_DRAWING}
    stops = list(renderer.stop_ids())
    return kept | DRAWING | {"eos_token_id": stops, "pad_token_id": stops[0]}


def _put(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)  # a link: what it points to is not ours to write
    path.write_text(text, encoding="utf-8")


def _name(path: Path) -> str:
    """Make a name of the last part of a path or hub id; `merged` is called as the folder it lies in."""
    last = path.parent.name if path.name in ("merged", "adapter") else path.name
    return _UNFIT.sub("-", last.removesuffix(".gguf")).strip("-.") or "model"
