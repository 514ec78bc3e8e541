"""What is asked of a model: to write an answer, to weigh options, to score a given answer.

Samples are batched by length, so that little is padded, and come back in the order in which they were given. A batch
never changes a sample's figures beyond rounding: padding is masked by length, and all that samples have in common is
what all of them begin with, which is read once (`shared_prefix.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from evaluation.answers import AnswerLoss, Choice, Generated
from evaluation.batching import batches_by_length, pad_behind, pad_examples
from evaluation.choosing import Advance, Question, choose_options
from evaluation.conversation import Conversation
from evaluation.errors import TaskError
from evaluation.long_texts import split_example
from evaluation.model import ModelSpec, assert_unpacked, causal_lm_of, load_model
from evaluation.option_tree import OptionTree, build_option_tree, pad_trees
from evaluation.rendering import IGNORE, Example, Renderer
from evaluation.shared_prefix import NOTHING_SHARED, SharedPrefix, read_prefix, shared_length
from evaluation.token_loss import labelled_nll, log_probabilities, shift
from evaluation.tokenizer import load_tokenizer

BATCH_TOKENS = 4096
"""Tokens (with padding) held at a time in a scoring pass; a knob for memory alone."""

GENERATION_TOKENS = 16384
"""The same while answers are written: each step reads all weights, so that more rows at once cost little."""

WINDOW_TOKENS = 2048
"""A plain text that is longer is scored in pieces of so many, or of what the model holds, as it is trained on."""

UNSUPPORTED_LOGIT_SCALING = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


class LanguageModel:
    """A loaded causal language model with its renderer."""

    def __init__(self, model: PreTrainedModel | PeftModel, renderer: Renderer) -> None:
        """Take a model in evaluation mode and the renderer of its tokenizer.

        Raises:
            TaskError: the model scales its logits, which scoring by the output head alone would miss.
        """
        self.model = model
        self.renderer = renderer
        self.causal_lm = causal_lm_of(model)
        self.causal_lm.get_output_embeddings().register_forward_pre_hook(_make_contiguous)
        config = self.causal_lm.config.to_dict()
        scaled = [name for name in UNSUPPORTED_LOGIT_SCALING if config.get(name) not in (None, 1.0)]
        if scaled:
            raise TaskError(f"models with {scaled[0]} cannot be scored here", where=str(config.get("model_type")))

    def generate(
        self, prompts: Sequence[Conversation], max_new_tokens: int, advance: Advance = lambda _: None
    ) -> list[Generated]:
        """Continue each prompt greedily until a stop token or the limit."""
        ids = [self.renderer.prompt(prompt) for prompt in prompts]
        return [self._decoded(row) for row in self.continue_greedily(ids, max_new_tokens, advance)]

    @torch.inference_mode()
    def continue_greedily(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, advance: Advance = lambda _: None
    ) -> list[tuple[int, ...]]:
        """Continue each prompt, given as token ids, until a stop token, which is kept, or the limit."""
        stops = self.renderer.stop_ids()
        prefix = self._read_prefix(prompts)
        answers: dict[int, tuple[int, ...]] = {}
        for batch in batches_by_length([len(prompt) + max_new_tokens for prompt in prompts], GENERATION_TOKENS):
            width = max(len(prompts[i]) for i in batch)
            ids, mask = pad_behind([prompts[i] for i in batch], prefix.length, stops[0])
            output_BT = cast(Any, self.causal_lm).generate(
                input_ids=self._tensor(ids),
                attention_mask=self._tensor(mask),
                past_key_values=prefix.for_rows(len(batch)),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=list(stops),
                pad_token_id=stops[0],
            )
            for i, row in zip(batch, output_BT[:, width:].tolist(), strict=True):
                end = next((position for position, token in enumerate(row) if token in stops), len(row))
                answers[i] = tuple(row[: end + 1])
            advance(len(batch))
        assert_unpacked(self.model)
        return [answers[i] for i in range(len(prompts))]

    def option_log_likelihoods(
        self, prompts: Sequence[Conversation], options: Sequence[str], advance: Advance = lambda _: None
    ) -> list[list[float]]:
        """Log-likelihood in nats of every option, with its end token, after every prompt.

        The options of a prompt go through the model at once, as branches of a tree on the prompt that do not see
        each other (`option_tree.py`).
        """
        answers = self._answers(prompts, options)
        trees = [build_option_tree(self.renderer.prompt(prompt), answers) for prompt in prompts]
        return self._weigh(trees, advance)

    def choose(
        self,
        prompts: Sequence[Conversation],
        options: Sequence[str],
        references: Sequence[str],
        written: Sequence[str],
        advance: Advance = lambda _: None,
    ) -> list[Choice]:
        """Weigh as many options after each prompt as it takes to know the likeliest.

        Each reference is an option; `written` is what the model answered by itself. `advance` is told of each prompt
        twice.
        """
        questions = [
            Question(
                self.renderer.prompt(prompt), options.index(right), options.index(text) if text in options else None
            )
            for prompt, right, text in zip(prompts, references, written, strict=True)
        ]
        return choose_options(questions, self._answers(prompts, options), self._weigh, advance)

    def _answers(self, prompts: Sequence[Conversation], options: Sequence[str]) -> list[tuple[int, ...]]:
        return [self.renderer.answer(prompts[0], option) for option in options] if prompts else []

    @torch.inference_mode()
    def _weigh(self, trees: Sequence[OptionTree], advance: Advance) -> list[list[float]]:
        prefix = self._read_prefix([tree.input_ids[: tree.prompt_length] for tree in trees])
        scores: dict[int, list[float]] = {}
        for batch in batches_by_length([len(tree.input_ids) - prefix.length for tree in trees], BATCH_TOKENS):
            for i, likelihoods in zip(batch, self._score_trees([trees[i] for i in batch], prefix), strict=True):
                scores[i] = likelihoods
            advance(len(batch))
        return [scores[i] for i in range(len(trees))]

    def answer_losses(
        self, prompts: Sequence[Conversation], answers: Sequence[str], advance: Advance = lambda _: None
    ) -> list[AnswerLoss]:
        """Loss of each given answer after its prompt; a long text without a prompt is scored in pieces."""
        most = min(WINDOW_TOKENS, int(self.causal_lm.config.max_position_embeddings))
        pieces: list[list[Example]] = []
        for prompt, answer in zip(prompts, answers, strict=True):
            example = answer_example(self.renderer.prompt(prompt), self.renderer.answer(prompt, answer))
            pieces.append([example] if prompt.messages else split_example(example, most))
        flat = [piece for own in pieces for piece in own]
        losses = iter(self.example_losses(flat, _in_proportion(advance, len(flat), len(pieces))))
        return [_summed(list(islice(losses, len(own)))) for own in pieces]

    @torch.inference_mode()
    def example_losses(self, examples: Sequence[Example], advance: Advance = lambda _: None) -> list[AnswerLoss]:
        """Loss of the labelled tokens of each example."""
        losses: dict[int, AnswerLoss] = {}
        for batch, labels_BT, hidden_BTD in self.hidden_states(examples):
            hidden_ND, targets_N = shift(hidden_BTD, labels_BT, IGNORE)
            nll_N = labelled_nll(hidden_ND, self.head(), targets_N)
            counts = (labels_BT[:, 1:] != IGNORE).sum(1).tolist()
            for i, part in zip(batch, nll_N.double().split(counts), strict=True):
                losses[i] = AnswerLoss(float(part.sum()), len(part))
            advance(len(batch))
        return [losses[i] for i in range(len(examples))]

    @torch.inference_mode()
    def hidden_states(self, examples: Sequence[Example]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Yield batches as (indices of the examples, labels (B, T), last hidden states (B, T, D)).

        The tokens that all examples begin with, before anything that is labelled, are left out of T.
        """
        prefix = self._read_prefix([example.input_ids[: _first_label(example)] for example in examples])
        for batch in batches_by_length([len(e.input_ids) - prefix.length for e in examples], BATCH_TOKENS):
            ids_BT, labels_BT, mask_BT = pad_examples([examples[i] for i in batch], self.renderer.stop_ids()[0])
            device = self.causal_lm.device
            output = self.causal_lm.base_model(
                input_ids=ids_BT[:, prefix.length :].to(device),
                attention_mask=mask_BT.to(device),
                past_key_values=prefix.for_rows(len(batch)),
                use_cache=prefix.length > 0,
            )
            yield batch, labels_BT[:, prefix.length :].to(device), output.last_hidden_state
        assert_unpacked(self.model)

    def _read_prefix(self, prompts: Sequence[Sequence[int]]) -> SharedPrefix:
        length = shared_length(prompts)
        return read_prefix(self.causal_lm, prompts[0][:length]) if length else NOTHING_SHARED

    def head(self) -> Tensor:
        """Return the output embedding, shape (V, D)."""
        return cast(Tensor, self.causal_lm.get_output_embeddings().weight).detach()

    def _score_trees(self, trees: Sequence[OptionTree], prefix: SharedPrefix) -> list[list[float]]:
        batch = pad_trees(trees, prefix.length, self.renderer.stop_ids()[0], self.causal_lm.dtype)
        device = self.causal_lm.device
        hidden_BTD = self.causal_lm.base_model(
            input_ids=batch.input_ids_BT.to(device),
            position_ids=batch.position_ids_BT.to(device),
            attention_mask=batch.attention_B1TS.to(device),
            past_key_values=prefix.for_rows(len(trees)),
            use_cache=prefix.length > 0,
        ).last_hidden_state
        hidden_UD = hidden_BTD[batch.rows_U.to(device), batch.columns_U.to(device)]
        found_N = log_probabilities(hidden_UD, self.head(), batch.predictor_N.to(device), batch.targets_N.to(device))
        sums = iter([float(part.sum()) for part in found_N.double().split(list(batch.answer_lengths))])
        return [list(islice(sums, len(tree.answers))) for tree in trees]

    def _decoded(self, row: tuple[int, ...]) -> Generated:
        stopped = bool(row) and row[-1] in self.renderer.stop_ids()
        text = str(self.renderer.tokenizer.decode(list(row[: len(row) - stopped]), skip_special_tokens=True)).strip()
        return Generated(text, len(row), stopped)

    def _tensor(self, rows: list[list[int]]) -> Tensor:
        return torch.tensor(rows, device=self.causal_lm.device)


def _summed(losses: Sequence[AnswerLoss]) -> AnswerLoss:
    return AnswerLoss(sum(loss.nll for loss in losses), sum(loss.tokens for loss in losses))


def _in_proportion(advance: Advance, pieces: int, samples: int) -> Advance:
    """Tell of samples while pieces are done."""
    done = 0

    def told(more: int) -> None:
        nonlocal done
        before = done * samples // pieces
        done += more
        advance(done * samples // pieces - before)

    return told


def _first_label(example: Example) -> int:
    return next((i for i, label in enumerate(example.labels) if label != IGNORE), len(example.labels))


def _make_contiguous(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Lay the head's input out in one piece.

    `generate` hands the head a slice, and for a slice and a frozen weight torch 2.13 copies the weight once for every
    row of the batch (at::matmul folds only what is contiguous or needs a gradient): 3 GB and 9 s for 60 rows.
    """
    return tuple(tensor.contiguous() for tensor in inputs)


def load_language_model(spec: ModelSpec) -> LanguageModel:
    """Load a model with its tokenizer; an adapter's folder has the tokenizer it was trained with."""
    own_tokenizer = spec.adapter is not None and (spec.adapter / "tokenizer.json").exists()
    tokenizer = load_tokenizer(spec.adapter if own_tokenizer and spec.adapter else spec.path)
    return LanguageModel(load_model(spec), Renderer(tokenizer))


def answer_example(prompt: Sequence[int], answer: Sequence[int]) -> Example:
    """Put a prompt and an answer together, with labels on the answer."""
    return Example((*prompt, *answer), (*[IGNORE] * len(prompt), *answer))
