"""A staged folder as `finetune publish` writes them: a tiny base, an adapter that changes it, card and publish.json."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tiny_model import CHATML, build_tokenizer, write_tiny_base

from evaluation.conversation import Message
from evaluation.files import write_model
from evaluation.model import ModelSpec, load_base
from finetune.bases import hash_published_base
from finetune.plain_answers import wrong_answers
from finetune.publish_manifest import (
    MANIFEST_FILE,
    Manifest,
    PublishedAnswer,
    PublishedBase,
    PublishedScore,
    describe_files,
)

CARD = """---
license: apache-2.0
library_name: peft
pipeline_tag: text-generation
tags:
- lora
model-index:
- name: tiny
  results:
  - task:
      type: text-generation
    dataset:
      type: held-out
      name: held_out
    metrics:
    - type: exact_match
      value: 0.75
---
# tiny

An adapter for tests.
"""
QUESTIONS = ("Which chapter does this diagnosis belong to?", "yes or no?")


@dataclass(frozen=True)
class Staged:
    """A staged folder with the base that its adapter belongs to."""

    folder: Path
    base: Path


def write_staged(place: Path, name: str = "tiny") -> Staged:
    """Write a base and a staged folder beside it."""
    staged = Staged(place / "staged", write_tiny_base(place / "base"))
    write_adapter(staged.base, staged.folder)
    build_tokenizer().save_pretrained(staged.folder)
    (staged.folder / "README.md").write_text(CARD, encoding="utf-8")
    (staged.folder / "LICENSE").write_text("Apache License 2.0\n", encoding="utf-8")
    write_manifest(staged, name)
    return staged


def write_adapter(base: Path, folder: Path) -> None:
    """Write a LoRA whose every factor is drawn at random."""
    torch.manual_seed(1)
    model = load_base(ModelSpec(base, dtype="float32", device="cpu"))
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.peft_config["default"].base_model_name_or_path = "tiny-base"
    adapted.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def write_manifest(staged: Staged, name: str = "tiny", scores: tuple[PublishedScore, ...] = ()) -> Manifest:
    """Write publish.json over what the folder holds, with the answers that it gives."""
    asked = tuple(
        PublishedAnswer(messages=(Message(role="user", content=text),), answer="", tokens=8) for text in QUESTIONS
    )
    manifest = Manifest(
        name=name,
        parts=("adapter",),
        base=PublishedBase(model="tiny-base", revision=None, sha256=hash_published_base(staged.base)),
        dtype="float32",
        quantization=None,
        template_sha256=hashlib.sha256(CHATML.encode()).hexdigest(),
        seed=0,
        versions={},
        scores=scores,
        answers=asked,
        files=describe_files(staged.folder),
    )
    answers = tuple(
        question.model_copy(update={"answer": line.rpartition(" became ")[2][1:-1]})
        for question, line in zip(asked, wrong_answers(staged.folder, manifest, staged.base), strict=True)
    )
    manifest = manifest.model_copy(update={"answers": answers})
    write_model(staged.folder / MANIFEST_FILE, manifest)
    return manifest


def restage(folder: Path) -> None:
    """Write publish.json anew after a file was changed."""
    from finetune.publish_manifest import load_manifest

    manifest = load_manifest(folder)
    write_model(folder / MANIFEST_FILE, manifest.model_copy(update={"files": describe_files(folder)}))
