"""A chat: keeps who speaks and what was said, and does what a line asks for."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError

from evaluation.conversation import Conversation, Layout
from evaluation.rendering import Unrenderable
from finetune.chat_history import Existing, History, save_line
from finetune.chat_screen import Screen
from finetune.console import Reporter
from finetune.errors import DataError, TaskError, nearest
from finetune.streaming import Answer, Sampling, context_of, stream_answer
from finetune.voices import Voice, voice_called

COMMANDS = {
    "/system": "/system TEXT      a new conversation with this system message; without TEXT, with none",
    "/clear": "/clear            a new conversation",
    "/undo": "/undo             forget the last question and answer",
    "/retry": "/retry            ask the last question again",
    "/use": "/use NAME         let this one answer",
    "/compare": "/compare NAME     let this one answer beside; without NAME, nobody",
    "/set": "/set NAME VALUE   temperature, top_p, max_new_tokens or seed",
    "/save": "/save FILE        write the conversation as a row to train on; FILE append, FILE overwrite",
    "/help": "/help             this list",
    "/quit": "/quit             leave, as Ctrl-D does; Ctrl-C stops an answer",
}


class Session:
    """One chat with one or more voices, each with its own history."""

    def __init__(
        self, voices: Sequence[Voice], compared: str | None, sampling: Sampling, screen: Screen, reporter: Reporter
    ) -> None:
        """Begin an empty conversation with the first voice, and with another beside it where one is named.

        Raises:
            TaskError: nobody here has that name.
        """
        self._voices = tuple(voices)
        self._voice = voices[0]
        self._beside = voice_called(voices, compared) if compared else None
        self._histories = {voice.name: History() for voice in voices}
        self._sampling = sampling
        self._screen = screen
        self._reporter = reporter
        self._asked: str | None = None
        self._answered: tuple[str, ...] = ()  # whose history holds the answer to it
        self._answers = 0

    def take(self, line: str) -> bool:
        """Do what a line asks for; say whether the chat goes on.

        Raises:
            UserError: it cannot be done; the conversation is as before.
        """
        if not line.strip():
            return True
        if not line.startswith("/") or line.startswith("//"):
            self._ask(line.removeprefix("/") if line.startswith("//") else line)
            return True
        word, _, rest = line.strip().partition(" ")
        if word == "/quit":
            return False
        self._doing(word)(rest.strip())
        return True

    def _doing(self, word: str) -> Callable[[str], None]:
        doing: dict[str, Callable[[str], None]] = {
            "/system": self._begin,
            "/clear": self._clear,
            "/undo": self._undo,
            "/retry": self._retry,
            "/use": self._use,
            "/compare": self._compare,
            "/set": self._set,
            "/save": self._save,
            "/help": lambda _: self._reporter.say("\n".join(COMMANDS.values())),
        }
        if word not in doing:
            hint = f"{nearest(word, COMMANDS)}; a text that begins with / is written with //"
            raise TaskError("there is no such command", where=word, hint=hint)
        return doing[word]

    def _ask(self, question: str) -> None:
        voices = [voice for voice in (self._beside, self._voice) if voice is not None]
        prompts = {voice.name: self._prompt_ids(voice, question) for voice in voices}
        self._asked, self._answered = question, ()
        seed = self._sampling.seed + self._answers
        self._answers += 1
        streams = {
            voice.name: stream_answer(voice.model, prompts[voice.name], self._sampling, seed, voice.speaking)
            for voice in voices
        }
        try:
            answers = self._screen.show(streams)
        except KeyboardInterrupt:
            self._reporter.say("stopped, and not kept; /retry asks again")
            return
        for voice in voices:
            self._histories[voice.name] = self._histories[voice.name].with_answer(question, answers[voice.name])
            self._say_if_cut(voice, answers[voice.name], len(voices) > 1)
        self._answered = tuple(answers)

    def _prompt_ids(self, voice: Voice, question: str) -> tuple[int, ...]:
        ids = self._rendered(voice, self._histories[voice.name].prompt(question, layout_of(voice)))
        most = context_of(voice.model)
        if len(ids) >= most:
            what = f"with this question the conversation has {len(ids)} tokens, and {voice.name} holds {most}"
            raise DataError(what, hint="/clear begins anew; nothing is ever cut away silently")
        return ids

    def _rendered(self, voice: Voice, conversation: Conversation) -> tuple[int, ...]:
        try:
            return voice.model.renderer.prompt(conversation)
        except Unrenderable as refusal:
            raise DataError(f"it cannot be asked: {refusal}", where=voice.name) from refusal

    def _say_if_cut(self, voice: Voice, answer: Answer, named: bool) -> None:
        name = f"{voice.name}: " if named else ""
        if answer.ending == "limit":
            more = f"for more: /set max_new_tokens {2 * self._sampling.max_new_tokens}, then /retry"
            self._reporter.say(f"{name}cut at {answer.tokens} tokens; {more}")
        elif answer.ending == "context":
            self._reporter.say(f"{name}cut: the {context_of(voice.model)} tokens that it holds are full; /clear")

    def _begin(self, system: str) -> None:
        begun = History(system or None)
        for voice in self._voices:
            if system and layout_of(voice) == "plain":
                raise DataError("without a chat template there is no system message", where=voice.name)
            self._rendered(voice, begun.prompt("a", layout_of(voice)))
        self._histories = {voice.name: begun for voice in self._voices}
        self._asked = None
        self._reporter.say("a new conversation" + (" with this system message" if system else ""))

    def _clear(self, _: str) -> None:
        self._histories = {name: History(history.system) for name, history in self._histories.items()}
        self._asked = None
        self._reporter.say("a new conversation")

    def _undo(self, _: str) -> None:
        exchanges = self._histories[self._voice.name].exchanges
        if not exchanges:
            raise TaskError("nothing was said yet", where="/undo")
        self._forget_last(self._answered or (self._voice.name,))
        self._asked, self._answered = None, ()
        self._reporter.say(f"forgotten: {exchanges[-1].question}")

    def _retry(self, _: str) -> None:
        if self._asked is None:
            raise TaskError("nothing was asked yet", where="/retry")
        before = self._histories, self._answered
        self._forget_last(self._answered)
        try:
            self._ask(self._asked)
        except DataError:
            self._histories, self._answered = before
            raise

    def _forget_last(self, names: Sequence[str]) -> None:
        self._histories = {
            name: history.without_last() if name in names else history for name, history in self._histories.items()
        }

    def _use(self, name: str) -> None:
        voice = voice_called(self._voices, name)
        self._beside = None if self._beside is voice else self._beside
        self._voice, self._answered = voice, ()
        self._reporter.say(f"{name} answers, with a history of {len(self._histories[name].exchanges)} questions")

    def _compare(self, name: str) -> None:
        beside = voice_called(self._voices, name) if name else None
        if beside is self._voice:
            raise TaskError("it answers already", where=name, hint="name another: /compare base")
        self._beside = beside
        self._reporter.say(f"{name} answers beside {self._voice.name}" if name else f"{self._voice.name} answers alone")

    def _set(self, text: str) -> None:
        name, _, value = text.replace("=", " ", 1).partition(" ")
        if name not in Sampling.model_fields:
            raise TaskError("there is no such setting", where=name, hint=nearest(name, Sampling.model_fields))
        try:
            self._sampling = Sampling.model_validate(self._sampling.model_dump() | {name: value.strip()})
        except ValidationError as error:
            raise TaskError(f"{value.strip()!r}: {error.errors()[0]['msg']}", where=name) from error
        self._reporter.say(str(self._sampling))

    def _save(self, text: str) -> None:
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise TaskError(f"a quotation mark is open: {text}", where="/save") from error
        how: dict[str, Existing] = {"append": "append", "overwrite": "overwrite"}
        if not words or len(words) > 2 or (len(words) == 2 and words[1] not in how):
            raise TaskError("which file?", where="/save", hint="/save FILE, /save FILE append, /save FILE overwrite")
        file = Path(words[0]).expanduser()
        save_line(file, self._histories[self._voice.name].training_line(), how.get(words[-1], "refuse"))
        self._reporter.say(f"{file}: the conversation with {self._voice.name}; `rows: messages` reads it")


def layout_of(voice: Voice) -> Layout:
    """Say how a voice is asked: through its chat template, or as a text to continue where it has none."""
    return "chat" if voice.model.renderer.tokenizer.chat_template else "plain"
