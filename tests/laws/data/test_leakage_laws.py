"""Laws on leakage and repeated rows: what is planted is found, and nothing else is."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from figures import Figures

from evaluation.conversation import Conversation, Message
from evaluation.near_duplicates import DuplicateFinder
from evaluation.overlap import FoundLeaks, LeakIndex, LeakKind
from evaluation.shingles import shingle_sets
from evaluation.task import Sample
from finetune.recipe_data import Leakage

Row = tuple[str, str]
DATA = Path(__file__).parents[4] / "shared" / "data"
KINDS: tuple[LeakKind, ...] = ("exact", "normalized", "ngram", "near")
LATIN = "abcdefghijklmnopqrstuvwxyz"
HAN = [chr(point) for point in range(0x4E00, 0x4E00 + 3000)]
SIMILARITY = Leakage().similarity


def english(source: random.Random, length: int) -> str:
    """Return words of no language, with a capital and a full stop."""
    words = ["".join(source.choices(LATIN, k=source.randint(2, 9))) for _ in range(length)]
    return " ".join(words).capitalize() + "."


def chinese(source: random.Random, length: int) -> str:
    """Return as many characters as stand for that many words."""
    return "".join(source.choices(HAN, k=round(length / 0.6))) + "。"


WRITERS: dict[str, Callable[[random.Random, int], str]] = {"English": english, "Chinese": chinese}


def another(source: random.Random, character: str) -> str:
    """Return another character than this one."""
    return HAN[(HAN.index(character) + source.randrange(1, len(HAN))) % len(HAN)]


def altered(
    source: random.Random,
    text: str,
    kind: LeakKind,
    write: Callable[[random.Random, int], str],
    *,
    half: bool = False,
) -> str:
    """Return the text as a training row has it that leaks in this way; by words in a row, by 13 or by half of it."""
    if kind == "exact":
        return text
    if kind == "normalized":
        return f"«{text.upper()}» !" if write is english else "，".join(text)
    spaced = write is english
    units = text.rstrip(".。").split() if spaced else list(text.rstrip(".。"))
    joint = " " if spaced else ""
    if kind == "ngram":
        run = math.ceil(len(units) / 2) if half else 13 if spaced else 22
        at = source.randrange(len(units) - run + 1)
        return joint.join([write(source, 15), *units[at : at + run], write(source, 15)])
    # Two changes that leave no 13 words in a row: one unit in twelve (English), in twenty (Chinese).
    for place in range(source.randrange(5, 9), len(units), 12 if spaced else 20):
        units[place] = units[place] + "s" if spaced else another(source, units[place])
    return joint.join(units)


def sample(number: int, prompt: str, answer: str) -> Sample:
    return Sample(
        id=str(number), prompt=Conversation(messages=(Message(role="user", content=prompt),)), reference=answer
    )


def leaks_of(rows: Sequence[tuple[int, Row]], samples: Sequence[Sample], *, compare_answers: bool = True) -> FoundLeaks:
    index = LeakIndex(samples, compare_answers=compare_answers, similarity=SIMILARITY)
    for number, row in rows:
        index.see(number, *row)
    return index.found()


@pytest.mark.parametrize("language", WRITERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copies", [1, 11, 50])
def test_every_planted_leak_is_found_and_nothing_else(
    language: str, kind: LeakKind, copies: int, figures: Figures
) -> None:
    """Thirteen words of a text in more than 10 rows can be a formula; half of the text is a leak in any number."""
    write, source = WRITERS[language], random.Random(f"{language} {kind} {copies}")
    planted, unrelated = figures.amount(40, 200), figures.amount(300, 5000)
    samples = [(write(source, 35), write(source, 35)) for _ in range(2 * planted)]
    rows: list[Row] = [(write(source, 35), write(source, 35)) for _ in range(unrelated)]
    expected = {}
    for number in range(planted):
        side = number % 2
        expected[str(number)] = (len(rows), kind, ("prompt", "answer")[side])
        for _ in range(copies):
            row = [write(source, 35), write(source, 35)]
            row[side] = altered(source, samples[number][side], kind, write, half=copies > 1)
            rows.append((row[0], row[1]))
    numbered = list(enumerate(rows))
    source.shuffle(numbered)
    found = leaks_of(numbered, [sample(number, *texts) for number, texts in enumerate(samples)])
    got = {leak.sample: (leak.row, leak.kind, leak.part) for leak in found.leaks}
    leaking = set(range(unrelated, len(rows)))
    missed = sum(got.get(name) != leak for name, leak in expected.items()) + len(leaking - found.rows)
    false = len(got.keys() - expected.keys()) + len(found.rows - leaking)
    claim = f"planted {kind} leaks are found, {language}" + (f", each in {copies} rows" if copies > 1 else "")
    note = f"among {unrelated:,} unrelated rows; {false} false alarms on {planted:,} samples that are nowhere"
    figures.report("Leakage", claim, planted * copies, "leaks", missed, note)
    assert (missed, false) == (0, 0)


@pytest.mark.parametrize("language", WRITERS)
def test_a_formula_in_many_rows_is_no_leak_of_a_longer_text(language: str, figures: Figures) -> None:
    """Each stands in one sample, so that nothing but its share of the text tells it from a passage."""
    write, source = WRITERS[language], random.Random(f"formula {language}")
    formulas = [write(source, source.randint(13, 27)) for _ in range(figures.amount(40, 400))]
    samples = [
        sample(number, f"{write(source, 16)}{formula}{write(source, 16)}", f"{write(source, 30)}{formula}")
        for number, formula in enumerate(formulas)
    ]
    rows: list[Row] = []
    for formula in formulas:
        rows += [(write(source, 20), f"{write(source, 20)}{formula}") for _ in range(source.choice((11, 50)))]
    numbered = list(enumerate(rows))
    source.shuffle(numbered)
    false = len(leaks_of(numbered, samples).leaks)
    claim = f"formulas that make less than half of a text are no leak, {language}"
    figures.report("Leakage", claim, len(samples), "samples", false, f"each formula in 11 or 50 of {len(rows):,} rows")
    assert false == 0


@pytest.mark.parametrize("language", WRITERS)
@pytest.mark.parametrize("tasks", [1, 20])
def test_instructions_longer_than_what_follows_are_no_leak(language: str, tasks: int, figures: Figures) -> None:
    write, source = WRITERS[language], random.Random(f"instruction {language} {tasks}")
    instructions = [write(source, 30) for _ in range(tasks)]
    texts = [
        (f"{instructions[number % tasks]} {write(source, 10)}", write(source, 10))
        for number in range(figures.amount(1200, 12000))
    ]
    samples = [sample(number, *text) for number, text in enumerate(texts[:200])]
    false = len(leaks_of(list(enumerate(texts[200:])), samples).leaks)
    claim = f"instructions of {tasks} tasks that are longer than the question are no leak, {language}"
    figures.report("Leakage", claim, len(samples), "samples", false, f"among {len(texts) - 200:,} rows")
    assert false == 0


def test_rows_in_any_order_leak_alike(figures: Figures) -> None:
    source, orders, failures = random.Random(5), figures.amount(5, 50), 0
    samples = [sample(number, english(source, 30), english(source, 30)) for number in range(40)]
    rows: list[Row] = [(english(source, 30), english(source, 30)) for _ in range(200)]
    for one in samples:
        kind = source.choice(KINDS)
        rows += [
            (altered(source, one.prompt.messages[0].content, kind, english), english(source, 20)) for _ in range(3)
        ]
    for one in samples[::8]:
        rows += [(english(source, 20), f"{english(source, 20)} {one.reference}") for _ in range(15)]
    numbered = list(enumerate(rows))
    first = leaks_of(numbered, samples)
    for _ in range(orders):
        source.shuffle(numbered)
        failures += leaks_of(numbered, samples) != first
    figures.report("Leakage", "rows in any order give the same leaks", orders, f"orders of {len(rows)} rows", failures)
    assert len(first.leaks) == len(samples)
    assert failures == 0


def jaccard(one: str, other: str) -> float:
    first, second = shingle_sets([one, other])
    return len(np.intersect1d(first, second)) / len(np.union1d(first, second))


@pytest.mark.parametrize("language", WRITERS)
def test_planted_repeats_are_found_and_unlike_rows_are_not(language: str, figures: Figures) -> None:
    """Rows of more than 128 shingles are compared by an estimate: one in a hundred may be taken wrongly."""
    write, source = WRITERS[language], random.Random(language)
    originals = [write(source, source.choice((12, 40, 150))) for _ in range(figures.amount(150, 2000))]
    copies = []
    for text in originals:
        spaced = write is english
        units = text.split() if spaced else list(text)
        for place in source.sample(
            range(len(units)), max(1, int(len(units) * source.uniform(0, 0.3 if spaced else 0.15)))
        ):
            units[place] = units[place][:-1] if spaced and source.random() < 0.5 else write(source, 1)
        copies.append((" " if spaced else "").join(units))
    alike = [jaccard(*pair) for pair in zip(originals, copies, strict=True)]
    near = Counter[str]()
    for part in range(0, len(originals), 50):
        finder = DuplicateFinder()
        for number, text in enumerate([*originals, *copies[part : part + 50]], start=-len(originals)):
            finder.see(str(part + number), text)
        near.update(one.name for one in finder.found(listed=100).listed)
    missed = sum(share >= 0.85 and not near[str(number)] for number, share in enumerate(alike))
    false = sum(share < 0.7 and near[str(number)] > 0 for number, share in enumerate(alike))
    high, low = sum(share >= 0.85 for share in alike), sum(share < 0.7 for share in alike)
    claim = f"rows with a similarity of 0.85 or more to an earlier one are found, {language}"
    figures.report("Leakage", claim, high, "pairs", missed, "an estimate: at most 1 % allowed")
    claim = f"rows with a similarity below 0.7 to every earlier one are not, {language}"
    figures.report("Leakage", claim, low, "pairs", false, "an estimate: at most 1 % allowed")
    assert missed <= 0.01 * high
    assert false <= 0.01 * low


@pytest.mark.parametrize(
    ("name", "closed", "exact_answers", "refused"),
    [
        ("legal/plain_english", False, 21, True),
        ("medical/medquad", False, 49, True),
        ("legal/construction_faq", False, 0, False),
        ("legal_zh/consultation_topic", True, 0, False),
        ("customer_service/banking77", True, 0, True),
        ("medical/pubmedqa", True, 0, False),
    ],
)
def test_known_sets_leak_as_their_readme_says(
    name: str, closed: bool, exact_answers: int, refused: bool, figures: Figures
) -> None:
    if not DATA.exists():
        pytest.skip("the domain data is not here")
    if name == "medical/medquad" and not figures.full:
        pytest.skip("a few seconds long: with --figures only")
    rows = shared_rows(DATA / f"{name}.train.jsonl")
    samples = [sample(number, *row) for number, row in enumerate(shared_rows(DATA / f"{name}.test.jsonl"))]
    leaks = leaks_of(list(enumerate(rows)), samples, compare_answers=not closed).leaks
    kinds = Counter(leak.kind for leak in leaks)
    exact = sum(leak.kind == "exact" and leak.part == "answer" for leak in leaks)
    strong, near = 1 - (len(samples) - len(leaks) + kinds["near"]) / len(samples), kinds["near"] / len(samples)
    is_refused = strong > Leakage().maximum_share or near > Leakage().maximum_near_share
    note = f"{strong:.1%} of the samples leak, {near:.1%} nearly"
    claim = f"{name}: {exact_answers} answers word for word, {'refused' if refused else 'accepted'} by default"
    failed = int((exact, is_refused) != (exact_answers, refused))
    figures.report("Leakage", claim, len(samples), "samples", failed, note)
    assert (exact, is_refused) == (exact_answers, refused)


def shared_rows(file: Path) -> list[Row]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    return [(f"{row['instruction']}\n\n{row['input']}".strip(), row["output"]) for row in rows]
