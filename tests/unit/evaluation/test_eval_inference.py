from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny_model import SENTENCES, write_tiny_base
from transformers import AutoModelForCausalLM

from evaluation import inference
from evaluation.batching import PADDING_TOKENS, batches_by_length, pad_examples
from evaluation.conversation import Conversation, Message
from evaluation.errors import TaskError
from evaluation.inference import (
    UNSUPPORTED_LOGIT_SCALING,
    LanguageModel,
    answer_example,
    load_language_model,
)
from evaluation.long_texts import split_example
from evaluation.model import ModelSpec, load_model
from evaluation.option_tree import build_option_tree, pad_trees
from evaluation.rendering import IGNORE, Example, Renderer
from evaluation.shared_prefix import NOTHING_SHARED

OPTIONS = ("yes", "no", "Diseases of the eye", "x", "Diseases of the ear; neoplasms")
QUESTIONS = [" ".join(sentence.split()[: 2 + i]) for i, sentence in enumerate(SENTENCES * 2)]


def ask(text: str) -> Conversation:
    return Conversation(messages=(Message(role="user", content=text),))


PROMPTS = [ask(text) for text in QUESTIONS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"), seed=3)


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return load_language_model(ModelSpec(folder, dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def adapted(folder: Path) -> LanguageModel:
    base = load_model(ModelSpec(folder, dtype="float32", device="cpu"))
    torch.manual_seed(0)
    wrapped = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    return LanguageModel(wrapped.eval(), load_language_model(ModelSpec(folder, device="cpu")).renderer)


@torch.inference_mode()
def log_likelihood_alone(model: LanguageModel, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    """The answer by itself through the model's own head, one row, no padding."""
    logits = model.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double()
    chosen = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1].gather(1, torch.tensor(answer)[:, None])
    return float(chosen.sum())


# ------------------------------------------------------------------ options


@pytest.mark.parametrize("which", ["model", "adapted"])
def test_option_in_the_tree_scores_as_it_would_alone(which: str, request: pytest.FixtureRequest) -> None:
    model: LanguageModel = request.getfixturevalue(which)
    found = model.option_log_likelihoods(PROMPTS[:6], OPTIONS)
    for prompt, row in zip(PROMPTS, found, strict=False):
        ids = model.renderer.prompt(prompt)
        alone = [log_likelihood_alone(model, ids, model.renderer.answer(prompt, option)) for option in OPTIONS]
        assert row == pytest.approx(alone, rel=1e-5, abs=1e-5)
        assert len({round(value, 3) for value in row}) == len(OPTIONS)


@pytest.mark.parametrize("which", ["model", "adapted"])
@pytest.mark.parametrize("wrote", ["an option", "something else"])
def test_the_likeliest_option_is_that_of_weighing_all_of_them(
    which: str, wrote: str, request: pytest.FixtureRequest
) -> None:
    model: LanguageModel = request.getfixturevalue(which)
    references = [OPTIONS[i % len(OPTIONS)] for i in range(len(PROMPTS))]
    written = [OPTIONS[i % 3] if wrote == "an option" else "maybe" for i in range(len(PROMPTS))]
    choices = model.choose(PROMPTS, OPTIONS, references, written)
    losses = model.answer_losses(PROMPTS, references)
    for row, choice, loss in zip(model.option_log_likelihoods(PROMPTS, OPTIONS), choices, losses, strict=True):
        assert choice.likeliest == row.index(max(row))
        assert choice.weighed == pytest.approx({i: row[i] for i in choice.weighed}, rel=1e-5, abs=1e-5)
        assert choice.reference.nll == pytest.approx(loss.nll, rel=1e-5, abs=1e-5)
        assert choice.reference.tokens == loss.tokens
    every = len(OPTIONS) * len(PROMPTS)
    assert (sum(len(choice.weighed) for choice in choices) < every) == (wrote == "an option")


def test_adapter_is_applied(model: LanguageModel, adapted: LanguageModel) -> None:
    plain, tuned = (one.option_log_likelihoods(PROMPTS[:1], OPTIONS)[0] for one in (model, adapted))
    assert max(abs(a - b) for a, b in zip(plain, tuned, strict=True)) > 0.1


@pytest.mark.parametrize("most_tokens", [1, 64, 150, 4096])
def test_batch_and_order_change_no_figure(
    model: LanguageModel, most_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [SENTENCES[i % 5][: 4 + i] for i in range(len(PROMPTS))]
    options, losses = model.option_log_likelihoods(PROMPTS, OPTIONS), model.answer_losses(PROMPTS, answers)
    order = list(range(len(PROMPTS)))
    random.Random(most_tokens).shuffle(order)
    monkeypatch.setattr(inference, "BATCH_TOKENS", most_tokens)
    shuffled = [PROMPTS[i] for i in order]
    other_options = model.option_log_likelihoods(shuffled, OPTIONS)
    other_losses = model.answer_losses(shuffled, [answers[i] for i in order])
    for place, i in enumerate(order):
        assert other_options[place] == pytest.approx(options[i], rel=1e-6, abs=1e-5)
        assert other_losses[place].nll == pytest.approx(losses[i].nll, rel=1e-6, abs=1e-5)
        assert other_losses[place].tokens == losses[i].tokens


def test_padding_and_sister_options_are_seen_by_none(model: LanguageModel) -> None:
    trees = [build_option_tree((1, 5, 6), ((7, 8, 2), (9, 2))), build_option_tree((1, 5, 6, 4, 4, 4, 4), ((7, 2),))]
    batch = pad_trees(trees, 0, 2, torch.float32)
    assert batch.input_ids_BT[0].tolist() == [1, 5, 6, 7, 8, 9, 2, 2]  # the last token of an option is left out
    assert batch.position_ids_BT[0, :6].tolist() == [0, 1, 2, 3, 4, 3]
    visible = batch.attention_B1TS[0, 0] == 0
    assert [row.nonzero().flatten().tolist() for row in visible] == [
        [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 5], [6], [7],
    ]  # fmt: skip
    assert batch.answer_lengths == (3, 2, 2)
    assert batch.targets_N.tolist() == [7, 8, 2, 9, 2, 7, 2]
    assert batch.columns_U[batch.predictor_N].tolist() == [2, 3, 4, 2, 5, 6, 7]
    assert batch.rows_U[batch.predictor_N].tolist() == [0, 0, 0, 0, 0, 1, 1]


def test_options_share_their_beginnings_and_are_seen_by_their_own_alone(model: LanguageModel) -> None:
    tree = build_option_tree((1, 5), ((7, 8, 2), (7, 9, 2), (7, 2), (6, 8, 2)))
    batch = pad_trees([tree], 0, 2, torch.float32)
    assert tree.input_ids == (1, 5, 7, 8, 9, 6, 8)  # 7 is there once, 8 once for each way that leads to it
    assert batch.position_ids_BT[0].tolist() == [0, 1, 2, 3, 3, 2, 3]
    visible = batch.attention_B1TS[0, 0] == 0
    assert [row.nonzero().flatten().tolist() for row in visible[2:]] == [
        [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 5], [0, 1, 5, 6],
    ]  # fmt: skip
    assert batch.columns_U[batch.predictor_N].tolist() == [1, 2, 3, 1, 2, 4, 1, 2, 1, 5, 6]


ANSWERS = st.lists(st.integers(40, 43), max_size=4).map(lambda tokens: (*tokens, 2))
"""Of few tokens, so that options share beginnings, and one is the beginning of another."""


@settings(max_examples=40, deadline=None)
@given(
    trees=st.lists(
        st.tuples(
            st.lists(st.integers(4, 99), min_size=1, max_size=6).map(tuple), st.tuples(ANSWERS, ANSWERS, ANSWERS)
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_options_of_any_prompts_score_in_a_batch_of_trees_as_alone(
    model: LanguageModel, trees: list[tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]]
) -> None:
    with torch.inference_mode():
        found = model._score_trees([build_option_tree(prompt, answers) for prompt, answers in trees], NOTHING_SHARED)
    for (prompt, answers), row in zip(trees, found, strict=True):
        alone = [log_likelihood_alone(model, prompt, answer) for answer in answers]
        assert row == pytest.approx(alone, rel=1e-5, abs=1e-5)


# ------------------------------------------------------------------ losses


def test_answer_loss_is_the_answer_alone(model: LanguageModel) -> None:
    answers = ["yes", "Diseases of the eye and the ear", ""]
    for prompt, answer, loss in zip(PROMPTS, answers, model.answer_losses(PROMPTS[:3], answers), strict=False):
        ids = model.renderer.answer(prompt, answer)
        assert loss.tokens == len(ids)
        assert -loss.nll == pytest.approx(log_likelihood_alone(model, model.renderer.prompt(prompt), ids), rel=1e-6)


def test_loss_counts_labelled_tokens_alone(model: LanguageModel) -> None:
    whole = Example((1, 20, 21, 22, 2), (IGNORE, IGNORE, 21, IGNORE, 2))
    (loss,) = model.example_losses([whole])
    assert loss.tokens == 2
    logits = model.model(input_ids=torch.tensor([whole.input_ids])).logits[0].double()
    expected = -torch.log_softmax(logits, -1)[[1, 3], [21, 2]].sum()
    assert loss.nll == pytest.approx(expected.item(), rel=1e-6)


def test_a_long_text_is_scored_in_pieces_and_every_token_once(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [Conversation(messages=(), layout="plain")] * 3
    texts = ["Diseases of the eye", "skin and ear " * 30, "fever"]
    whole = model.answer_losses(alone, texts)
    monkeypatch.setattr(inference, "WINDOW_TOKENS", 16)
    told: list[int] = []
    found = model.answer_losses(alone, texts, told.append)
    assert sum(told) == len(texts)
    assert [loss.tokens for loss in found] == [loss.tokens for loss in whole]
    assert found[2].nll == pytest.approx(whole[2].nll, rel=1e-6)
    renderer = model.renderer
    example = answer_example(renderer.prompt(alone[1]), renderer.answer(alone[1], texts[1]))
    pieces = split_example(example, 16)
    assert len(pieces) > 3
    assert max(len(piece.input_ids) for piece in pieces) <= 16
    assert found[1].nll == pytest.approx(sum(loss.nll for loss in model.example_losses(pieces)), rel=1e-6)
    assert found[1].nll != pytest.approx(whole[1].nll, rel=1e-6)


def test_no_text_goes_beyond_what_the_model_holds(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.causal_lm.config, "max_position_embeddings", 16)
    seen: list[int] = []
    plain = model.example_losses

    def watched(pieces: list[Example], advance: Callable[[int], None]) -> list[inference.AnswerLoss]:
        seen.extend(len(piece.input_ids) for piece in pieces)
        return plain(pieces, advance)

    monkeypatch.setattr(model, "example_losses", watched)
    model.answer_losses([Conversation(messages=(), layout="plain")], ["skin and ear " * 30])
    assert max(seen) == 16


def test_neighbour_does_not_change_a_loss(model: LanguageModel) -> None:
    first = answer_example((1, 30, 31), (40, 41, 2))
    others = [answer_example((1, *range(10, 10 + n)), (50 + n, 2)) for n in (3, 3, 3)]
    found = [model.example_losses([other, first])[1].nll for other in others]
    same_length = [model.example_losses([answer_example((1, 60 + n, 9), (8, 7, 2)), first])[1].nll for n in range(3)]
    assert len(set(same_length)) == 1
    assert max(found) - min(found) <= 1e-6


# ------------------------------------------------------------------ writing


class StopsEarly(Renderer):
    """Also stops at tokens of the test's choice: a random model seldom ends a turn."""

    extra: tuple[int, ...] = ()

    def stop_ids(self) -> tuple[int, ...]:
        return tuple(sorted({*super().stop_ids(), *self.extra}))


def plain_greedy(folder: Path, model: LanguageModel, prompt: Conversation, limit: int) -> list[int]:
    """What plain transformers writes, one prompt at a time."""
    ids = model.renderer.tokenizer.apply_chat_template(
        [message.model_dump() for message in prompt.messages],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    written = plain.generate(**ids, max_new_tokens=limit, do_sample=False, pad_token_id=2)
    return list(written[0, ids["input_ids"].shape[1] :].tolist())


def test_greedy_answers_equal_plain_transformers(folder: Path, model: LanguageModel) -> None:
    prompts = PROMPTS[:4]
    for prompt, answer in zip(prompts, model.generate(prompts, 8), strict=True):
        expected = plain_greedy(folder, model, prompt, 8)
        assert answer.tokens == len(expected)
        assert answer.text == model.renderer.tokenizer.decode(expected, skip_special_tokens=True).strip()
        assert answer.stopped == (expected[-1] == 2)


@pytest.mark.parametrize("most_tokens", [1, 60, 4096])
def test_batching_does_not_change_what_is_written(
    model: LanguageModel, most_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model.generate(PROMPTS, 5)
    monkeypatch.setattr(inference, "BATCH_TOKENS", most_tokens)
    order = list(range(len(PROMPTS)))
    random.Random(0).shuffle(order)
    assert model.generate([PROMPTS[i] for i in order], 5) == [expected[i] for i in order]


def test_answer_ends_at_the_first_stop_token(folder: Path, model: LanguageModel) -> None:
    free = plain_greedy(folder, model, PROMPTS[0], 10)
    place = next(i for i in range(2, 10) if free[i] not in free[:i])
    renderer = StopsEarly(model.renderer.tokenizer)
    renderer.extra = (free[place],)
    stopped = LanguageModel(model.causal_lm, renderer).generate(PROMPTS[:4], 10)[0]
    assert stopped.stopped
    assert stopped.tokens == place + 1
    assert stopped.text == model.renderer.tokenizer.decode(free[:place], skip_special_tokens=True).strip()


def test_answer_cut_by_the_limit_is_reported_as_such(folder: Path, model: LanguageModel) -> None:
    assert 2 not in plain_greedy(folder, model, PROMPTS[0], 3)
    (answer,) = model.generate(PROMPTS[:1], 3)
    assert not answer.stopped
    assert answer.tokens == 3


# ------------------------------------------------------------------ batches and refusals


@given(lengths=st.lists(st.integers(1, 900), max_size=40), most=st.integers(1, 9000))
def test_batches_hold_everything_once_within_the_limit(lengths: list[int], most: int) -> None:
    batches = list(batches_by_length(lengths, most))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= most
        assert max(lengths[i] for i in batch) * len(batch) - sum(lengths[i] for i in batch) <= PADDING_TOKENS
    assert [lengths[i] for batch in batches for i in batch] == sorted(lengths, reverse=True)


def test_a_batch_ends_where_its_padding_would_cost_more_than_another() -> None:
    long = 2 * PADDING_TOKENS
    less = long - PADDING_TOKENS // 2 - 1
    assert list(batches_by_length([less, long, less, less], 10**6)) == [[1, 0], [2, 3]]


def test_padding_is_on_the_right_and_unlabelled() -> None:
    ids, labels, mask = pad_examples([Example((5, 6, 2), (IGNORE, 6, 2)), Example((2,), (2,))], padding=2)
    assert ids.tolist() == [[5, 6, 2], [2, 2, 2]]
    assert labels.tolist() == [[IGNORE, 6, 2], [2, IGNORE, IGNORE]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("name", UNSUPPORTED_LOGIT_SCALING)
def test_model_that_scales_its_logits_is_refused(model: LanguageModel, name: str) -> None:
    base = model.causal_lm
    try:
        for harmless in (None, 1.0):
            setattr(base.config, name, harmless)
            LanguageModel(base, model.renderer)
        setattr(base.config, name, 0.5)
        with pytest.raises(TaskError, match=name):
            LanguageModel(base, model.renderer)
    finally:
        delattr(base.config, name)


def test_nothing_asked_is_nothing_answered(model: LanguageModel) -> None:
    assert model.generate([], 5) == []
    assert model.option_log_likelihoods([], OPTIONS) == []
    assert model.answer_losses([], []) == []
    assert model.choose([], OPTIONS, [], []) == []


@pytest.mark.parametrize("ask_for", ["generate", "option_log_likelihoods", "answer_losses"])
def test_progress_counts_every_sample(model: LanguageModel, ask_for: str) -> None:
    seen: list[int] = []
    doing: dict[str, Callable[[], object]] = {
        "generate": lambda: model.generate(PROMPTS, 2, seen.append),
        "option_log_likelihoods": lambda: model.option_log_likelihoods(PROMPTS, OPTIONS, seen.append),
        "answer_losses": lambda: model.answer_losses(PROMPTS, ["no"] * len(PROMPTS), seen.append),
    }
    doing[ask_for]()
    assert sum(seen) == len(PROMPTS)


def test_adapter_folder_brings_its_own_tokenizer(folder: Path, adapted: LanguageModel, tmp_path: Path) -> None:
    adapted.model.save_pretrained(str(tmp_path))
    spec = ModelSpec(folder, tmp_path, dtype="float32", device="cpu")
    assert load_language_model(spec).renderer.prompt(PROMPTS[0]) == adapted.renderer.prompt(PROMPTS[0])
    tokenizer = load_language_model(spec).renderer.tokenizer
    tokenizer.chat_template = "{{ 'hello ' }}" + tokenizer.chat_template
    tokenizer.save_pretrained(str(tmp_path))
    renderer = load_language_model(spec).renderer
    assert renderer.text(renderer.prompt(PROMPTS[0])).startswith("hello ")
