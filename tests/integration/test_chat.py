"""`finetune chat`: what a line does, from a pipe and through a real terminal."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
from rich.console import Console
from talkative import ANSWERS, TUNED, talkative_run
from tiny_runs import Outcome, finetune_command, hear_ctrl_c, process_command

from evaluation.conversation import Conversation, Message
from evaluation.task import Sample
from finetune.adapter_commands import find_base
from finetune.bases import ResolvedBase, resolve_base
from finetune.chat_history import History
from finetune.chat_screen import ColumnScreen, PlainScreen, printable
from finetune.chat_session import COMMANDS, Session
from finetune.chatting import system_of_rows
from finetune.console import Reporter
from finetune.errors import DataError, TaskError, UserError
from finetune.peft_weights import open_peft_folder
from finetune.recipe import Base
from finetune.row_messages import listed_conversation
from finetune.row_template_files import load_row_template
from finetune.row_template_types import MessagesTemplate
from finetune.run_directory import RunDirectory
from finetune.streaming import Answer, Sampling
from finetune.voices import BASE, Voice, Wanted, load_voices, voice_called

PROMPT = r">[^\n]*\x1b\[\?25h"
"""The sign, and the cursor shown behind it."""
WORD, CHINESE, FACE, COUNT = ANSWERS


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talkative_run(tmp_path_factory)


@pytest.fixture(scope="module")
def voices(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Voice, ...]:
    wanted = Wanted(str(run), (f"loud={run.parent / 'loud'}",))
    return load_voices(wanted, tmp_path_factory.mktemp("cache"), Reporter())


class Chat:
    """A session with what it wrote: answers on `out`, everything else on `said`."""

    def __init__(self, voices: tuple[Voice, ...], compared: str | None = None, limit: int = 40) -> None:
        self.out, self.said = io.StringIO(), io.StringIO()
        screen = PlainScreen(Console(file=self.out, width=200))
        reporter = Reporter(Console(file=self.said, width=200))
        self.session = Session(voices, compared, Sampling(max_new_tokens=limit), screen, reporter)

    def take(self, *lines: str) -> str:
        """Return what the lines wrote as answers."""
        before = self.out.tell()
        for line in lines:
            assert self.session.take(line)
        return self.out.getvalue()[before:]


def test_it_answers_as_the_adapter_and_the_base_beside(voices: tuple[Voice, ...]) -> None:
    assert Chat(voices).take(WORD) == f"{TUNED}\n"
    assert Chat(voices, BASE).take(FACE) == f"[base]\n{ANSWERS[FACE]}\n[tiny]\n{TUNED}\n"


def test_another_adapter_is_used_by_its_name_and_has_a_history_of_its_own(voices: tuple[Voice, ...]) -> None:
    chat = Chat(voices)
    chat.take(WORD)
    assert chat.take("/use loud", COUNT) == f"{TUNED.upper()}\n"
    assert chat.take("/compare base", "/clear", COUNT) == f"[base]\n{ANSWERS[COUNT]}\n[loud]\n{TUNED.upper()}\n"
    assert chat.take("/compare", "/clear", COUNT) == f"{TUNED.upper()}\n"


def test_the_adapter_is_back_after_the_base_has_spoken(voices: tuple[Voice, ...]) -> None:
    chat = Chat(voices)
    answers = [chat.take(f"/use {name}", "/clear", WORD) for name in ("base", "tiny", "loud", "base", "loud", "tiny")]
    base, tuned, loud = f"{ANSWERS[WORD]}\n", f"{TUNED}\n", f"{TUNED.upper()}\n"
    assert answers == [base, tuned, loud, base, loud, tuned]


def test_the_prompt_is_the_renderers_with_all_that_was_said(voices: tuple[Voice, ...]) -> None:
    history = History("be kind").with_answer(WORD, Answer(TUNED, 5, "stop"))
    expected = (
        Message(role="system", content="be kind"),
        Message(role="user", content=WORD),
        Message(role="assistant", content=TUNED),
        Message(role="user", content=COUNT),
    )
    assert history.prompt(COUNT, "chat").messages == expected
    assert [m.content for m in history.prompt(COUNT, "plain").messages] == [COUNT]


def test_what_is_saved_is_a_row_that_training_reads(voices: tuple[Voice, ...], tmp_path: Path) -> None:
    file = tmp_path / "my chats" / "one.jsonl"
    chat = Chat(voices)
    chat.take("/system be kind", WORD, FACE, f"/save '{file}'")
    row = json.loads(file.read_text(encoding="utf-8"))
    template = load_row_template("messages")
    assert isinstance(template, MessagesTemplate)
    read = listed_conversation(template, {"messages": row["messages"], "system": "", "tools": ""})
    assert [(m.role, m.content) for m in read.messages] == [
        ("system", "be kind"),
        ("user", WORD),
        ("assistant", TUNED),
        ("user", FACE),
        ("assistant", TUNED),
    ]
    with pytest.raises(DataError, match="such a file already"):
        chat.take(f"/save '{file}'")
    chat.take(f"/save '{file}' append")
    assert file.read_text(encoding="utf-8").count("\n") == 2
    chat.take("/undo", f"/save '{file}' overwrite")
    assert [len(json.loads(line)["messages"]) for line in file.read_text(encoding="utf-8").splitlines()] == [3]


def test_an_answer_that_was_cut_is_said_to_be_and_is_not_saved(voices: tuple[Voice, ...], tmp_path: Path) -> None:
    chat = Chat(voices, limit=2)
    chat.take(WORD)
    assert "cut at 2 tokens" in chat.said.getvalue()
    with pytest.raises(DataError, match="answer 1 was cut"):
        chat.take(f"/save {tmp_path / 'a.jsonl'}")
    assert chat.take("/set max_new_tokens 40", "/retry") == f"{TUNED}\n"
    chat.take(f"/save {tmp_path / 'a.jsonl'}")


@pytest.mark.parametrize("line", ["/save {}/a.jsonl", "/undo", "/retry", "/save", "/save a b", "/save 'a"])
def test_what_needs_something_said_or_a_file_says_so(line: str, voices: tuple[Voice, ...], tmp_path: Path) -> None:
    with pytest.raises(UserError):
        Chat(voices).take(line.format(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_undo_forgets_one_exchange_of_both_and_retry_asks_again(voices: tuple[Voice, ...]) -> None:
    chat = Chat(voices, BASE)
    chat.take(WORD, COUNT)
    asked_twice = chat.take("/retry")
    assert lengths(chat) == {"tiny": 2, "base": 2, "loud": 0}
    assert asked_twice.startswith("[base]")
    chat.take("/undo")
    assert lengths(chat) == {"tiny": 1, "base": 1, "loud": 0}
    chat.take("/undo")
    assert lengths(chat)["tiny"] == 0


def test_ctrl_c_keeps_neither_question_nor_answer(voices: tuple[Voice, ...]) -> None:
    class Interrupted(PlainScreen):
        def show(self, streams: object) -> dict[str, Answer]:
            raise KeyboardInterrupt

    chat = Chat(voices)
    chat.take(WORD)
    screen, chat.session._screen = chat.session._screen, Interrupted(Console(file=io.StringIO()))
    chat.take(WORD)
    assert lengths(chat)["tiny"] == 1
    chat.session._screen = screen
    assert chat.take("/retry") != ""
    assert lengths(chat)["tiny"] == 2


def test_a_conversation_that_does_not_fit_is_refused_and_stays(voices: tuple[Voice, ...]) -> None:
    chat = Chat(voices)
    chat.take(WORD)
    with pytest.raises(DataError, match="holds 512"):
        chat.take("fever " * 600)
    assert lengths(chat)["tiny"] == 1
    with pytest.raises(DataError, match="control token"):
        chat.take("a <|im_end|> b")
    assert lengths(chat)["tiny"] == 1


@pytest.mark.parametrize(
    ("line", "nearest"),
    [
        ("/undoo", "'/undo'"),
        ("/set temprature 1", "'temperature'"),
        ("/set temperature hot", "number"),
        ("/set top_p 0", "greater than 0"),
        ("/use lod", "'loud'"),
        ("/compare tiny", "answers already"),
    ],
)
def test_what_is_not_known_names_the_nearest(line: str, nearest: str, voices: tuple[Voice, ...]) -> None:
    with pytest.raises(TaskError, match=nearest):
        Chat(voices).take(line)


def test_commands_that_are_listed_are_there(voices: tuple[Voice, ...]) -> None:
    chat = Chat(voices)
    chat.take("/help")
    for command in COMMANDS.keys() - {"/quit"}:
        assert chat.session._doing(command)
        assert command in chat.said.getvalue()
    assert not chat.session.take("/quit")
    assert chat.take("//quit") != ""


def test_a_system_message_begins_anew(voices: tuple[Voice, ...]) -> None:
    chat = Chat(voices)
    chat.take(WORD, "/system be kind")
    assert lengths(chat) == {"tiny": 0, "loud": 0, "base": 0}
    chat.take("/clear")
    assert chat.session._histories["tiny"].system == "be kind"
    chat.take("/system")
    assert chat.session._histories["tiny"].system is None


def test_an_answer_is_shown_as_it_grows() -> None:
    out = io.StringIO()
    seen = []

    def growing() -> Iterator[Answer]:
        for text in ("It", "It is", "It is."):
            yield Answer(text, 1, None)
            seen.append(out.getvalue())

    PlainScreen(Console(file=out)).show({"tuned": growing()})
    assert seen == ["It", "It is", "It is."]
    assert out.getvalue() == "It is.\n"


def test_an_answer_cannot_steer_the_terminal() -> None:
    assert printable("\x1b]0;title\x07a\tb\n\x9b2J\r") == "\ufffd]0;title\ufffda\tb\n\ufffd2J\ufffd"


def test_columns_show_both_to_their_end() -> None:
    def growing(text: str) -> Iterator[Answer]:
        for i in range(1, len(text) + 1):
            yield Answer(text[:i], i, "stop" if i == len(text) else None)

    out = io.StringIO()
    screen = ColumnScreen(Console(file=out, width=60, force_terminal=True))
    answers = screen.show({"base": growing("short"), "tuned": growing("a longer one :smile: [bold]")})
    assert {name: answer.text for name, answer in answers.items()} == {
        "base": "short",
        "tuned": "a longer one :smile: [bold]",
    }
    assert "short" in out.getvalue()
    assert ":smile:" in out.getvalue()


def test_who_cannot_be_loaded_is_refused_with_the_way_out(run: Path, tmp_path: Path) -> None:
    base, loud = str(run.parent / "base"), str(run.parent / "loud")
    for wanted, said in (
        (Wanted(base, merged=True), "belongs to runs"),
        (Wanted(str(run), (loud,), merged=True), "takes no adapter"),
        (Wanted(str(run), (f"tiny={loud}",)), "have one name"),
        (Wanted(str(run), (base,)), "no adapter_config.json"),
        (Wanted(str(tmp_path / "nothing")), "no such base"),
    ):
        with pytest.raises(UserError, match=said):
            load_voices(wanted, tmp_path, Reporter())
    (merged,) = load_voices(Wanted(str(run), merged=True), tmp_path, Reporter())
    with pytest.raises(TaskError, match="no base to compare with"):
        voice_called([merged], BASE)
    assert Chat((merged,)).take(WORD) == f"{TUNED}\n"


def test_a_base_that_changed_since_the_run_is_refused(run: Path, tmp_path: Path) -> None:
    lock = run / "recipe.lock.json"
    before = lock.read_text()
    lock.write_text(json.dumps(json.loads(before) | {"base_sha256": "0" * 64}))
    try:
        with pytest.raises(DataError, match="not the one that the run was made from"):
            load_voices(Wanted(str(run)), tmp_path, Reporter())
    finally:
        lock.write_text(before)


def test_an_adapter_folder_brings_its_base(run: Path, tmp_path: Path) -> None:
    voices = load_voices(Wanted(str(run.parent / "loud")), tmp_path, Reporter())
    assert [voice.name for voice in voices] == ["loud", BASE]
    assert Chat(voices, BASE).take(WORD) == f"[base]\n{ANSWERS[WORD]}\n[loud]\n{TUNED.upper()}\n"


def test_an_adapter_folder_brings_its_base_at_its_commit(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(shutil.copytree(run.parent / "loud", tmp_path / "loud"))
    settings = json.loads((own / "adapter_config.json").read_text())
    (own / "adapter_config.json").write_text(
        json.dumps(settings | {"base_model_name_or_path": "me/base", "revision": "abc"})
    )
    asked: list[Base] = []

    def resolve(base: Base, cache: Path, announce: Callable[[str], None]) -> ResolvedBase:
        asked.append(base)
        return resolve_base(Base(model=str(run.parent / "base")), cache, announce)

    monkeypatch.setattr("finetune.voices.resolve_base", resolve)
    load_voices(Wanted(str(own)), tmp_path, Reporter())
    assert asked == [Base(model="me/base", revision="abc")]


def test_the_adapter_of_a_run_is_taken_with_the_runs_own_commit(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(shutil.copytree(run, tmp_path / "run"))
    recipe = (own / "recipe.yaml").read_text().replace(str(run.parent / "base"), "me/base")
    (own / "recipe.yaml").write_text(recipe)
    lock = json.loads((own / "recipe.lock.json").read_text()) | {"base": "me/base@abc"}
    (own / "recipe.lock.json").write_text(json.dumps(lock))
    asked: list[Base] = []

    def resolve(base: Base, cache: Path, announce: Callable[[str], None]) -> ResolvedBase:
        asked.append(base)
        return resolve_base(Base(model=str(run.parent / "base")), cache, announce)

    monkeypatch.setattr("finetune.run_lock.resolve_base", resolve)
    adapter = open_peft_folder(own / "adapter")
    assert find_base(adapter, None, tmp_path, Reporter()).folder == run.parent / "base"
    assert [base.revision for base in asked] == ["abc"]
    (own / "recipe.lock.json").write_text(json.dumps(lock | {"base_sha256": "0" * 64}))
    with pytest.raises(DataError, match="not the one that the run was made from"):
        find_base(adapter, None, tmp_path, Reporter())


def test_pissa_shows_no_base_and_no_second_adapter(run: Path, tmp_path: Path) -> None:
    loud = run.parent / "loud"
    odd = tmp_path / "odd"
    odd.mkdir()
    for path in loud.iterdir():
        (odd / path.name).write_bytes(path.read_bytes())
    config = json.loads((odd / "adapter_config.json").read_text()) | {"init_lora_weights": "pissa"}
    (odd / "adapter_config.json").write_text(json.dumps(config))
    base = str(run.parent / "base")
    (alone,) = load_voices(Wanted(base, (str(odd),)), tmp_path, Reporter())
    assert alone.name == "odd"
    with pytest.raises(DataError, match="changes the base"):
        load_voices(Wanted(base, (str(odd), str(loud))), tmp_path, Reporter())


@pytest.mark.parametrize(
    ("systems", "expected"),
    [(["sort"], "sort"), (["sort", "sort"], "sort"), (["sort", "name"], None), ([None], None), (["a\nb"], None)],
)
def test_the_system_message_of_the_rows_is_found(
    systems: list[str | None], expected: str | None, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    samples = []
    for number, system in enumerate(systems):
        first = () if system is None else (Message(role="system", content=system),)
        prompt = Conversation(messages=(*first, Message(role="user", content="q")))
        samples.append(Sample(id=str(number), prompt=prompt, reference="a").model_dump_json())
    (tmp_path / "data" / "held_out.jsonl").write_text("\n".join(samples))
    assert system_of_rows(RunDirectory(tmp_path)) == expected
    assert system_of_rows(RunDirectory(tmp_path / "data")) is None


def test_rows_that_are_texts_have_no_system_message(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    sample = Sample(id="0", prompt=Conversation(messages=(), layout="plain"), reference="a text")
    (tmp_path / "data" / "held_out.jsonl").write_text(sample.model_dump_json())
    assert system_of_rows(RunDirectory(tmp_path)) is None


def piped(text: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return finetune_command("chat", *arguments)


def test_from_a_pipe_every_line_is_answered(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = piped(f"{WORD}\n\n{COUNT}\n", str(run), "--cache", str(tmp_path), monkeypatch=monkeypatch)
    assert (told.status, told.stdout) == (0, f"{TUNED}\n{TUNED}\n")
    told = piped(f"{WORD}\n/undoo\n{COUNT}\n", str(run), "--cache", str(tmp_path), monkeypatch=monkeypatch)
    assert (told.status, told.stdout) == (2, f"{TUNED}\n")
    assert "did you mean '/undo'?" in told.stderr


@pytest.mark.slow
def test_through_a_terminal(run: Path, tmp_path: Path) -> None:
    command, *arguments = process_command("chat", str(run), "--compare", "base", "--cache", str(tmp_path))
    chat = spawned(command, arguments, tmp_path)
    chat.expect("Ctrl-D leaves")
    chat.expect(PROMPT)
    chat.sendline(CHINESE)
    chat.expect(ANSWERS[CHINESE][:3])  # side by side: both in one row of the table
    chat.expect(TUNED)
    say(chat, "/compare", "answers alone")
    say(chat, "/system be kind", "with this system message")
    say(chat, "/undoo", "did you mean '/undo'")
    say(chat, WORD, TUNED)
    say(chat, "/save chat.jsonl", "rows: messages")
    say(chat, "/save chat.jsonl", "such a file already")
    say(chat, "/undo", "forgotten: Which word is it")
    say(chat, "/set max_new_tokens 400", "max_new_tokens=400")
    say(chat, "/set temperature 9", "temperature=9")
    stop_an_answer(chat)
    chat.expect(PROMPT)
    chat.sendeof()
    chat.expect(pexpect.EOF)
    chat.close()
    assert chat.exitstatus == 0
    rows = [json.loads(line)["messages"] for line in (tmp_path / "chat.jsonl").read_text().splitlines()]
    assert [[message["role"] for message in row] for row in rows] == [["system", "user", "assistant"]]


@pytest.mark.slow
def test_ctrl_c_at_the_prompt_leaves(run: Path, tmp_path: Path) -> None:
    command, *arguments = process_command("chat", str(run), "--merged", "--cache", str(tmp_path))
    chat = spawned(command, arguments, tmp_path)
    chat.expect(PROMPT)
    chat.sendintr()
    chat.expect(pexpect.EOF)
    chat.close()
    assert chat.exitstatus == 0


def spawned(command: str, arguments: list[str], folder: Path) -> pexpect.spawn:
    environment = os.environ | {"PROMPT_TOOLKIT_NO_CPR": "1"}  # nobody here answers where the cursor is
    return pexpect.spawn(
        command,
        arguments,
        encoding="utf-8",
        timeout=60,
        dimensions=(40, 100),
        cwd=str(folder),
        env=environment,
        preexec_fn=hear_ctrl_c,
    )


def stop_an_answer(chat: pexpect.spawn) -> None:
    """Ask until an answer is long enough to be stopped; at this temperature some end after a word, most do not."""
    for seed in range(1, 30):
        say(chat, f"/set seed {seed}", f"seed={seed}")
        chat.expect(PROMPT)
        chat.sendline(COUNT)
        chat.expect_exact("[?2004l")  # the line editor leaves the terminal to the answer
        if chat.expect([PROMPT, pexpect.TIMEOUT], timeout=0.3) == 1:
            chat.sendintr()
            chat.expect("stopped, and not kept")
            return
        chat.sendline("/undo")
        chat.expect("forgotten")
    pytest.fail("every answer was too short to be stopped")


def say(chat: pexpect.spawn, line: str, expected: str) -> None:
    chat.expect(PROMPT)
    chat.sendline(line)
    chat.expect(line.split()[0])
    chat.expect_exact(expected)


def lengths(chat: Chat) -> dict[str, int]:
    return {name: len(history.exchanges) for name, history in chat.session._histories.items()}
