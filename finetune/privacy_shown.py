"""What is shown of rows, in the audit and in a report: without the personal data that the recipe looks for."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.conversation import Conversation, Message
from finetune.privacy import PrivacyScan
from finetune.recipe_data import Privacy


class ShownTexts:
    """Puts placeholders in place of personal data where texts are shown, whatever is done to the rows themselves."""

    def __init__(self, privacy: Privacy | None) -> None:
        """Take the recipe's section; without one, texts are shown as they are."""
        self._scan = PrivacyScan(privacy.model_copy(update={"action": "replace"})) if privacy else None

    def conversation(self, conversation: Conversation) -> Conversation:
        """Return a conversation as it may be shown."""
        return self._scan.scan(conversation).conversation if self._scan else conversation

    def texts(self, texts: Sequence[str]) -> list[str]:
        """Return texts as they may be shown; a value that stands in several has the same placeholder in each."""
        messages = tuple(Message(role="user", content=text) for text in texts)
        return [message.content for message in self.conversation(Conversation(messages=messages)).messages]
