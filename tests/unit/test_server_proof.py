"""A server is compared with the model it serves: the tokens of every prompt, and the answers up to a tie."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_model import write_tiny_base

import finetune.server_proof
from evaluation.files import write_model
from evaluation.inference import LanguageModel, load_language_model
from evaluation.model import ModelSpec
from finetune.cli import main
from finetune.errors import DataError, ProofFailed
from finetune.server_door import SERVER_PROOF_FILE, ServerAnswer, ServerProof, describe_server_proof
from finetune.server_process import Ended, ServerProcess
from finetune.server_proof import (
    ANSWER_TOKENS,
    ANSWERED,
    CONVERSATIONS,
    compare_answers,
    load_server_proof,
    prove_served,
    server_conversations,
)
from finetune.serving_choice import Choice
from finetune.serving_model import Asked, ServedModel

PROOF = ServerProof(
    server="transformers", version="5.23.0", model_sha256="a", conversations=64, prompt_tokens=4000,
    answers=8, answer_tokens=32, equal=7, stopped=3, largest_gap=0.01,
)  # fmt: skip


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    torch.manual_seed(0)
    base = write_tiny_base(tmp_path_factory.mktemp("base"))
    return load_language_model(ModelSpec(base, dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def answers(own: LanguageModel) -> list[ServerAnswer]:
    """What a server that is right says."""
    asked = server_conversations(own)
    return [
        ServerAnswer(one.text, len(own.renderer.prompt(prompt)), "stop" if one.stopped else "length")
        for prompt, one in zip(asked, own.generate(asked, ANSWER_TOKENS), strict=True)
    ]


def test_a_server_that_is_right(own: LanguageModel, answers: list[ServerAnswer]) -> None:
    asked = server_conversations(own)
    assert len(asked) == CONVERSATIONS
    tokens, gaps = compare_answers(own, "a server", asked, answers)
    assert tokens == sum(len(own.renderer.prompt(one)) for one in asked)
    assert gaps == []


@pytest.mark.parametrize("number", [0, CONVERSATIONS - 1])
def test_a_token_too_many_is_refused(own: LanguageModel, answers: list[ServerAnswer], number: int) -> None:
    wrong = list(answers)
    wrong[number] = replace(wrong[number], prompt_tokens=wrong[number].prompt_tokens + 1)
    with pytest.raises(ProofFailed, match=r"a server makes .* tokens of a conversation, and scoring"):
        compare_answers(own, "a server", server_conversations(own), wrong)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("fever fever fever", "length"), ("", "stop")],
    ids=["another answer", "stops at once"],
)
def test_another_answer_is_refused(own: LanguageModel, answers: list[ServerAnswer], text: str, reason: str) -> None:
    wrong = [replace(answers[0], text=text, finish_reason=reason), *answers[1:]]
    with pytest.raises(ProofFailed, match="a server answers otherwise than the model"):
        compare_answers(own, "a server", server_conversations(own), wrong)


def test_an_answer_that_does_not_stop_is_refused(own: LanguageModel, answers: list[ServerAnswer]) -> None:
    other = {"stop": "length", "length": "stop"}
    wrong = [replace(answers[0], finish_reason=other[answers[0].finish_reason]), *answers[1:]]
    with pytest.raises(ProofFailed, match="answers otherwise"):
        compare_answers(own, "a server", server_conversations(own), wrong)


def test_a_tie_that_rounding_breaks_is_counted(
    own: LanguageModel, answers: list[ServerAnswer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune.server_proof, "LARGEST_GAP", 1e3)
    other = [replace(answers[0], text="fever"), *answers[1:]]
    _, gaps = compare_answers(own, "a server", server_conversations(own), other)
    assert len(gaps) == 1
    assert 0 < gaps[0] < 1e3
    assert ANSWERED - len(gaps) == 7


def test_a_proof_of_another_model_or_a_damaged_one_is_none(tmp_path: Path) -> None:
    assert load_server_proof(tmp_path, "a") is None
    write_model(tmp_path / SERVER_PROOF_FILE, PROOF)
    assert load_server_proof(tmp_path, "a") == PROOF
    assert load_server_proof(tmp_path, "b") is None
    (tmp_path / SERVER_PROOF_FILE).write_text("{}")
    assert load_server_proof(tmp_path, "a") is None
    assert "7/8 answers equal, parted at gaps of at most 0.010 logits" in describe_server_proof(PROOF)


@pytest.mark.parametrize("number", [2, 15])
def test_a_proof_that_is_interrupted_ends_with_a_line_and_writes_nothing(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def interrupted(*_: object) -> Iterator[ServerProcess]:
        raise Ended(number)
        yield

    model = write_tiny_base(tmp_path / "model")
    monkeypatch.setattr(finetune.server_proof, "started", interrupted)
    monkeypatch.setattr(finetune.server_proof, "choose_server", lambda *_: Choice("transformers", ()))
    monkeypatch.setattr(finetune.server_proof, "find_served", lambda *_: ServedModel("tiny", model))
    before = sorted(model.iterdir())
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(model), "--prove", "--cache", str(tmp_path / "cache")])
    assert ended.value.code == 128 + number
    assert sorted(model.iterdir()) == before


def test_one_model_in_a_folder_is_proven(tmp_path: Path) -> None:
    for asked in (Asked("hub/model"), Asked(str(tmp_path), adapters=("a",))):
        with pytest.raises(DataError, match="in whose folder the proof is written"):
            prove_served(asked, None, tmp_path)
