from __future__ import annotations

import random
import tracemalloc

import pytest
from fakes import sample
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.conversation import Conversation, Message
from evaluation.overlap import FoundLeaks, Leak, LeakIndex, normalized_for_overlap, prompt_text
from evaluation.task import Sample

Row = tuple[str, str]
WORDS = [f"{a}{b}{c}" for a in ("bra", "cle", "dim", "fos", "gut") for b in "aeiou" for c in ("nk", "rp", "st", "lm")]
SENTENCE = "the mill by the river was sold to a baker who wanted nothing but its wheel"
REPLY = "it was sold because the last miller had no heirs and owed the parish a good deal of money"
CHINESE = "租赁期限届满承租人继续使用租赁物而出租人没有提出异议的原租赁合同继续有效但租赁期限为不定期"


def leaks_of(
    rows: list[Row], samples: list[Sample], *, compare_answers: bool = True, similarity: float = 0.8
) -> FoundLeaks:
    index = LeakIndex(samples, compare_answers=compare_answers, similarity=similarity)
    for number, (prompt, answer) in enumerate(rows):
        index.see(number, prompt, answer)
    return index.found()


def found_as(rows: list[Row], one: Sample, *, compare_answers: bool = True) -> tuple[int, str, str] | None:
    leaks = leaks_of(rows, [one], compare_answers=compare_answers).leaks
    return (leaks[0].row, leaks[0].kind, leaks[0].part) if leaks else None


def babble(seed: int, length: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=length))


ROWS: list[Row] = [
    ("What is red?", "A colour that warns."),
    ("What is red?", "Something else of that kind"),
    ("How are you?", "Fine, and how are you?"),
    ("", "A lonely answer without question"),
    (SENTENCE, "Indeed."),
    ("Why was the mill sold?", REPLY),
    (CHINESE, "有效"),
    *((babble(number, 30), babble(100 + number, 30)) for number in range(60)),
]


@pytest.mark.parametrize(
    ("asked", "reference", "expected"),
    [
        ("What is red?", "A colour that warns.", (0, "exact", "both")),
        ("what is RED", "a colour that warns", (0, "normalized", "both")),
        ("What is red?", "something  else of that kind!", (0, "exact", "prompt")),
        ("WHAT IS\tRED", "New", (0, "normalized", "prompt")),
        ("New?", "Fine, and how are you?", (2, "exact", "answer")),
        ("New?", "fine and how are you", (2, "normalized", "answer")),
        ("!", "a lonely answer without question", (3, "normalized", "answer")),
        (f"So: {SENTENCE}, he said.", "New", (4, "ngram", "prompt")),
        (f"So: {SENTENCE}, he said.", f"Now {REPLY} too", (4, "ngram", "prompt")),
        ("New?", "And so " + " ".join(REPLY.split()[:13]), (5, "ngram", "answer")),
        ("New?", "And so " + " ".join(REPLY.split()[:12]), None),
        (" ".join(REPLY.split()[:13]) + " what came of it, and who says so?", "New", (5, "ngram", "prompt")),
        (SENTENCE.replace("baker", "maker"), "New", (4, "near", "prompt")),
        ("New?", REPLY.replace("miller", "milner"), (5, "near", "answer")),
        (f"请问：{CHINESE[:22]}，对吗？在北京和上海的法院怎么看这个问题呢？谢谢各位律师", "无", (6, "ngram", "prompt")),
        (f"请问：{CHINESE[:21]}，对吗？在北京和上海的法院怎么看这个问题呢？谢谢各位律师", "无", None),
        (CHINESE[:15] + "仍" + CHINESE[16:31] + "仍" + CHINESE[32:], "无", (6, "near", "prompt")),
        ("?", "!", None),
        ("What is blue?", "A shade of the sky.", None),
    ],
)
def test_the_strongest_leak_is_reported(asked: str, reference: str, expected: tuple[int, str, str] | None) -> None:
    assert found_as(ROWS, sample(7, asked, reference)) == expected


def test_an_ngram_of_prompt_and_answer_in_one_row_is_both() -> None:
    rows = [*ROWS, (f"Once {SENTENCE}.", f"Well, {REPLY}.")]
    one = sample(1, f"{babble(900, 20)} {SENTENCE}", f"{REPLY} {babble(901, 20)}")
    assert found_as(rows, one) == (len(ROWS), "ngram", "both")


@pytest.mark.parametrize("answer", ["Yes", "yes.", "Not applicable", "是的。"])
def test_answers_of_less_than_four_words_do_not_count_alone(answer: str) -> None:
    assert found_as([("One?", answer)], sample(1, "Another question?", answer)) is None
    assert found_as([("One?", answer)], sample(1, "One?", answer)) == (0, "exact", "both")


@pytest.mark.parametrize(("times", "leaks"), [(10, True), (11, False)])
def test_a_short_answer_in_many_rows_is_a_label(times: int, leaks: bool) -> None:
    rows = [(babble(number, 20), "They are not liable for that") for number in range(times)]
    found = leaks_of(rows, [sample(1, "Another?", "They are not liable for that")])
    assert (found.rows == frozenset(range(times))) if leaks else (found == FoundLeaks((), frozenset()))


def test_a_long_answer_counts_in_however_many_rows_it_stands() -> None:
    rows = [(babble(number, 20), REPLY) for number in range(40)]
    assert found_as(rows, sample(1, "Another?", REPLY)) == (0, "exact", "answer")


def test_answers_of_closed_sets_can_be_left_out() -> None:
    one = sample(1, "New?", "They are not liable for that")
    rows = [("Old?", "They are not liable for that")]
    assert found_as(rows, one, compare_answers=False) is None
    assert found_as(rows, one) == (0, "exact", "answer")


@pytest.mark.parametrize(
    ("times", "others", "leaks"), [(10, 17, True), (11, 17, False), (11, 16, True), (50, 16, True)]
)
def test_a_run_in_many_rows_is_boilerplate_unless_it_is_half_of_the_text(times: int, others: int, leaks: bool) -> None:
    """The sentence has 16 words."""
    rows = [(f"{babble(number, 15)} {SENTENCE} {babble(50 + number, 15)}", "") for number in range(times)]
    rows += [(babble(100 + number, 30), "") for number in range(60)]
    found = leaks_of(rows, [sample(1, f"{babble(99, others)} {SENTENCE}", "")])
    assert found.rows == (frozenset(range(times)) if leaks else frozenset())
    assert [leak.kind for leak in found.leaks] == (["ngram"] if leaks else [])


def test_half_of_a_text_may_stand_in_several_pieces_of_one_row_and_not_of_several() -> None:
    """Two runs that overlap count once: 18 of 37 words."""
    pieces = [babble(700, 13), babble(701, 13)]
    one = sample(1, "New?", f"{pieces[0]} {babble(702, 12)} {pieces[1]} {babble(703, 12)}")
    apart = [(babble(number, 20), f"{pieces[number % 2]} {babble(100 + number, 20)}") for number in range(24)]
    assert not leaks_of(apart, [one]).leaks
    whole = [(asked, f"{pieces[1]} {answer} {pieces[0]}") for asked, answer in apart]
    assert leaks_of(whole, [one]).rows == frozenset(range(24))
    overlapping = sample(1, "New?", f"{babble(704, 18)} {babble(705, 19)}")
    assert not leaks_of([(asked, f"{answer} {babble(704, 18)}") for asked, answer in apart], [overlapping]).leaks


def test_both_sides_in_many_rows_are_both() -> None:
    rows = [(f"{babble(number, 15)} {SENTENCE}", f"{babble(50 + number, 15)} {REPLY}") for number in range(20)]
    rows += [(babble(100 + number, 30), "") for number in range(60)]
    assert found_as(rows, sample(1, SENTENCE, REPLY)) == (0, "ngram", "both")


def test_an_instruction_that_most_rows_have_is_no_leak_of_one_sample() -> None:
    """A single sample cannot show what its template is."""
    instruction = "say in plain words what the following clause of a contract means for a tenant who pays late"
    rows = [(f"{instruction}: {babble(number, 10)}", "") for number in range(60)]
    assert not leaks_of(rows, [sample(1, f"{instruction}: {babble(99, 10)}", "")]).leaks


def test_rows_that_leak_nothing_are_not_kept() -> None:
    """Not even where every row has a formula of a sample."""
    index = LeakIndex([sample(1, "New?", f"{babble(99, 30)} {SENTENCE}")], compare_answers=True, similarity=0.8)
    held = []
    tracemalloc.start()
    for number in range(6000):
        index.see(number, babble(number, 5), f"{SENTENCE} {babble(100 + number, 5)}")
        if number in (2000, 5999):
            assert index.found() == FoundLeaks((), frozenset())
            held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert held[1] - held[0] < 10_000


def test_words_beside_boilerplate_do_not_make_it_count() -> None:
    """The instruction and the first words of the text are in one row, the instruction alone in all."""
    instruction = "say in plain words what the following clause of a contract means for a tenant who pays late"
    rows = [(f"{instruction}: {babble(number, 30)}", "") for number in range(60)]
    begin = " ".join(rows[7][0].split()[:-30] + rows[7][0].split()[-30:-25])
    assert not leaks_of(rows, [sample(1, f"{begin} {babble(99, 30)}", "")]).leaks


def test_a_short_instruction_does_not_count_towards_the_thirteen_words() -> None:
    instruction = "What does the bank customer want? Answer briefly."
    rows = [(f"{instruction} {babble(number, 30)}", "") for number in range(60)]
    begin = " ".join(rows[7][0].split()[:17])
    assert not leaks_of(rows, [sample(1, f"{begin} {babble(99, 30)}", "")]).leaks


def test_a_short_instruction_does_not_count_towards_half_of_a_text() -> None:
    """With the five words behind it, it makes thirteen of eighteen."""
    instruction, opening = "Read it and write down what comes next:", babble(600, 5)
    rows = [(f"{instruction} {opening} {babble(number, 20)}", "") for number in range(30)]
    rows += [(babble(100 + number, 30), "") for number in range(60)]
    samples = [sample(number, f"{instruction} {babble(300 + number, 10)}", "") for number in range(9)]
    assert not leaks_of(rows, [*samples, sample(9, f"{instruction} {opening} {babble(500, 5)}", "")]).leaks


def test_what_many_samples_share_is_boilerplate() -> None:
    rows = [(babble(number, 30), "") for number in range(20)] + [(f"Once {SENTENCE}", "")]
    samples = [sample(number, f"{SENTENCE} {babble(300 + number, 40)}", "") for number in range(10)]
    assert not leaks_of(rows, samples).leaks
    assert len(leaks_of(rows, samples[:2]).leaks) == 2


def test_a_template_makes_nothing_nearly_equal() -> None:
    template = "Read the question, think about it step by step, and answer with one of the options below. Question: "
    rows = [(template + babble(number, 4), "") for number in range(60)]
    samples = [sample(number, template + babble(400 + number, 4), "") for number in range(20)]
    assert not leaks_of(rows, samples, similarity=0.5).leaks


@pytest.mark.parametrize(("similarity", "leaks"), [(0.6, True), (0.95, False)])
def test_similarity_decides_what_is_near(similarity: float, leaks: bool) -> None:
    one = sample(1, SENTENCE.replace("baker", "maker"), "")
    assert bool(leaks_of(ROWS, [one], similarity=similarity).leaks) is leaks


def test_samples_with_the_same_prompt_all_leak() -> None:
    samples = [sample(number, SENTENCE.replace("baker", "maker"), "new") for number in range(2)]
    assert [leak.kind for leak in leaks_of(ROWS, samples).leaks] == ["near", "near"]


def test_every_leaking_row_is_named() -> None:
    rows = [(SENTENCE, "x"), ("other", "y"), (SENTENCE.upper(), "z"), (SENTENCE.replace("baker", "maker"), "w")]
    rows += [(babble(number, 30), "") for number in range(30)] + [(f"Once {SENTENCE} {babble(98, 30)}", "v")]
    found = leaks_of(rows, [sample(1, SENTENCE, "new")])
    assert found == FoundLeaks((Leak("rows.jsonl:1", 0, "exact", "prompt"),), frozenset({0, 2, 3, 34}))


def test_what_was_found_can_be_asked_for_between_rows() -> None:
    index = LeakIndex([sample(1, SENTENCE, "new")], compare_answers=True, similarity=0.8)
    assert index.found() == FoundLeaks((), frozenset())
    index.see(5, SENTENCE, "x")
    assert index.found() == index.found() == FoundLeaks((Leak("rows.jsonl:1", 5, "exact", "prompt"),), frozenset({5}))


def test_no_samples_leak_nowhere() -> None:
    assert leaks_of(ROWS, []) == FoundLeaks((), frozenset())


def test_normalisation_folds_case_width_punctuation_and_space() -> None:
    assert normalized_for_overlap("Ｓtraße — № 5!") == "strasseno5"


@given(st.text(max_size=30))
@settings(max_examples=50, deadline=None)
def test_normalisation_is_idempotent(text: str) -> None:
    once = normalized_for_overlap(text)
    assert normalized_for_overlap(once) == once


@given(st.lists(st.tuples(st.text("abc!", min_size=1), st.text("xyz", min_size=1)), max_size=20))
@settings(max_examples=20, deadline=None)
def test_every_planted_row_is_found(rows: list[Row]) -> None:
    samples = [sample(number, *row) for number, row in enumerate(rows)]
    found = {leak.sample: leak for leak in leaks_of(rows, samples).leaks}
    for number, (asked, reference) in enumerate(rows):
        parts = bool(normalized_for_overlap(asked)), bool(normalized_for_overlap(reference))
        leak = found.get(f"rows.jsonl:{number}")
        assert leak is None if not parts[0] else (leak is not None and leak.kind == "exact")
        if all(parts):
            assert leak is not None
            assert (leak.part, rows[leak.row]) == ("both", (asked, reference))


@given(st.lists(st.tuples(st.text(max_size=40), st.text(max_size=40)), max_size=8), st.text(max_size=40))
@settings(max_examples=25, deadline=None)
def test_any_text_can_be_compared(rows: list[Row], text: str) -> None:
    leaks_of([*rows, (text, text)], [sample(number, asked, text) for number, (asked, _) in enumerate(rows)])


def test_prompt_text_leaves_the_system_message_out() -> None:
    messages = (Message(role="system", content="s"), Message(role="user", content="u"))
    assert prompt_text(Conversation(messages=messages)) == "u"
