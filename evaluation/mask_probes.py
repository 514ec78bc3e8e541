"""Conversations on which a broken mask shows, whatever the rows of a run look like."""

from __future__ import annotations

from evaluation.conversation import Conversation, Message, Role

QUESTION = "Is 38.5 °C a fever? 🙂"
ANSWER = "Yes, it is. 👩‍⚕️ Drink enough."
AGAIN = "北京市的天气怎么样？"
REPLY = "很好，\n\n天气晴。  (21 °C)"
BRIEF = "Be brief. Answer in the language of the question."


def _talk(*turns: tuple[Role, str], plain: bool = False) -> Conversation:
    messages = tuple(Message(role=role, content=content) for role, content in turns)
    return Conversation(messages=messages, layout="plain" if plain else "chat")


PROBES = (
    _talk(("user", QUESTION), ("assistant", ANSWER)),
    _talk(("user", AGAIN), ("assistant", REPLY)),
    _talk(("system", BRIEF), ("user", AGAIN), ("assistant", REPLY)),
    _talk(("user", QUESTION), ("assistant", ANSWER), ("user", AGAIN), ("assistant", REPLY)),
    _talk(("system", BRIEF), ("user", AGAIN), ("assistant", REPLY), ("user", QUESTION), ("assistant", ANSWER)),
    _talk(*(("user", QUESTION), ("assistant", ANSWER)) * 2, ("user", AGAIN), ("assistant", REPLY)),
    _talk(("system", BRIEF), *(("user", AGAIN), ("assistant", ANSWER), ("user", QUESTION), ("assistant", REPLY)) * 2),
    _talk(("user", QUESTION), ("assistant", ANSWER), plain=True),
    _talk(("user", AGAIN), ("assistant", REPLY), ("user", QUESTION), ("assistant", ANSWER), plain=True),
    _talk(("assistant", ANSWER), plain=True),
    _talk(("assistant", REPLY), plain=True),
)
"""Chats of one to four turns and plain texts; those that a template cannot render are left out."""
