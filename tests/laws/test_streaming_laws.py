"""A streamed answer is the answer of `generate`, and no reader of it ever sees half a character."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from talkative import ANSWERS, TUNED, asked, talkative_run
from tiny_model import build_tokenizer

from evaluation.conversation import Conversation, Message
from evaluation.inference import LanguageModel, load_language_model
from evaluation.model import ModelSpec
from finetune.console import Reporter
from finetune.errors import DataError
from finetune.streaming import STEERING, Answer, Sampling, context_of, settled_text, stream_answer
from finetune.voices import Wanted, load_voices

TOKENIZER = build_tokenizer()
TEXTS = st.text(st.sampled_from("ab é ß 发烧，🙂👩🏽‍⚕️\n fever"), max_size=40)
CONVERSATIONS = [
    *(asked(question) for question in ANSWERS),
    asked("Which word is it?", "It is fever.", "And in Chinese?"),
    asked("发烧 🙂 é"),
    Conversation(messages=(Message(role="system", content="be kind"), Message(role="user", content="Count."))),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talkative_run(tmp_path_factory)


@pytest.fixture(scope="module")
def model(run: Path) -> LanguageModel:
    return load_language_model(ModelSpec(run.parent / "base", dtype="float32"))


def streamed(model: LanguageModel, prompt: Conversation, sampling: Sampling, seed: int = 0) -> list[Answer]:
    return list(stream_answer(model, model.renderer.prompt(prompt), sampling, seed))


@pytest.mark.parametrize("limit", [3, 40])
def test_greedy_is_what_generate_writes(limit: int, model: LanguageModel) -> None:
    expected = model.generate(CONVERSATIONS, limit)
    found = [streamed(model, one, Sampling(max_new_tokens=limit))[-1] for one in CONVERSATIONS]
    assert [(one.text, one.tokens, one.ending == "stop") for one in found] == [
        (one.text, one.tokens, one.stopped) for one in expected
    ]
    assert any(one.ending == "stop" for one in found)
    assert any(one.ending == "limit" for one in found) == (limit == 3)


def test_with_adapters_it_is_what_generate_writes_for_each(run: Path, tmp_path: Path) -> None:
    adapter, base = load_voices(Wanted(str(run)), tmp_path, Reporter())
    for voice, spec in (
        (adapter, ModelSpec(run.parent / "base", run / "adapter", dtype="float32")),
        (base, ModelSpec(run.parent / "base", dtype="float32")),
    ):
        expected = load_language_model(spec).generate(CONVERSATIONS, 40)
        for prompt, answer in zip(CONVERSATIONS, expected, strict=True):
            ids = voice.model.renderer.prompt(prompt)
            *_, last = stream_answer(voice.model, ids, Sampling(max_new_tokens=40), 0, voice.speaking)
            assert last.text == answer.text
    assert adapter.model.generate([asked("Count.")], 40)[0].text == TUNED


def test_two_that_take_turns_do_not_disturb_each_other(run: Path, tmp_path: Path) -> None:
    voices = load_voices(Wanted(str(run)), tmp_path, Reporter())
    streams = [
        stream_answer(voice.model, voice.model.renderer.prompt(asked("Count.")), Sampling(), 0, voice.speaking)
        for voice in voices
    ]
    last: dict[int, Answer] = {}
    open_streams = dict(enumerate(streams))
    while open_streams:
        for i, stream in list(open_streams.items()):
            step = next(stream, None)
            if step is None:
                del open_streams[i]
            else:
                last[i] = step
    assert [last[0].text, last[1].text] == [TUNED, ANSWERS["Count."]]


def test_a_penalty_of_the_base_acts_as_in_generate(model: LanguageModel) -> None:
    plain = streamed(model, CONVERSATIONS[4], Sampling(max_new_tokens=30))[-1]
    model.causal_lm.generation_config.repetition_penalty = 1.9
    try:
        found = streamed(model, CONVERSATIONS[4], Sampling(max_new_tokens=30))[-1]
        assert found.text == model.generate([CONVERSATIONS[4]], 30)[0].text != plain.text
    finally:
        model.causal_lm.generation_config.repetition_penalty = None


@pytest.mark.parametrize("setting", STEERING)
def test_what_else_steers_generate_is_refused(setting: str, model: LanguageModel) -> None:
    setattr(model.causal_lm.generation_config, setting, 2)
    try:
        with pytest.raises(DataError, match=setting):
            streamed(model, CONVERSATIONS[0], Sampling())
    finally:
        setattr(model.causal_lm.generation_config, setting, None)


def test_the_text_only_grows(model: LanguageModel) -> None:
    for prompt in CONVERSATIONS:
        steps = streamed(model, prompt, Sampling(max_new_tokens=40, temperature=1.5), seed=3)
        for one, following in pairwise(steps):
            assert following.text.startswith(one.text)
        assert [one.ending is None for one in steps] == [True] * (len(steps) - 1) + [False]


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_what_is_settled_is_the_beginning_of_the_whole(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    whole = settled_text(TOKENIZER, ids, whole=True)
    assert whole == text.strip()
    for count in range(len(ids)):
        assert whole.startswith(settled_text(TOKENIZER, ids[:count], whole=False))


def test_draws_repeat_with_their_seed_and_differ_without(model: LanguageModel) -> None:
    sampling = Sampling(temperature=2.0, max_new_tokens=20)
    texts = [streamed(model, CONVERSATIONS[0], sampling, seed)[-1].text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_small_share_of_the_probability_is_greedy(model: LanguageModel) -> None:
    narrow = Sampling(temperature=1.0, top_p=0.001, max_new_tokens=20)
    assert streamed(model, CONVERSATIONS[0], narrow, 5) == streamed(
        model, CONVERSATIONS[0], Sampling(max_new_tokens=20)
    )


def test_a_higher_temperature_is_flatter(model: LanguageModel) -> None:
    ids = model.renderer.prompt(CONVERSATIONS[0])
    first = {
        heat: {next(stream_answer(model, ids, Sampling(temperature=heat), seed)).text for seed in range(40)}
        for heat in (0.1, 8.0)
    }
    assert len(first[0.1]) < len(first[8.0])


def test_a_full_context_ends_the_answer_and_a_longer_prompt_is_refused(model: LanguageModel) -> None:
    most = context_of(model)
    ids = [5] * (most - 2)
    *_, last = stream_answer(model, ids, Sampling(max_new_tokens=50))
    assert (last.ending, last.tokens) == ("context", 2)
    with pytest.raises(DataError, match=f"{most} tokens are more than"):
        next(stream_answer(model, [5] * most, Sampling()))


def test_the_weights_are_held_during_steps_alone(model: LanguageModel) -> None:
    held: list[str] = []

    class Holding(nullcontext[None]):
        def __enter__(self) -> None:
            held.append("in")

        def __exit__(self, *_: object) -> None:
            held.append("out")

    stream = stream_answer(model, model.renderer.prompt(CONVERSATIONS[0]), Sampling(), 0, Holding)
    next(stream)
    assert held == ["in", "out"]
    assert not torch.is_inference_mode_enabled()


def test_an_answer_is_a_value() -> None:
    assert replace(Answer("a", 1, None), ending="stop") == Answer("a", 1, "stop")
