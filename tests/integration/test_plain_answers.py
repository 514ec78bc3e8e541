"""Published answers asked again by plain transformers: with the same words, and ended where they ended."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from talkative import ANSWERS, TUNED, talkative_run
from tiny_model import build_tokenizer

from evaluation.conversation import Message
from finetune.plain_answers import wrong_answers
from finetune.publish_manifest import Manifest, Part, PublishedAnswer, PublishedBase

ELSEWHERE = '{"eos_token_id": 0, "pad_token_id": 0}'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talkative_run(tmp_path_factory)


def manifest(part: Part, answer: str) -> Manifest:
    asked = tuple(
        PublishedAnswer(messages=(Message(role="user", content=text),), answer=answer, tokens=32) for text in ANSWERS
    )
    return Manifest(
        name="tiny",
        parts=(part,),
        base=PublishedBase(model="base", revision=None, sha256="0" * 64),
        dtype="float32",
        quantization=None,
        template_sha256="0" * 64,
        seed=0,
        versions={},
        scores=(),
        answers=asked,
        files=(),
    )


def test_a_merged_model_that_writes_on_after_its_answer_is_wrong(run: Path, tmp_path: Path) -> None:
    merged = Path(shutil.copytree(run / "merged", tmp_path / "merged"))
    assert wrong_answers(merged, manifest("merged", TUNED), None) == []
    assert all(" became " in line for line in wrong_answers(merged, manifest("merged", "Paris."), None))
    (merged / "generation_config.json").write_text(ELSEWHERE)
    wrong = wrong_answers(merged, manifest("merged", TUNED), None)
    assert len(wrong) == len(ANSWERS)
    assert all("the model wrote on" in line for line in wrong)


def test_an_adapter_is_asked_with_the_stops_of_its_card(run: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(run.parent / "base", tmp_path / "base"))
    (base / "generation_config.json").write_text(ELSEWHERE)
    adapter = Path(shutil.copytree(run / "adapter", tmp_path / "adapter"))
    tokenizer = build_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(adapter)
    assert wrong_answers(adapter, manifest("adapter", TUNED), base) == []
