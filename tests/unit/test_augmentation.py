"""Augmentation: what each kind alters, what none may alter, and that its share of the rows is right."""

from __future__ import annotations

import pytest

from evaluation.conversation import Conversation, Message, ToolCall
from finetune.augmentation import augment
from finetune.recipe_data import Augmentation, Paraphrase

ALWAYS = 1 - 1e-12


def asked(question: str, system: str | None = None, answer: str = "Yes, IT IS.") -> Conversation:
    """Make a conversation of one question."""
    system_messages = (Message(role="system", content=system),) if system is not None else ()
    return Conversation(
        messages=(*system_messages, Message(role="user", content=question), Message(role="assistant", content=answer))
    )


def texts(conversation: Conversation) -> list[str]:
    """Return what every message says."""
    return [message.content for message in conversation.messages]


def only(conversation: Conversation, section: Augmentation, seed: int = 0) -> Conversation | None:
    """Return the one copy that was made, if there is one."""
    copies = augment(conversation, "key", section, seed)
    assert len(copies) <= 1
    return copies[0][1] if copies else None


def test_case_is_of_questions_alone() -> None:
    copy = only(asked("Is ÄSOP Greek?", system="Answer WELL."), Augmentation(case=ALWAYS))
    assert copy is not None
    assert texts(copy) == ["Answer WELL.", "is äsop greek?", "Yes, IT IS."]


@pytest.mark.parametrize(
    ("question", "without"),
    [
        ("Is it?", "Is it"),
        ("Is it?! \n", "Is it \n"),
        ("是吗？", "是吗"),
        ("هل هذا؟", "هل هذا"),
        ("Say (so).", "Say (so)"),
        ('He said "so."', None),
        ("Is it", None),
        ("?!", None),
        ("", None),
    ],
)
def test_punctuation_is_the_last_one(question: str, without: str | None) -> None:
    copy = only(asked(question), Augmentation(punctuation=ALWAYS))
    assert (copy and texts(copy)[0]) == without


A_TO_B = Paraphrase(text="Name the class.", alternatives=("Which class is it?",))
B_TO_A = Paraphrase(text="Which class is it?", alternatives=("Name the class.",))


@pytest.mark.parametrize(
    ("question", "reworded"),
    [
        ("Name the class.", "Which class is it?"),
        ("Name the class.\n\nSome text.", "Which class is it?\n\nSome text."),
        ("Some text.\nName the class.", "Some text.\nWhich class is it?"),
        ("Which class is it?\nName the class.", "Name the class.\nWhich class is it?"),
        ("Do name the class. Name the class.", None),
        ("name the class.", None),
    ],
)
def test_other_words_stand_for_whole_lines(question: str, reworded: str | None) -> None:
    section = Augmentation(paraphrase=ALWAYS, paraphrases=(A_TO_B, B_TO_A))
    copy = only(asked(question), section)
    assert (copy and texts(copy)[0]) == reworded


def test_other_words_are_the_same_wherever_the_text_stands_and_differ_between_rows() -> None:
    text = "Answer\n\nin short.\n"
    section = Augmentation(paraphrase=ALWAYS, paraphrases=(Paraphrase(text=text, alternatives=("A", "B", "C")),))
    found = set()
    for i in range(40):
        [(kind, copy)] = augment(asked("Answer\n\nin short.", system=text.strip()), f"key{i}", section, seed=0)
        system, question, _ = texts(copy)
        assert kind == "paraphrase"
        assert system == question
        found.add(system)
    assert found == {"A", "B", "C"}


def test_answers_and_tools_are_never_altered() -> None:
    conversation = Conversation(
        messages=(
            Message(role="user", content="Look IT up."),
            Message(
                role="assistant", content="Name the class.", tool_calls=(ToolCall(name="F", arguments={"A": "B."}),)
            ),
            Message(role="tool", content="FOUND. Name the class."),
            Message(role="assistant", content="It IS."),
            Message(role="user", content="Thank YOU!"),
            Message(role="assistant", content="Name the class."),
        )
    )
    section = Augmentation(case=ALWAYS, punctuation=ALWAYS, paraphrase=ALWAYS, paraphrases=(A_TO_B,))
    copies = augment(conversation, "key", section, seed=0)
    assert [kind for kind, _ in copies] == ["case", "punctuation"]
    for _, copy in copies:
        kept = [message for message in copy.messages if message.role != "user"]
        assert kept == [message for message in conversation.messages if message.role != "user"]
        assert [m.content for m in copy.messages if m.role == "user"] in (
            ["look it up.", "thank you!"],
            ["Look IT up", "Thank YOU"],
        )


def test_a_plain_text_without_a_question_has_no_copies() -> None:
    text = Conversation(messages=(Message(role="assistant", content="A text."),), layout="plain")
    assert augment(text, "key", Augmentation(case=ALWAYS, punctuation=ALWAYS), seed=0) == []


def test_no_section_key_means_no_copy() -> None:
    assert augment(asked("Is IT?"), "key", Augmentation(paraphrases=(A_TO_B,)), seed=0) == []
    assert augment(asked("a\n\nb"), "key", Augmentation(paraphrase=ALWAYS), seed=0) == []
