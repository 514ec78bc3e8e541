"""A thousand conversations through every door that needs no server: the same token ids at each."""

from __future__ import annotations

from pathlib import Path

from figures import Figures
from test_chat_template_laws import renderers
from tiny_model import build_model, build_tokenizer

from evaluation.rendering import Renderer
from evaluation.tokenizer import save_tokenizer
from finetune.door_conversations import door_conversations
from finetune.doors import compare_doors, folder_door, tokenizer_door, training_door
from finetune.gguf import load_gguf
from finetune.gguf_export import export_gguf


def test_token_ids_are_the_same_at_every_door(figures: Figures, tmp_path: Path) -> None:
    count = figures.amount(50, 1000)
    conversations = list(door_conversations(count))
    compared, smallest = 0, count
    found = renderers()
    for name, renderer in found.items():
        folder = tmp_path / name
        save_tokenizer(renderer.tokenizer, folder)
        doors = compare_doors(renderer, (training_door(renderer), folder_door(name, folder)), conversations)
        compared += sum(door.conversations for door in doors)
        smallest = min(smallest, *(door.conversations for door in doors))
    note = f"{len(found)} templates; the strictest takes {smallest:,} of {count:,} conversations"
    claim = "training, scoring and plain transformers on a saved folder make the same token ids"
    figures.report("Doors", claim, compared, "conversations × doors", 0, note)
    assert smallest > count // 4


def test_token_ids_are_the_same_in_a_gguf_file(figures: Figures, tmp_path: Path) -> None:
    conversations = list(door_conversations(figures.amount(50, 1000)))
    tokenizer = build_tokenizer()
    build_model(len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    export_gguf(tmp_path / "model", tmp_path / "model.gguf", "f32", "tiny")
    _, read = load_gguf(tmp_path, "model.gguf")
    renderer = Renderer(tokenizer)
    [door] = compare_doors(renderer, [tokenizer_door("GGUF", read)], conversations)
    figures.report("Doors", "a GGUF file read back makes the same token ids", door.conversations, "conversations", 0)
    assert door.conversations == len(conversations)
