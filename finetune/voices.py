"""Who answers in a chat: a model, its adapters one at a time, and the base under them, all with one set of weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from peft import PeftModel

from evaluation.inference import LanguageModel, load_language_model
from evaluation.model import ModelSpec
from evaluation.rendering import Renderer
from evaluation.tokenizer import load_tokenizer
from finetune.base_files import open_base
from finetune.bases import resolve_base
from finetune.console import Reporter
from finetune.contenders import trained_spec
from finetune.errors import DataError, TaskError, nearest
from finetune.machine import computes_bfloat16, settle_dtypes
from finetune.merged_files import check_merged_files
from finetune.merging_shards import check_fits
from finetune.peft_config import CONFIG_FILE, load_peft_config
from finetune.peft_weights import open_peft_folder
from finetune.published import check_published_base
from finetune.recipe import Base
from finetune.recipe_file import load_recipe
from finetune.run_directory import RunDirectory
from finetune.run_lock import check_trained_base, find_run_base, load_lock

BASE = "base"
"""Name of the base under its adapters."""
_PEFTS_OWN = "default"  # how peft names the first adapter


@dataclass(frozen=True)
class Wanted:
    """Which model is asked for."""

    named: str
    """Folder of a run, of a model or of an adapter, or a base as recipes name it."""
    adapters: tuple[str, ...] = ()
    """Folders of further adapters, each as FOLDER or NAME=FOLDER."""
    merged: bool = False
    """The merged model of a run, not its adapter on the base."""
    sha256: str | None = None
    """Of a `pypi:` file."""


@dataclass(frozen=True)
class Voice:
    """One who answers."""

    name: str
    model: LanguageModel
    adapter: str | None = None
    """The adapter that is on while it speaks, as peft names it; none: all are off."""

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Hold the shared weights in this voice's form."""
        shared = self.model.model
        if not isinstance(shared, PeftModel):
            yield
        elif self.adapter is None:
            with shared.disable_adapter():
                yield
        else:
            if shared.active_adapter != self.adapter:
                shared.set_adapter(self.adapter)
            yield


def load_voices(wanted: Wanted, cache: Path, reporter: Reporter) -> tuple[Voice, ...]:
    """Load whoever was named: the first is who answers, `base` is the last where there are adapters.

    Raises:
        DataError: there is no such model, run or adapter, or they do not fit together.
        MachineError: it could not be fetched.
    """
    run = RunDirectory(Path(wanted.named))
    if run.recipe.is_file():
        return _voices_of_run(wanted, run, cache, reporter)
    if wanted.merged:
        raise DataError("--merged belongs to runs", where=wanted.named, hint="name a run's folder, or leave it out")
    adapters = [named_adapter(text) for text in wanted.adapters]
    named: str | None = wanted.named
    revision: str | None = None
    if (Path(wanted.named) / CONFIG_FILE).is_file():
        adapters = [named_adapter(wanted.named), *adapters]
        config = load_peft_config(Path(wanted.named), wanted.named)
        named, revision = config.base_model_name_or_path, config.revision
    if named is None:
        raise DataError("its settings name no base", where=wanted.named, hint="finetune chat BASE --adapter FOLDER")
    base = resolve_base(Base(model=named, revision=revision, sha256=wanted.sha256), cache, reporter.say)
    spec = ModelSpec(base.folder, dtype="bfloat16" if computes_bfloat16() else "float32")
    return _voices(spec, adapters, Path(named).name)


def check_adapter_of(folder: Path, base: Path) -> None:
    """Check an adapter whole, and that it belongs to a base.

    Raises:
        DataError: what is wrong with it.
    """
    adapter = open_peft_folder(folder)
    check_fits(open_base(base), adapter)
    check_published_base(folder, base)
    check_trained_base(folder, base)


def named_adapter(text: str) -> tuple[str, Path]:
    """Read FOLDER or NAME=FOLDER; a run's folder stands for its adapter, and gives it its name.

    Raises:
        DataError: there is no adapter in the folder.
    """
    stated, equals, path = text.partition("=")
    folder = Path(text) if not equals or Path(text).exists() else Path(path)
    inside = folder / "adapter"
    found = inside if (inside / CONFIG_FILE).is_file() else folder
    if not (found / CONFIG_FILE).is_file():
        raise DataError(
            f"no {CONFIG_FILE} in this folder", where=str(folder), hint="name an adapter's or a run's folder"
        )
    own = found.resolve()
    return (stated if folder != Path(text) else own.parent.name if own.name == "adapter" else own.name), found


def _voices_of_run(wanted: Wanted, run: RunDirectory, cache: Path, reporter: Reporter) -> tuple[Voice, ...]:
    recipe = load_recipe(str(run.recipe), []).recipe
    recipe = settle_dtypes(recipe, bfloat16=computes_bfloat16())
    if wanted.merged and wanted.adapters:
        raise DataError("a merged model takes no adapter", where=wanted.named, hint="leave out --merged or --adapter")
    if wanted.merged:
        if not run.merged.is_dir():
            raise DataError("this run is not merged yet", where=wanted.named, hint=f"finetune merge {run.recipe}")
        check_merged_files(run.merged)
        return (Voice("merged", load_language_model(ModelSpec(run.merged, dtype=recipe.merge.dtype))),)
    if not (run.adapter / CONFIG_FILE).is_file():
        raise DataError("this run is not trained yet", where=wanted.named, hint="finish it with `finetune run`")
    base = find_run_base(recipe.base, load_lock(run), cache, reporter.say)
    adapters = [(recipe.name, run.adapter), *(named_adapter(text) for text in wanted.adapters)]
    return _voices(trained_spec(recipe, run, base.folder), adapters, BASE)


def _voices(spec: ModelSpec, adapters: Sequence[tuple[str, Path]], alone: str) -> tuple[Voice, ...]:
    """Load one set of weights with all adapters on it; `alone` names it where there are none."""
    if not adapters:
        return (Voice(alone, load_language_model(spec)),)
    names = [name for name, _ in adapters]
    if len({*names, BASE}) <= len(names):
        raise TaskError(f"two of {', '.join([*names, BASE])} have one name", where="--adapter", hint="NAME=FOLDER")
    residual = [name for name, folder in adapters if load_peft_config(folder, str(folder)).residual]
    if residual and len(adapters) > 1:
        what = f"{residual[0]} changes the base when it is loaded, so that no other adapter fits it"
        raise DataError(what, where="--adapter", hint="load it alone, or merge it")
    for _, folder in adapters:
        check_adapter_of(folder, spec.path)
    first = load_language_model(ModelSpec(spec.path, adapters[0][1], spec.quantization, spec.dtype, spec.device))
    shared = cast(PeftModel, first.model)
    voices = [Voice(names[0], first, _PEFTS_OWN)]
    for number, (name, folder) in enumerate(adapters[1:], start=2):
        own = f"adapter{number}"
        shared.load_adapter(str(folder), own, local_files_only=True)
        voices.append(Voice(name, LanguageModel(shared, _renderer(folder, spec.path)), own))
    shared.eval()
    if not residual:  # without it, the base would not be the base
        voices.append(Voice(BASE, LanguageModel(shared, _renderer(spec.path, spec.path))))
    return tuple(voices)


def _renderer(folder: Path, base: Path) -> Renderer:
    return Renderer(load_tokenizer(folder if (folder / "tokenizer.json").exists() else base))


def voice_called(voices: Sequence[Voice], name: str) -> Voice:
    """Find a voice by its name.

    Raises:
        TaskError: there is none, and which is nearest.
    """
    for voice in voices:
        if voice.name == name:
            return voice
    if name == BASE:
        hint = "name a run or an adapter; a merged model and a model alone hold no base that could be laid bare"
        raise TaskError("there is no base to compare with", where=name, hint=hint)
    raise TaskError("nobody here has that name", where=name, hint=nearest(name, [voice.name for voice in voices]))
