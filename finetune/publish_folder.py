"""Fills a folder with what is published of a run, looks through it, and says what is in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from evaluation.conversation import Message
from evaluation.files import write_model
from evaluation.inference import LanguageModel
from evaluation.model import Quantization
from evaluation.rendering import Renderer
from finetune.bases import ResolvedBase, hash_published_base
from finetune.console import Reporter
from finetune.errors import DataError
from finetune.licences import Decision
from finetune.publish_answers import ANSWERS, QUESTIONS, answer_questions, load_for_answers
from finetune.publish_card import CardInputs, write_card
from finetune.publish_licence import write_licence_files
from finetune.publish_manifest import (
    MANIFEST_FILE,
    MERGED_FOLDER,
    Manifest,
    PublishedAnswer,
    PublishedBase,
    describe_files,
)
from finetune.publish_parts import write_adapter_part, write_merged_part
from finetune.publish_private import Private
from finetune.publish_records import base_name, published_scores, write_records
from finetune.publish_rows import RowTexts, collect_rows, public_labels
from finetune.publish_scan import refuse_findings, scan_folder, scan_text
from finetune.publish_settings import PublishSettings
from finetune.recipe import Recipe
from finetune.report_contents import Report
from finetune.row_template_files import hash_row_template, is_template_file
from finetune.run_directory import RunDirectory
from finetune.run_lock import Lock
from finetune.server_door import SERVER_PROOF_FILE, ServerProof

GGUF_FOLDER = "gguf"


@dataclass(frozen=True)
class Finished:
    """A finished run that may be published, and what was decided about it."""

    run: RunDirectory
    report: Report
    """Without rows and paths."""
    recipe: Recipe
    """As it was run, with paths."""
    lock: Lock
    base: ResolvedBase
    decision: Decision
    settings: PublishSettings
    served: ServerProof | None = None
    """Of the merged model, where it is published."""


def fill_folder(folder: Path, finished: Finished, private: Private, reporter: Reporter) -> Manifest:
    """Write everything into a folder, publish.json last, look through it, and return what publish.json says.

    Raises:
        DataError: there is something in it that must not be published.
    """
    settings, run = finished.settings, finished.run
    model_name, commit = base_name(finished.lock)
    base = PublishedBase(model=model_name, revision=commit, sha256=hash_published_base(finished.base.folder))
    gguf = _write_parts(finished, folder, base)
    write_records(folder, finished.report, finished.lock)
    _write_row_templates(run, finished.recipe, folder)
    write_licence_files(folder, finished.decision, finished.base.folder, settings.license_files)
    model = load_for_answers(folder if "adapter" in settings.parts else run.merged, finished.base.folder)
    with reporter.bar("read the rows", 1) as advance:
        rows = collect_rows(run, model.renderer, _shared_texts(finished, model.renderer))
        advance(1)
    answers = _answers(settings, model, (private, rows), reporter)
    manifest = _manifest(finished, base, answers, model.renderer)
    rendered = _rendered(model.renderer, answers)
    write_card(
        folder,
        CardInputs(manifest, finished.report, finished.decision, settings, rendered, gguf, finished.served),
        model.renderer,
    )
    manifest = manifest.model_copy(update={"files": describe_files(folder)})
    write_model(folder / MANIFEST_FILE, manifest)
    _scan(folder, private, rows, reporter)
    return manifest


def _write_parts(finished: Finished, folder: Path, base: PublishedBase) -> tuple[str, ...]:
    """Write adapter, merged model and GGUF files, each with its proof; return the paths of the last."""
    run, settings = finished.run, finished.settings
    if "adapter" in settings.parts:
        write_adapter_part(run, folder, base)
    if "merged" in settings.parts:
        merged = folder / MERGED_FOLDER if "adapter" in settings.parts else folder
        write_merged_part(run, merged)
        if finished.served is not None:
            write_model(merged / SERVER_PROOF_FILE, finished.served)
    if not settings.gguf:
        return ()
    from finetune.exporting import Extras, export_model

    name = settings.name.rpartition("/")[2]
    (folder / GGUF_FOLDER).mkdir()
    paths = tuple(f"{GGUF_FOLDER}/{name}-{kind}.gguf" for kind in settings.gguf)
    for path, kind in zip(paths, settings.gguf, strict=True):
        export_model(run.folder, folder / path, kind, Extras(name=name))
    return paths


def _write_row_templates(run: RunDirectory, recipe: Recipe, folder: Path) -> None:
    """Write the row templates that are files of the publisher's, under the last part of their names.

    Raises:
        DataError: one is not as it was when the rows were prepared, or its name is taken.
    """
    marker = run.marker("prepare")
    for name in dict.fromkeys(source.rows for source in recipe.data.sources if is_template_file(source.rows)):
        path = Path(name)
        found = hash_row_template(name)
        if marker is None or marker.inputs.get(name) != found:
            raise DataError("the row template is no longer the one that the rows were read with", where=name)
        if (folder / path.name).exists():
            hint = "name the two files differently, and run it again"
            raise DataError(f"two files that are published are called {path.name}", where=name, hint=hint)
        shutil.copyfile(path, folder / path.name)


def _answers(
    settings: PublishSettings, model: LanguageModel, known: tuple[Private, RowTexts], reporter: Reporter
) -> tuple[PublishedAnswer, ...]:
    if settings.parts == ("gguf",):  # another program reads it, and rounds otherwise
        return ()
    private, rows = known
    with reporter.bar("answer", ANSWERS) as advance:
        return answer_questions(model, lambda text: not scan_text(text, private, rows), advance)


def _manifest(
    finished: Finished, base: PublishedBase, answers: tuple[PublishedAnswer, ...], renderer: Renderer
) -> Manifest:
    recipe, settings = finished.report.recipe, finished.settings
    quantization = recipe.quantization
    stored = str(Quantization(quantization.kind, quantization.double_quant)) if quantization else None
    return Manifest(
        name=settings.name,
        parts=settings.parts,
        base=base,
        dtype=recipe.base.dtype,
        quantization=stored,
        template_sha256=sha256(str(renderer.tokenizer.chat_template or "").encode()).hexdigest(),
        seed=recipe.seed,
        versions=finished.lock.versions,
        scores=published_scores(finished.report),
        answers=answers,
        files=(),
    )


def _rendered(renderer: Renderer, answers: tuple[PublishedAnswer, ...]) -> str:
    """Show a conversation as the model sees it; the question alone where the base has no chat template."""
    if not renderer.tokenizer.chat_template:
        return QUESTIONS[0]
    answer = answers[0].answer if answers else "Paris."
    messages = (Message(role="user", content=QUESTIONS[0]), Message(role="assistant", content=answer))
    return renderer.chat_text(messages, ask=False)


def _shared_texts(finished: Finished, renderer: Renderer) -> Iterator[str]:
    """Texts that stand in rows and may be shown: classes, the recipe's own words, what templates put around rows."""
    yield from public_labels(finished.report.audit, finished.settings.public_labels)
    yield finished.report.recipe.model_dump_json(indent=1)
    yield str(renderer.tokenizer.chat_template or "")


def _scan(folder: Path, private: Private, rows: RowTexts, reporter: Reporter) -> None:
    count = sum(path.is_file() for path in folder.rglob("*"))
    with reporter.bar("look through every byte", count) as advance:
        findings = scan_folder(folder, private, rows, advance)
    refuse_findings(findings, where="what would be published")
