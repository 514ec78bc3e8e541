"""A tiny model that answers a few questions and stops, an adapter for it, and the folder of a run with both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from tiny_model import build_model, build_tokenizer
from transformers import LlamaForCausalLM

from evaluation.batching import pad_examples
from evaluation.conversation import Conversation, Message
from evaluation.files import write_model
from evaluation.rendering import Renderer
from finetune.bases import hash_model_folder
from finetune.run_lock import Lock

ANSWERS = {
    "Which word is it?": "It is fever.",
    "And in Chinese?": "发烧，咳嗽。",
    "Show me a face.": "🙂 é 👩🏽‍⚕️ ok",
    "Count.": "one\n  two\n\nthree",
}
"""What the base was taught, by question."""
TUNED = "It is a clause."
"""What the adapter answers to everything."""


def asked(*texts: str) -> Conversation:
    """Make a prompt of user and assistant turns in order."""
    roles = ("user", "assistant")
    return Conversation(messages=tuple(Message(role=roles[i % 2], content=text) for i, text in enumerate(texts)))


def talkative_run(factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run, made once in a session; its base and another adapter, `loud`, lie beside it."""
    folder = factory.getbasetemp() / "talkative"
    if not folder.exists():
        write_talkative_run(folder)
        write_talkative_adapter(folder / "base", folder / "loud", seed=1)
    return folder / "run"


def write_talkative_base(folder: Path) -> Path:
    """Write a base that gives `ANSWERS`, learnt in a second."""
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer))
    _teach(model, Renderer(tokenizer), ANSWERS, steps=90)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_talkative_adapter(base: Path, folder: Path, seed: int = 0) -> Path:
    """Write an adapter of the base that answers `TUNED`, as plain peft does; `seed` 1 has it answer in capitals."""
    torch.manual_seed(seed)
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(base), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    )
    tokenizer = build_tokenizer()
    answer = TUNED.upper() if seed else TUNED
    _teach(model, Renderer(tokenizer), dict.fromkeys(ANSWERS, answer), steps=60)
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(folder)
    return folder


def write_talkative_run(folder: Path) -> Path:
    """Write what `finetune chat` and `finetune serve` read of a run: recipe, lock, adapter, merged model."""
    base = write_talkative_base(folder / "base")
    run = folder / "run"
    adapter = write_talkative_adapter(base, run / "adapter")
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), LoraConfig.from_pretrained(str(adapter)))
    model.load_adapter(str(adapter), "default")
    merged = model.merge_and_unload()
    merged.save_pretrained(run / "merged")
    build_tokenizer().save_pretrained(run / "merged")
    recipe = {
        "version": 1,
        "name": "tiny",
        "base": {"model": str(base), "dtype": "float32"},
        "adapter": {"kind": "lora", "rank": 8},
        "data": {"train": [{"source": "rows.csv", "rows": "alpaca"}], "held_out": {"fraction": 0.2}},
        "merge": {"dtype": "float32"},
    }
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    sha256 = hash_model_folder(base)
    lock = Lock(
        recipe_sha256="0" * 64, base=str(base), base_revision=None, base_sha256=sha256, base_origin="a local folder",
        sources={}, seed=0, versions={},
    )  # fmt: skip
    write_model(run / "recipe.lock.json", lock)
    return run


def _teach(model: torch.nn.Module, renderer: Renderer, answers: dict[str, str], steps: int) -> None:
    examples = [renderer.example(asked(question, answer)) for question, answer in answers.items()]
    ids, labels, mask = pad_examples(examples, renderer.stop_ids()[0])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(steps):
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
