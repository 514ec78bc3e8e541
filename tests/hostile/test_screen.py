"""Nothing that is printed steers the terminal."""

from __future__ import annotations

import io

import pytest
from rich.control import Control
from rich.table import Table
from tiny_runs import finetune_command

from evaluation.screen import PrintableConsole, printable
from finetune.console import Reporter

HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m\x7f\x00\x08x"


def shown(thing: object, *, markup: bool = True) -> str:
    file = io.StringIO()
    PrintableConsole(file=file, width=200).print(thing, markup=markup)
    return file.getvalue()


@pytest.mark.parametrize("number", [n for n in (*range(0x20), *range(0x7F, 0xA0)) if chr(n) not in "\t\n"])
def test_every_control_character_is_replaced(number: int) -> None:
    assert printable(f"a{chr(number)}b") == "a\N{REPLACEMENT CHARACTER}b"


def test_text_is_left_as_it_is() -> None:
    text = "Zeile\tmit Tab\n下一行 👩🏽\u200d⚕️ é ~"
    assert printable(text) == text


@pytest.mark.parametrize("kind", ["text", "markup", "table"])
def test_however_it_is_printed(kind: str) -> None:
    table = Table("x")
    table.add_row(HOSTILE)
    found = {"text": shown(HOSTILE, markup=False), "markup": shown(f"[bold]{HOSTILE}[/]"), "table": shown(table)}[kind]
    assert not {"\x1b", "\x07", "\x9b", "\x7f", "\x00", "\x08"} & set(found)
    assert "x" in found


def test_colours_of_rich_are_left() -> None:
    file = io.StringIO()
    PrintableConsole(file=file, force_terminal=True).print("[red]a[/]")
    assert "\x1b[31m" in file.getvalue()


def test_rich_itself_may_move_the_cursor() -> None:
    """A progress bar is drawn over the one before."""
    file = io.StringIO()
    PrintableConsole(file=file, force_terminal=True).print(Control.home())
    assert file.getvalue().startswith("\x1b[H")


def test_the_commands_print_so() -> None:
    outcome = finetune_command("run", f"{HOSTILE}.yaml")
    assert outcome.status == 2
    assert "\x1b" not in outcome.stderr
    outcome = finetune_command("check", f"{HOSTILE}.yaml")
    assert "\x1b" not in outcome.stdout
    assert type(Reporter().console) is PrintableConsole
