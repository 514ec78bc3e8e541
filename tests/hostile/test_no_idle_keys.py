"""A key that is accepted does something: changing it changes what a stage is made from, and the program reads it."""

from __future__ import annotations

import ast
import io
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from figures import Figures
from pydantic import BaseModel
from rich.console import Console

from finetune import pipeline
from finetune.bases import ResolvedBase
from finetune.console import Reporter
from finetune.recipe import Recipe
from finetune.recipe_file import LoadedRecipe
from finetune.run_directory import STAGES, RunDirectory
from finetune.signals import Signals

# By its path in the schema, `0` for the items of a list: the first value and another, and which stage is made anew.
# A new key needs a line here; what it changes has to be looked up, not guessed.
KEYS: dict[str, tuple[Any, Any, str]] = {
    "version": (1, 1, "none: the one format there is"),
    "name": ("a", "b", "report"),
    "description": ("", "text", "report"),
    "seed": (0, 1, "prepare"),
    "base.model": ("a", "b", "prepare"),
    "base.revision": (None, "main", "prepare"),
    "base.sha256": (None, "0" * 64, "report"),
    "base.dtype": ("float32", "bfloat16", "train"),
    "base.chat_template": (None, "chatml", "prepare"),
    "quantization.kind": ("nf4", "nf4", "none: the one kind there is"),
    "quantization.double_quant": (True, False, "train"),
    "adapter.kind": ("lora", "lora", "none: the one kind there is"),
    "adapter.variant": ("standard", "dora", "train"),
    "adapter.rank": (16, 8, "train"),
    "adapter.alpha": (32.0, 16.0, "train"),
    "adapter.dropout": (0.0, 0.1, "train"),
    "adapter.targets": ("all-linear", ["q_proj"], "train"),
    "data.train.0.source": ("a.csv", "b.csv", "prepare"),
    "data.train.0.sha256": (None, "0" * 64, "prepare"),
    "data.train.0.revision": (None, "main", "prepare"),
    "data.train.0.split": (None, "train", "prepare"),
    "data.train.0.builder": (None, "icd10-chapters", "prepare"),
    "data.train.0.rows": ("alpaca", "messages", "prepare"),
    "data.train.0.columns": ({}, {"input": "a"}, "prepare"),
    "data.train.0.limit": (None, 5, "prepare"),
    "data.train.0.weight": (None, 2.0, "prepare"),
    "data.mixing.temperature": (1.0, 2.0, "prepare"),
    "data.balance.method": ("repeat", "draw", "prepare"),
    "data.balance.maximum_ratio": (1.0, 2.0, "prepare"),
    "data.validation.fraction": (0.1, 0.2, "prepare"),
    "data.validation.by": (None, "a", "prepare"),
    "data.validation.limit": (None, 5, "prepare"),
    "data.held_out.fraction": (0.1, 0.2, "prepare"),
    "data.held_out.by": (None, "a", "prepare"),
    "data.held_out.limit": (None, 5, "prepare"),
    "data.held_out.source": ("a.csv", "b.csv", "prepare"),
    "data.held_out.sha256": (None, "0" * 64, "prepare"),
    "data.held_out.revision": (None, "main", "prepare"),
    "data.held_out.split": (None, "test", "prepare"),
    "data.held_out.builder": (None, "icd10-chapters", "prepare"),
    "data.held_out.rows": ("alpaca", "messages", "prepare"),
    "data.held_out.columns": ({}, {"input": "a"}, "prepare"),
    "data.max_tokens": (64, 128, "prepare"),
    "data.overflow": ("refuse", "drop", "prepare"),
    "data.train_on": ("assistant", "final_assistant", "prepare"),
    "data.audit.masks": ("sample", "full", "prepare"),
    "data.audit.minimum_trained_share": (0.001, 0.1, "prepare"),
    "data.audit.maximum_set_aside": (0.1, 0.2, "prepare"),
    "data.audit.maximum_truncated": (0.1, 0.2, "prepare"),
    "data.audit.maximum_duplicates": (0.5, 0.6, "prepare"),
    "data.audit.maximum_class_share": (1.0, 0.9, "prepare"),
    "data.leakage.on_overlap": ("refuse", "set_aside", "prepare"),
    "data.leakage.maximum_share": (0.01, 0.1, "prepare"),
    "data.leakage.maximum_near_share": (0.1, 0.2, "prepare"),
    "data.leakage.similarity": (0.8, 0.7, "prepare"),
    "privacy.detect": (["email"], ["phone"], "prepare"),
    "privacy.action": ("report", "replace", "prepare"),
    "privacy.region": (None, "US", "prepare"),
    "privacy.secrets": ("refuse", "set_aside", "prepare"),
    "training.epochs": (1, 2, "train"),
    "training.tokens_per_step": (8192, 64, "train"),
    "training.tokens_per_micro_batch": (None, 8, "train"),
    "training.batches": ("padded", "packed", "train"),
    "training.learning_rate": (2e-4, 1e-4, "train"),
    "training.schedule": ("cosine", "linear", "train"),
    "training.warmup_fraction": (0.03, 0.1, "train"),
    "training.weight_decay": (0.0, 0.1, "train"),
    "training.max_grad_norm": (1.0, 2.0, "train"),
    "training.validations": (None, 2, "train"),
    "training.keep": ("best", "last", "train"),
    "training.early_stopping.patience": (2, 3, "train"),
    "training.gradient_checkpointing": (False, True, "train"),
    "training.kernels": ("auto", "plain", "train"),
    "training.devices": (1, 2, "report"),
    "training.checkpoints.every_steps": (1, 2, "report"),
    "training.checkpoints.every_minutes": (1, 2, "report"),
    "merge.onto": ("best", "dequantized", "merge"),
    "merge.dtype": ("float32", "bfloat16", "merge"),
    "merge.minimum_agreement": (0.995, 0.9, "merge"),
    "merge.minimum_gain_kept": (0.9, 0.5, "merge"),
    "evaluation.tasks": (["held_out"], ["held_out", "plain_facts"], "prepare"),
    "evaluation.contenders": (None, ["base"], "evaluate"),
    "evaluation.max_new_tokens": (None, 5, "prepare"),
    "tracking": (None, "tensorboard", "train"),
}
AUGMENTED = "data.augmentation."
"""Keys of `augmentation`, whose section hangs together as a whole."""
FIRST_OF_BASE = {"base.model": "base", "base.revision": "base", "base.chat_template": "base"}
"""Keys that say which base it is: the hash of what is found goes into every stage."""
READ_BY_LIBRARIES = {"version"}
"""Keys that nobody reads by name: what else they could say is refused."""


def keys_of(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Yield the path of every key that holds a value, from the types of the schema."""
    for name, field in model.model_fields.items():
        sections = list(sections_in(field.annotation))
        below = f"{path}{name}." + ("0." if _is_list(field.annotation) else "")
        if not sections:
            yield f"{path}{name}"
        for section in sections:
            yield from keys_of(section, below)


def _is_list(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return _is_list(get_args(annotation)[0])
    return get_origin(annotation) is tuple


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections that a key may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, UnionType, tuple):
        for part in get_args(annotation):
            yield from sections_in(part)


def document_with(key: str, value: Any) -> dict[str, Any]:
    """Build a document with a value at a key, and what the key's section needs beside it."""
    held_out: dict[str, Any] = {"fraction": 0.1}
    if key.startswith("data.held_out.") and key.rpartition(".")[2] not in ("fraction", "by", "limit"):
        held_out = {"source": "h.csv", "rows": "alpaca"}
    document: dict[str, Any] = {
        "version": 1,
        "name": "a",
        "base": {"model": "a", "dtype": "float32"},
        "adapter": {"kind": "lora"},
        "data": {"train": [{"source": "a.csv", "rows": "alpaca"}], "held_out": held_out},
    }
    needed: dict[str, dict[str, Any]] = {
        "quantization": {"kind": "nf4"},
        "data.mixing": {"temperature": 1.0},
        "data.balance": {"method": "repeat"},
        "data.validation": {"fraction": 0.1},
        "training.early_stopping": {},
    }
    *sections, last = key.split(".")
    place: Any = document
    for depth, part in enumerate(sections, start=1):
        if isinstance(place, list):
            place = place[int(part)]
            continue
        place = place.setdefault(part, dict(needed.get(".".join(sections[:depth]), {})))
    place[last] = value
    return document


def inputs_of(document: dict[str, Any], folder: Path, base: str) -> dict[str, dict[str, str]]:
    """Return what each stage is made from."""
    import json

    recipe = Recipe.model_validate_json(json.dumps(document))
    loaded = LoadedRecipe(recipe, "a", Path("a.yaml"), "", (), document)
    sources = {source.source: "0" for source in recipe.data.sources}
    found = ResolvedBase(Path(base), base, ((base, "0" * 64),), "")
    reporter = Reporter(Console(file=io.StringIO()))
    run = pipeline.Run(loaded, RunDirectory(folder), folder, reporter, Signals(), found, sources, ())
    return {stage: pipeline._inputs(run, stage) for stage in STAGES}


def first_changed(key: str, folder: Path) -> str:
    """Name the first stage that a key's change has made anew; "" where none is."""
    one, other, _ = KEYS[key]
    bases = [f"{FIRST_OF_BASE[key]}{i}" if key in FIRST_OF_BASE else "base" for i in (1, 2)]
    before, after = (
        inputs_of(document_with(key, value), folder, base) for value, base in zip((one, other), bases, strict=True)
    )
    return next((stage for stage in STAGES if before[stage] != after[stage]), "")


@pytest.fixture(autouse=True)
def _finished_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunDirectory, "output_hash", lambda _, stage: stage)


def test_every_key_is_listed() -> None:
    found = {key for key in keys_of(Recipe) if not key.startswith(AUGMENTED)}
    assert found - set(KEYS) == set(), "new keys: list them with two values and the stage that they change"
    assert set(KEYS) - found == set(), "these keys are gone"


def test_changing_a_key_changes_the_stage_that_it_is_for(tmp_path: Path, figures: Figures) -> None:
    idle = []
    for key, (one, other, stage) in KEYS.items():
        if stage.startswith("none"):
            assert one == other, key
            continue
        if (found := first_changed(key, tmp_path)) != stage:
            idle.append(f"{key}: changes {found or 'nothing'}, listed as {stage}")
    figures.report(
        "Recipes",
        "changing a key changes what some stage is made from",
        len(KEYS),
        "keys",
        len(idle),
        "a key with one accepted value is left out",
    )
    assert idle == []


def attributes_read() -> set[str]:
    """Name every attribute that the program reads outside the modules that define, check and print recipes."""
    package = Path(pipeline.__file__).parent
    files = [path for path in package.glob("*.py") if not path.name.startswith(("recipe", "schema", "showing"))]
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in files)
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_every_key_is_read_where_something_is_done(figures: Figures) -> None:
    read = attributes_read()
    keys = list(keys_of(Recipe))
    unread = sorted({key for key in keys if key.rpartition(".")[2] not in read} - READ_BY_LIBRARIES)
    figures.report(
        "Recipes", "a key is read by the program outside the recipe's own modules", len(keys), "keys", len(unread)
    )
    assert unread == []
