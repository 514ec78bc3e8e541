"""Altered copies of a training row: small letters, no last punctuation, other words for an instruction.

Answers, tool turns and tool calls stay as they are. Which rows have a copy depends on their keys and the seed alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence

from evaluation.conversation import Conversation, Role
from finetune.recipe_data import Augmentation, Paraphrase
from finetune.splits import split_by_fraction

LAST_MARKS = ".?!…,;:。？！，、；：؟،؛۔।॥։"
"""What a sentence may end with, in the scripts that have signs of their own; brackets and quotes are not among them."""


def augment(conversation: Conversation, key: str, section: Augmentation, seed: int) -> list[tuple[str, Conversation]]:
    """Return the altered copies of one row, each with the kind that altered it; none that equals the row.

    Each kind takes a share of the rows by a hash of its own, and a copy is altered in one way only.
    """
    copies: list[tuple[str, Conversation]] = []
    if _takes(key, "case", section.case, seed):
        copies.append(("case", _altered(conversation, ("user",), str.lower)))
    if _takes(key, "punctuation", section.punctuation, seed):
        copies.append(("punctuation", _altered(conversation, ("user",), _without_last_marks)))
    if section.paraphrases and _takes(key, "paraphrase", section.paraphrase, seed):
        reworded = _altered(conversation, ("system", "user"), _rewording(section.paraphrases, key, seed))
        copies.append(("paraphrase", reworded))
    return [(kind, copy) for kind, copy in copies if copy != conversation]


def _takes(key: str, kind: str, share: float | None, seed: int) -> bool:
    return share is not None and bool(split_by_fraction([key], share, f"{kind} {seed}"))


def _altered(conversation: Conversation, roles: Sequence[Role], alter: Callable[[str], str]) -> Conversation:
    """Alter the messages of some roles; the last message is the answer and is none of them."""
    *asked, answer = conversation.messages
    messages = (
        message.model_copy(update={"content": alter(message.content)}) if message.role in roles else message
        for message in asked
    )
    return conversation.model_copy(update={"messages": (*messages, answer)})


def _without_last_marks(text: str) -> str:
    """Take off the last punctuation and leave the space behind it; a text of nothing else stays."""
    said = text.rstrip()
    shorter = said.rstrip(LAST_MARKS)
    return shorter + text[len(said) :] if shorter.strip() else text


def _rewording(paraphrases: Sequence[Paraphrase], key: str, seed: int) -> Callable[[str], str]:
    """Return what puts other words in place of whole lines that say a text; the same choice wherever it stands.

    All texts are looked for at once: an alternative may itself be the text of another paraphrase.
    """
    words: dict[str, str] = {}
    for paraphrase in paraphrases:
        digest = hashlib.sha256(f"{seed} {len(key)} {key} {paraphrase.text}".encode()).digest()
        choice = int.from_bytes(digest) % len(paraphrase.alternatives)
        words[paraphrase.text.strip()] = paraphrase.alternatives[choice].strip()
    texts = "|".join(re.escape(text) for text in sorted(words, key=len, reverse=True))
    pattern = re.compile(rf"^(?:{texts})$", re.MULTILINE)
    return lambda content: pattern.sub(lambda found: words[found[0]], content)
