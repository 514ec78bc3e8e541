"""Writes an answer token by token: the same ids as `LanguageModel.generate` where it is greedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import FloatTensor, LongTensor, Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from evaluation.inference import LanguageModel
from finetune.errors import DataError

Ending = Literal["stop", "limit", "context"]

STEERING = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "dola_layers",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "guidance_scale",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "num_beams",
    "penalty_alpha",
    "sequence_bias",
    "stop_strings",
    "suppress_tokens",
    "token_healing",
    "watermarking_config",
)
"""Settings of generation_config.json that `generate` obeys when it is greedy, and that are not done here."""
_WITHOUT_EFFECT: tuple[object, ...] = (None, False, 0, 1, [], {})


class Sampling(BaseModel):
    """How the next token is chosen."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    """0 takes the most probable token; larger is more varied."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Only the most probable tokens that make up this share; acts where the temperature is above 0."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 512
    """Longest answer."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the draws; the same questions with the same seed get the same answers."""


@dataclass(frozen=True)
class Answer:
    """An answer as far as it is written."""

    text: str
    tokens: int
    """Generated tokens, the stop token included."""
    ending: Ending | None
    """Why it ended: by itself, at the limit, because the model's context is full; none while it is written."""


def context_of(model: LanguageModel) -> int:
    """Return how many tokens a prompt and its answer may have together."""
    return int(model.causal_lm.config.max_position_embeddings)


def stream_answer(
    model: LanguageModel,
    prompt: Sequence[int],
    sampling: Sampling,
    seed: int = 0,
    speaking: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[Answer]:
    """Yield the answer after every token, last with its ending; the text only ever grows.

    The model is held by `speaking` during a step and free between two, so that two answers can take turns on one.

    Raises:
        DataError: prompt and answer do not fit into the model's context, or the model's own settings steer its answers
            in a way that is not done here.
    """
    room = context_of(model) - len(prompt)
    if room < 1:
        raise DataError(f"{len(prompt)} tokens are more than the model holds ({context_of(model)})", where="prompt")
    most = min(sampling.max_new_tokens, room)
    stops = model.renderer.stop_ids()
    kept: list[int] = []
    for token in _stream_ids(model, prompt, _Choice(model.causal_lm, sampling, seed), speaking):
        stopped = token in stops
        if not stopped:
            kept.append(token)
        full = len(kept) == most
        ending: Ending | None = "stop" if stopped else ("limit" if most < room else "context") if full else None
        yield Answer(settled_text(model.renderer.tokenizer, kept, ending is not None), len(kept) + stopped, ending)
        if ending:
            return


def settled_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], whole: bool) -> str:
    """Decode what further tokens cannot change: no half of a character at the end, and no space that may be the last.

    Of a whole answer everything, stripped, as scoring has it.
    """
    text = str(tokenizer.decode(list(ids), skip_special_tokens=True))
    return text.strip() if whole else text.rstrip("\N{REPLACEMENT CHARACTER}").strip()


class _Choice:
    """Chooses tokens from logits: transformers' own penalties and warpers, in transformers' order."""

    def __init__(self, model: PreTrainedModel, sampling: Sampling, seed: int) -> None:
        stated = model.generation_config.to_diff_dict() if model.generation_config else {}
        steering = [name for name in STEERING if stated.get(name) not in _WITHOUT_EFFECT]
        if steering:
            what = f"generation_config.json has `{steering[0]}`, which steers answers in a way that is not done here"
            raise DataError(what, where="base", hint="`finetune serve` runs a server that does it")
        self._processors = LogitsProcessorList()
        penalty = stated.get("repetition_penalty")
        if penalty not in (None, 1.0):
            self._processors.append(RepetitionPenaltyLogitsProcessor(penalty))
        if sampling.temperature > 0:
            self._processors.append(TemperatureLogitsWarper(sampling.temperature))
            self._processors.append(TopPLogitsWarper(sampling.top_p))
        self._samples = sampling.temperature > 0
        self._draws = torch.Generator(device=model.device).manual_seed(seed % 2**63)

    def token(self, ids_1T: Tensor, logits_1V: Tensor) -> int:
        """Return the next token after these."""
        scores_1V = self._processors(cast(LongTensor, ids_1T), cast(FloatTensor, logits_1V))
        if not self._samples:
            return int(scores_1V.argmax(-1))
        return int(torch.multinomial(scores_1V.softmax(-1), 1, generator=self._draws))


def _stream_ids(
    model: LanguageModel,
    prompt: Sequence[int],
    choice: _Choice,
    speaking: Callable[[], AbstractContextManager[None]],
) -> Iterator[int]:
    causal_lm = cast(Any, model.causal_lm)
    ids_1T = torch.tensor([list(prompt)], device=causal_lm.device)
    cache = DynamicCache(config=causal_lm.config)
    fresh_1T = ids_1T
    while True:
        with torch.inference_mode(), speaking():
            output = causal_lm(input_ids=fresh_1T, past_key_values=cache, use_cache=True, logits_to_keep=1)
            token = choice.token(ids_1T, output.logits[:, -1].float())
        yield token
        fresh_1T = torch.tensor([[token]], device=causal_lm.device)
        ids_1T = torch.cat([ids_1T, fresh_1T], dim=1)
