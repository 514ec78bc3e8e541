"""Known ways to break a mask, each as such a bug looks in the tokens, and a renderer that has one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from evaluation.conversation import Conversation
from evaluation.rendering import IGNORE, Example, Renderer, TrainOn, Unrenderable

Break = Callable[[Renderer, Conversation, Example], Example]


def masked(example: Example, trained: Sequence[bool]) -> Example:
    """Keep the tokens and train on others of them."""
    pairs = zip(example.input_ids, trained, strict=True)
    return Example(example.input_ids, tuple(i if ours else IGNORE for i, ours in pairs))


def trained_in(example: Example) -> list[bool]:
    return [label != IGNORE for label in example.labels]


def runs(example: Example) -> list[tuple[int, int]]:
    """Return where each run of trained tokens begins and ends."""
    edges = [False, *trained_in(example), False]
    turns = [i for i, (before, after) in enumerate(pairwise(edges)) if before != after]
    return list(zip(turns[::2], turns[1::2], strict=True))


def without(example: Example, *places: int) -> Example:
    return masked(example, [ours and i not in places for i, ours in enumerate(trained_in(example))])


def adding(example: Example, *places: int) -> Example:
    return masked(example, [ours or i in places for i, ours in enumerate(trained_in(example))])


def one_later(_: Renderer, __: Conversation, example: Example) -> Example:
    return masked(example, [False, *trained_in(example)[:-1]])


def one_earlier(_: Renderer, __: Conversation, example: Example) -> Example:
    return masked(example, [*trained_in(example)[1:], False])


def labels_shifted(_: Renderer, __: Conversation, example: Example) -> Example:
    return Example(example.input_ids, (*example.labels[1:], IGNORE))


def end_masked(_: Renderer, __: Conversation, example: Example) -> Example:
    return without(example, *(stop - 1 for _, stop in runs(example)))


def masked_where_it_pads(renderer: Renderer, _: Conversation, example: Example) -> Example:
    pad = renderer.tokenizer.pad_token_id
    return masked(example, [o and i != pad for i, o in zip(example.input_ids, trained_in(example), strict=True)])


def last_turn_dropped(_: Renderer, __: Conversation, example: Example) -> Example:
    return without(example, *range(*runs(example)[-1]))


def first_turn_dropped(_: Renderer, __: Conversation, example: Example) -> Example:
    return without(example, *range(*runs(example)[0])) if len(runs(example)) > 1 else example


def prompt_trained(_: Renderer, __: Conversation, example: Example) -> Example:
    return adding(example, *range(1, runs(example)[-1][0]))


def system_trained(_: Renderer, conversation: Conversation, example: Example) -> Example:
    return adding(example, 3, 4, 5) if conversation.messages[0].role == "system" else example


def everything_masked(_: Renderer, __: Conversation, example: Example) -> Example:
    return masked(example, [False] * len(example.labels))


def everything_trained(_: Renderer, __: Conversation, example: Example) -> Example:
    return Example(example.input_ids, example.input_ids)


def next_header_trained(_: Renderer, __: Conversation, example: Example) -> Example:
    return adding(example, *(place for _, stop in runs(example) for place in (stop, stop + 1)))


def last_word_masked(_: Renderer, __: Conversation, example: Example) -> Example:
    return without(example, *(stop - 2 for _, stop in runs(example)))


def first_word_masked(_: Renderer, __: Conversation, example: Example) -> Example:
    return without(example, *(start for start, _ in runs(example)))


def generation_prompt_trained(_: Renderer, __: Conversation, example: Example) -> Example:
    return adding(example, *(start - 1 for start, _ in runs(example)))


def beginning_trained(_: Renderer, __: Conversation, example: Example) -> Example:
    return adding(example, 0)


def padding_id_as_label(_: Renderer, __: Conversation, example: Example) -> Example:
    return Example(example.input_ids, tuple(0 if label == IGNORE else label for label in example.labels))


def beginning_twice(renderer: Renderer, _: Conversation, example: Example) -> Example:
    return Example((renderer.tokenizer.bos_token_id, *example.input_ids), (IGNORE, *example.labels))


def users_instead(_: Renderer, __: Conversation, example: Example) -> Example:
    return masked(example, [not ours for ours in trained_in(example)])


def pieces_tokenized_alone(renderer: Renderer, conversation: Conversation, example: Example) -> Example:
    if conversation.layout == "plain":
        return example
    before = renderer.chat_text(conversation.messages[:-1], ask=True)
    after = renderer.chat_text(conversation.messages, ask=False)[len(before) :]
    asked, answer = renderer.encode(before), renderer.encode(after)
    return Example((*asked, *answer), (*[IGNORE] * len(asked), *answer))


def answer_cut(_: Renderer, __: Conversation, example: Example) -> Example:
    stop = runs(example)[-1][1] - 1
    return Example(example.input_ids[:stop], example.labels[:stop])


def only_final_turn_ends(_: Renderer, __: Conversation, example: Example) -> Example:
    return without(example, *(stop - 1 for _, stop in runs(example)[:-1]))


BREAKS: tuple[Break, ...] = (
    one_later,
    one_earlier,
    labels_shifted,
    end_masked,
    masked_where_it_pads,
    last_turn_dropped,
    first_turn_dropped,
    prompt_trained,
    system_trained,
    everything_masked,
    everything_trained,
    next_header_trained,
    last_word_masked,
    first_word_masked,
    generation_prompt_trained,
    beginning_trained,
    padding_id_as_label,
    beginning_twice,
    users_instead,
    pieces_tokenized_alone,
    answer_cut,
    only_final_turn_ends,
)


class Broken(Renderer):
    """A renderer with a known bug."""

    breaks: Break

    @classmethod
    def by(cls, breaks: Break) -> type[Broken]:
        return type("Broken", (cls,), {"breaks": staticmethod(breaks)})

    def examples(
        self, conversations: Sequence[Conversation], train_on: TrainOn = "assistant"
    ) -> list[Example | Unrenderable]:
        made = zip(conversations, super().examples(conversations, train_on), strict=True)
        return [self.breaks(self, c, e) if isinstance(e, Example) else e for c, e in made]
