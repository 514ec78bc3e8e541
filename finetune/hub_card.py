"""The block of metadata on top of a model card, in the words that the Hugging Face hub knows.

What may stand in it: https://raw.githubusercontent.com/huggingface/hub-docs/main/modelcard.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from finetune.errors import DataError, ProofFailed
from finetune.publish_manifest import PublishedScore

_LANGUAGE = re.compile(r"[a-z]{2,3}|multilingual|code")
_TASK = "text-generation"


@dataclass(frozen=True)
class CardBlock:
    """What the block says."""

    name: str
    library: str
    license: str
    base_model: str | None
    """A hub id."""
    datasets: tuple[str, ...]
    """Hub ids."""
    languages: tuple[str, ...]
    tags: tuple[str, ...]
    scores: tuple[PublishedScore, ...]
    """Of the model that is published."""
    task_sha256: dict[str, str]


def card_block(block: CardBlock) -> str:
    """Return the block as YAML, without the lines of dashes around it.

    Raises:
        DataError: a language is no code of one.
    """
    for language in block.languages:
        if not _LANGUAGE.fullmatch(language):
            raise DataError(f"{language!r} is no language", where="--language", hint="two or three letters, such as en")
    data = ModelCardData(
        base_model=block.base_model,
        datasets=list(block.datasets) or None,
        language=list(block.languages) or None,
        library_name=block.library,
        license=block.license,
        model_name=block.name.rpartition("/")[2],
        pipeline_tag=_TASK,
        tags=list(block.tags) or None,
        eval_results=[_result(score, block.task_sha256) for score in block.scores] or None,
    )
    return data.to_yaml()


def check_card(path: Path) -> None:
    """Check what can be checked of a card without the hub: it is read, and written again as it was.

    Raises:
        ProofFailed: the hub's own client reads other metadata than was written.
    """
    card = ModelCard.load(path)
    again = ModelCard(str(card))
    if str(again.data) != str(card.data) or not card.data.license or not card.text.strip():
        raise ProofFailed("the card's metadata is not read back as it was written", where=str(path.name))


def _result(score: PublishedScore, task_sha256: dict[str, str]) -> EvalResult:
    return EvalResult(
        task_type=_TASK,
        task_name="Text Generation",
        dataset_type=_identifier(score.task),
        dataset_name=f"{score.task} (n = {score.samples})",
        dataset_args={"sha256": task_sha256[score.task]},
        metric_type=score.metric,
        metric_name=f"{score.metric}, 95 % interval {score.low:.4g} to {score.high:.4g}",
        metric_value=round(score.value, 6),
        verified=False,
    )


def _identifier(task: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", task)


def hub_datasets(sources: Sequence[str]) -> tuple[str, ...]:
    """Return the ids of those sources that are data sets of the hub."""
    return tuple(dict.fromkeys(source.removeprefix("hub:") for source in sources if source.startswith("hub:")))
