"""Puts the model card together from a manifest, a report and decisions, and writes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evaluation.files import write_text
from evaluation.rendering import Renderer
from finetune.audit_records import Audit
from finetune.hub_card import CardBlock, card_block, check_card, hub_datasets
from finetune.licences import Decision
from finetune.model_card import CARD_FILE, CardFacts, render_card
from finetune.model_loading import build_loading
from finetune.publish_answers import QUESTIONS
from finetune.publish_limits import find_domain
from finetune.publish_manifest import Manifest
from finetune.publish_settings import PublishSettings
from finetune.pypi import PYPI_PREFIX
from finetune.report_contents import Report
from finetune.server_door import ServerProof

TRACE = 0.05
"""Share of the rows from which a language is named."""
TAGS = ("finetune-recipes", "llama")


@dataclass(frozen=True)
class CardInputs:
    """What the card is made from."""

    manifest: Manifest
    report: Report
    decision: Decision
    settings: PublishSettings
    rendered: str
    gguf: tuple[str, ...]
    served: ServerProof | None


def write_card(folder: Path, inputs: CardInputs, renderer: Renderer) -> None:
    """Write README.md, and check that the hub's client reads its metadata.

    Raises:
        ProofFailed: it does not.
    """
    manifest, report = inputs.manifest, inputs.report
    question = manifest.answers[0].messages[0].content if manifest.answers else QUESTIONS[0]
    template = str(renderer.tokenizer.chat_template or "")
    facts = CardFacts(
        manifest=manifest,
        report=report,
        decision=inputs.decision,
        domain=find_domain(report.recipe, report.audit, inputs.settings.domain),
        loading=build_loading(manifest, template, renderer.stop_ids(), question, inputs.gguf),
        block=card_block(_block(inputs)),
        rendered=inputs.rendered,
        gguf=inputs.gguf,
        served=inputs.served,
    )
    write_text(folder / CARD_FILE, render_card(facts))
    check_card(folder / CARD_FILE)


def _block(inputs: CardInputs) -> CardBlock:
    manifest, settings, report = inputs.manifest, inputs.settings, inputs.report
    adapter = "adapter" in manifest.parts
    on_hub = "/" in manifest.base.model and not manifest.base.model.startswith(PYPI_PREFIX)
    domain = find_domain(report.recipe, report.audit, settings.domain).domain
    published = "adapter" if adapter else "merged"
    library = "peft" if adapter else "transformers" if "merged" in manifest.parts else "gguf"
    return CardBlock(
        name=manifest.name,
        library=library,
        license=inputs.decision.licence.id,
        base_model=manifest.base.model if on_hub else None,
        datasets=hub_datasets([source.source for source in report.recipe.data.sources]),
        languages=settings.languages or _languages(report.audit),
        tags=tuple(dict.fromkeys((*TAGS, *(["lora"] if adapter else []), *_domain_tag(domain), *settings.tags))),
        scores=tuple(score for score in manifest.scores if score.contender == published),
        task_sha256={task.name: task.task_sha256 for task in report.tasks},
    )


def _languages(audit: Audit) -> tuple[str, ...]:
    """Languages of which there is more than a trace among the training rows; `und` is what could not be told."""
    told = {language: rows for language, rows in audit.languages.items() if language != "und"}
    return tuple(sorted(language for language, rows in told.items() if rows >= TRACE * sum(told.values())))


def _domain_tag(domain: str) -> tuple[str, ...]:
    return () if domain == "general" else (domain,)
