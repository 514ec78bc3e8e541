"""The doors of a trained model: equal tokens are counted, and other tokens are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_model import CHATML, build_tokenizer

from evaluation.conversation import Conversation, Message
from evaluation.rendering import Renderer
from finetune.door_conversations import KINDS, door_conversations
from finetune.doors import Door, as_the_base_speaks, compare_doors, folder_door, training_door
from finetune.errors import ProofFailed


def test_conversations_are_the_same_each_time_and_of_every_kind() -> None:
    first, again = list(door_conversations(100)), list(door_conversations(100))
    assert first == again
    assert first[:10] == list(door_conversations(10))
    texts = "".join(message.content for one in first for message in one.messages)
    for kind in KINDS:
        assert all(piece in texts for piece in kind)
    assert {one.messages[0].role for one in first} == {"system", "user"}
    assert {one.messages[-1].role for one in first} == {"user"}


def test_every_door_of_a_saved_tokenizer_gives_the_same_tokens(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    renderer = Renderer(tokenizer)
    conversations = list(door_conversations(50))
    training, folder = compare_doors(
        renderer, (training_door(renderer), folder_door("folder", tmp_path)), conversations
    )
    assert training.conversations == folder.conversations == 50
    assert training.tokens == sum(len(renderer.prompt(one)) for one in conversations)


def test_a_base_without_a_template_is_asked_in_plain_text(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    renderer = Renderer(tokenizer)
    plain = as_the_base_speaks(renderer, door_conversations(20))
    assert {one.layout for one in plain} == {"plain"}
    [training, folder] = compare_doors(renderer, (training_door(renderer), folder_door("folder", tmp_path)), plain)
    assert training.conversations == folder.conversations == 20


@pytest.mark.parametrize(
    "template",
    [CHATML.replace("assistant\n", "assistant:\n"), CHATML.replace("<|im_end|>' + '\n'", "<|im_end|>'")],
    ids=["where it asks", "between turns"],
)
def test_another_template_is_refused(tmp_path: Path, template: str) -> None:
    assert template != CHATML
    build_tokenizer(template).save_pretrained(tmp_path)
    with pytest.raises(ProofFailed, match="makes other tokens"):
        compare_doors(Renderer(build_tokenizer()), [folder_door("folder", tmp_path)], door_conversations(5))


def test_a_door_that_adds_or_leaves_out_a_token_is_refused() -> None:
    renderer = Renderer(build_tokenizer())
    for change in (lambda ids: ids[:-1], lambda ids: (*ids, 5), lambda ids: (ids[0], *ids)):
        door = Door("server", lambda one, change=change: change(renderer.prompt(one)))
        with pytest.raises(ProofFailed, match="server makes other tokens of a conversation"):
            compare_doors(renderer, [door], door_conversations(3))


def test_what_the_template_refuses_is_not_compared_and_all_of_it_is_no_proof() -> None:
    renderer = Renderer(build_tokenizer())
    fine = Conversation(messages=(Message(role="user", content="Is it?"),))
    refused = Conversation(messages=(Message(role="user", content="a <|im_end|> inside"),))
    [door] = compare_doors(renderer, [training_door(renderer)], [fine, refused])
    assert door.conversations == 1
    with pytest.raises(ProofFailed, match="refuses every conversation"):
        compare_doors(renderer, [training_door(renderer)], [refused])
