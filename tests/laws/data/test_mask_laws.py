"""No wrong label: every generated conversation has the right mask, by two other ways to tell it, or is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from itertools import islice, pairwise

import pytest
from figures import Figures
from generated_conversations import conversations
from transformers import PreTrainedTokenizerFast
from unit.evaluation.chat_styles import CHATML, LLAMA_2, LLAMA_3, STYLES, ZEPHYR, Style, style_tokenizer

from evaluation.conversation import Conversation
from evaluation.errors import DataError
from evaluation.mask_oracle import check_masks
from evaluation.rendering import IGNORE, Example, Renderer, TrainOn, Unrenderable

PADS = ("pad is the end of sequence", "pad is a token of its own", "no pad")
TRAINED: tuple[TrainOn, ...] = ("assistant", "final_assistant")
KINDS = {"llama2": LLAMA_2, "llama3": LLAMA_3, "chatml": CHATML, "alpaca": ZEPHYR, "vicuna": ZEPHYR}
"""Whose kind of tokenizer our own templates are tried with."""


def styles() -> list[Style]:
    """Return the families' templates and our own."""
    ours = [file for file in resources.files("finetune.data_templates").iterdir() if file.name.endswith(".jinja")]
    named = {file.name.removesuffix(".jinja"): file.read_text(encoding="utf-8") for file in ours}
    return [*STYLES, *(replace(KINDS[name], name=f"our {name}", template=text) for name, text in sorted(named.items()))]


def renderer(style: Style, pad: str) -> Renderer:
    plain = style_tokenizer(replace(style, template=""), separate_pad=pad == PADS[1])
    options = {} if pad == PADS[2] else {"pad_token": plain.pad_token}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer, bos_token=style.bos, eos_token=style.eos, **options
    )
    tokenizer.chat_template = style.template
    assert (tokenizer.pad_token_id is None) == (pad == PADS[2])
    return Renderer(tokenizer)


def rendered(
    renderer: Renderer, drawn: Iterator[Conversation], train_on: TrainOn, refusals: Counter[str]
) -> Iterator[list[tuple[str, Conversation, Example]]]:
    """Yield what can be rendered, in batches as a run makes them, and count the rest."""
    while batch := list(islice(drawn, 256)):
        made = list(enumerate(zip(batch, renderer.examples(batch, train_on), strict=True)))
        refusals.update(example.reason for _, (_, example) in made if isinstance(example, Unrenderable))
        yield [(str(i), c, example) for i, (c, example) in made if isinstance(example, Example)]


def wrong_rows(
    renderer: Renderer, rows: list[tuple[str, Conversation, Example]], train_on: TrainOn
) -> list[tuple[str, str]]:
    """Name the rows that one of the other two ways finds wrong."""
    wrong = [(name, "decoded") for name, c, e in rows if not decodes_to_answers(renderer, c, e, train_on)]
    try:
        checked = check_masks(renderer, rows, train_on)
        assert checked.examples == len(rows)
        assert checked.tokens == sum(len(example.input_ids) for _, _, example in rows)
    except DataError as disagreement:
        wrong.append((disagreement.where, disagreement.what))
    return wrong


def decodes_to_answers(renderer: Renderer, conversation: Conversation, example: Example, train_on: TrainOn) -> bool:
    """Tell whether what is trained on reads as the answers, each with one control token at its end."""
    if any(label not in (IGNORE, i) for i, label in zip(example.input_ids, example.labels, strict=True)):
        return False
    answers = [message.content for message in conversation.messages if message.role == "assistant"]
    if conversation.layout == "plain":
        return plain_reads_right(renderer, conversation, example, answers)
    runs = trained_runs(example)
    answers = answers if train_on == "assistant" else answers[-1:]
    ends = [run[-1] in renderer.special_ids and not renderer.special_ids.intersection(run[:-1]) for run in runs]
    return all(ends) and [blankless(renderer.text(tuple(run[:-1]))) for run in runs] == [*map(blankless, answers)]


def plain_reads_right(renderer: Renderer, conversation: Conversation, example: Example, answers: list[str]) -> bool:
    tokens = sum(len(renderer.encode(answer)) for answer in answers) + 1
    asked = sum(len(renderer.encode(m.content)) for m in conversation.messages if m.role != "assistant")
    first = next((m.role for m in conversation.messages if m.content), "assistant")
    if first == "assistant" and not renderer.first_ids:
        return example.labels[0] == IGNORE and example.trained_tokens == tokens - 1
    text = renderer.text(tuple(label for label in example.labels if label != IGNORE))
    whole = blankless("".join(answers)) + str(renderer.tokenizer.eos_token)
    counted = example.trained_tokens == tokens and len(example.labels) == tokens + asked + len(renderer.first_ids)
    return counted and blankless(text) == whole


def trained_runs(example: Example) -> list[list[int]]:
    """Return the ids that are trained on, those next to each other together."""
    places = [i for i, label in enumerate(example.labels) if label != IGNORE]
    cuts = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(places)) if b != a + 1), len(places)]
    return [[example.input_ids[i] for i in places[a:b]] for a, b in pairwise(cuts) if a < b]


def blankless(text: str) -> str:
    """Leave out blanks: some decoders drop the first space, and some templates trim."""
    return "".join(text.split())


@pytest.mark.parametrize("pad", PADS)
def test_no_generated_conversation_has_a_wrong_label(pad: str, figures: Figures) -> None:
    count = figures.amount(10, 10_000)
    refusals: Counter[str] = Counter()
    found = styles()
    wrong, right = [], 0
    for number, style in enumerate(found):
        rendering = renderer(style, pad)
        for half, train_on in enumerate(TRAINED):  # one half of the conversations each
            # In full, every template is tried on the same conversations; in small, they share them out.
            seed = half if figures.full else 2 * number + half
            for rows in rendered(rendering, conversations(count // 2, seed), train_on, refusals):
                right += len(rows)
                wrong += [(style.name, train_on, *row) for row in wrong_rows(rendering, rows, train_on)]
    refused = ", ".join(f"{number:,} {reason}" for reason, number in refusals.most_common())
    note = f"{right:,} rendered and right by two other ways; refused: {refused}; templates: {len(found)}"
    figures.report(
        "Masks", f"no wrong label, {pad}", count // 2 * 2 * len(found), "conversations × templates", len(wrong), note
    )
    assert wrong == []
    assert right > sum(refusals.values())


def test_the_other_ways_tell_a_wrong_mask() -> None:
    rendering = renderer(CHATML, PADS[0])
    refusals: Counter[str] = Counter()
    (rows,) = rendered(rendering, conversations(25), "assistant", refusals)
    for name, conversation, example in rows:
        places = [i for i, label in enumerate(example.labels) if label != IGNORE]
        for place in (places[0], places[-1]):
            labels = [IGNORE if i == place else label for i, label in enumerate(example.labels)]
            missing = replace(example, labels=tuple(labels))
            assert len(wrong_rows(rendering, [(name, conversation, missing)], "assistant")) > 0
            assert not decodes_to_answers(rendering, conversation, missing, "assistant") or not blankless(
                rendering.text((example.input_ids[place],))
            )
