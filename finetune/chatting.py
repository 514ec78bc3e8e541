"""`finetune chat`: loads who was named and takes lines until there are no more."""

from __future__ import annotations

import sys
from pathlib import Path

from evaluation.files import read_jsonl_lines
from evaluation.screen import PrintableConsole
from evaluation.task import Sample
from finetune.chat_screen import ColumnScreen, PlainScreen
from finetune.chat_session import COMMANDS, Session, layout_of
from finetune.console import Reporter
from finetune.errors import UserError
from finetune.run_directory import RunDirectory
from finetune.streaming import Sampling
from finetune.terminal import LineReader, PipeReader, TerminalReader
from finetune.voices import Voice, Wanted, load_voices


def chat(wanted: Wanted, compared: str | None, sampling: Sampling, cache: Path) -> None:
    """Talk to a model: at a terminal with a prompt, else line by line from standard input.

    Raises:
        UserError: who is named cannot be loaded; or, without a terminal, a line cannot be done.
    """
    reporter = Reporter()
    with reporter.bar(f"load {wanted.named}", 1) as advance:
        voices = load_voices(wanted, cache, reporter)
        advance(1)
    console = PrintableConsole(highlight=False)
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    screen = ColumnScreen(console) if at_terminal else PlainScreen(console)
    session = Session(voices, compared, sampling, screen, reporter)
    if at_terminal:
        _introduce(voices, reporter)
        if (system := system_of_rows(RunDirectory(Path(wanted.named)))) is not None:
            reporter.say(f"Its rows have a system message; to ask as in training, type\n/system {system}")
        _talk(session, TerminalReader(list(COMMANDS)), reporter)
    else:
        _answer_lines(session, PipeReader())


def system_of_rows(run: RunDirectory) -> str | None:
    """Return the system message that all held-out rows of a run share; none where there is no such message."""
    file = run.data / "held_out.jsonl"
    if not file.is_file():
        return None
    found = {_system_of(Sample.model_validate_json(line)) for _, line in read_jsonl_lines(file)}
    return found.pop() if len(found) == 1 else None


def _system_of(sample: Sample) -> str | None:
    first = next(iter(sample.prompt.messages), None)  # none: the rows are texts
    return first.content if first is not None and first.role == "system" and "\n" not in first.content else None


def _talk(session: Session, reader: LineReader, reporter: Reporter) -> None:
    """Take lines until the person leaves; what cannot be done is said, and the chat goes on."""
    while True:
        try:
            line = reader.read()
            if line is None or not session.take(line):
                return
        except UserError as error:
            reporter.say(str(error))
        except KeyboardInterrupt:
            return


def _answer_lines(session: Session, reader: LineReader) -> None:
    """Take all lines; the first that cannot be done ends the command."""
    while (line := reader.read()) is not None:
        if not session.take(line):
            return


def _introduce(voices: tuple[Voice, ...], reporter: Reporter) -> None:
    others = f" (also here: {', '.join(voice.name for voice in voices[1:])})" if len(voices) > 1 else ""
    reporter.say(f"{voices[0].name}{others}. /help lists the commands, Ctrl-D leaves.")
    if layout_of(voices[0]) == "plain":
        reporter.say("It has no chat template: each line is continued as a text, without what was said before.")
