"""What all prompts begin with is read once, and nothing is different for it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import write_tiny_base

from evaluation import inference, shared_prefix
from evaluation.conversation import Conversation, Message
from evaluation.inference import LanguageModel, load_language_model
from evaluation.model import ModelSpec
from evaluation.rendering import IGNORE, Example
from evaluation.shared_prefix import NOTHING_SHARED, WORTHWHILE_TOKENS, read_prefix, shared_length

OPTIONS = ("yes", "no", "Diseases of the eye", "Diseases of the ear; neoplasms")
INSTRUCTION = "name the chapter of the diagnosis and nothing else"
QUESTIONS = ["pain in the ear", "eye", "a fracture of the skull and of the ear", "pain in the eye and in the ear, both"]
PROMPTS = [
    Conversation(messages=(Message(role="system", content=INSTRUCTION), Message(role="user", content=text)))
    for text in QUESTIONS
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load_language_model(
        ModelSpec(write_tiny_base(tmp_path_factory.mktemp("base"), seed=3), None, None, "float32", "cpu")
    )


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=40), min_size=2, max_size=5), st.integers(0, 30))
def test_it_is_the_longest_beginning_that_leaves_every_prompt_a_token(ends: list[list[int]], common: int) -> None:
    prompts = [[1] * common + end for end in ends]
    brute = max(n for n in range(min(map(len, prompts))) if len({tuple(prompt[:n]) for prompt in prompts}) == 1)
    assert shared_length(prompts) == (brute if brute >= WORTHWHILE_TOKENS else 0)


def test_one_prompt_shares_nothing_and_none_neither() -> None:
    assert shared_length([]) == shared_length([[1] * 50]) == 0


def test_nothing_shared_is_no_cache(model: LanguageModel) -> None:
    assert read_prefix(model.causal_lm, []) is NOTHING_SHARED
    assert NOTHING_SHARED.for_rows(3) is None


def test_each_batch_gets_a_cache_of_its_own(model: LanguageModel) -> None:
    prefix = read_prefix(model.causal_lm, [5] * 20)
    first, second = prefix.for_rows(2), prefix.for_rows(2)
    assert first is not None
    assert second is not None
    grown = torch.zeros(2, *first.layers[0].keys.shape[1:])
    first.update(grown, grown, 0)
    assert first.layers[0].keys.shape[2] == 40
    assert second.layers[0].keys.shape == (2, *first.layers[0].keys.shape[1:2], 20, first.layers[0].keys.shape[3])
    assert prefix.layers[0][0].shape[0] == 1


@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_every_answer_and_figure_is_what_it_is_without(
    model: LanguageModel, batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "BATCH_TOKENS", batch_tokens)
    monkeypatch.setattr(inference, "GENERATION_TOKENS", batch_tokens)
    read: list[int] = []
    plain = inference.read_prefix

    def watched(causal_lm: object, tokens: list[int]) -> object:
        read.append(len(tokens))
        return plain(causal_lm, tokens)  # type: ignore[arg-type]

    monkeypatch.setattr(inference, "read_prefix", watched)
    answers = ["yes", "no", "eye", "Diseases of the ear"]
    shared = (
        model.option_log_likelihoods(PROMPTS, OPTIONS),
        model.answer_losses(PROMPTS, answers),
        model.generate(PROMPTS, 8),
    )
    assert len(read) == 3
    assert min(read) >= WORTHWHILE_TOKENS
    monkeypatch.setattr(shared_prefix, "WORTHWHILE_TOKENS", 10**6)
    alone = (
        model.option_log_likelihoods(PROMPTS, OPTIONS),
        model.answer_losses(PROMPTS, answers),
        model.generate(PROMPTS, 8),
    )
    assert len(read) == 3
    for found, expected in zip(shared[0], alone[0], strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    for loss, other in zip(shared[1], alone[1], strict=True):
        assert loss.nll == pytest.approx(other.nll, rel=1e-5, abs=1e-5)
        assert loss.tokens == other.tokens
    assert shared[2] == alone[2]


def test_what_is_labelled_is_read_with_its_own_example(model: LanguageModel) -> None:
    whole = [Example((*[5] * 30, end, 6, 2), (*[5] * 30, end, 6, 2)) for end in (7, 8)]
    late = [Example(one.input_ids, (*[IGNORE] * 20, *one.labels[20:])) for one in whole]
    assert [loss.tokens for loss in model.example_losses(whole)] == [32, 32]
    assert [loss.tokens for loss in model.example_losses(late)] == [13, 13]
    for both in (whole, late):
        alone = [model.example_losses([one])[0].nll for one in both]
        assert [loss.nll for loss in model.example_losses(both)] == pytest.approx(alone, rel=1e-5)
