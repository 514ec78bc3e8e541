"""`finetune list`: shipped recipes, row and chat templates, and the runs in a folder."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from evaluation.screen import PrintableConsole
from finetune.chat_templates import describe, list_chat_templates
from finetune.recipe_file import load_recipe, shipped_recipes
from finetune.row_templates import list_row_templates, load_row_template
from finetune.run_directory import STAGES, RunDirectory


def list_recipes() -> None:
    """Print the shipped recipes with what each does."""
    _print("recipe", [(name, load_recipe(name).recipe.description) for name in shipped_recipes()])


def list_templates() -> None:
    """Print the row templates with their columns, and the chat templates."""
    console = PrintableConsole(highlight=False)
    console.print("Row templates: how a row becomes a conversation (`rows:` of a source)\n", markup=False)
    for name in list_row_templates():
        template = load_row_template(name)
        console.print(f"[bold]{escape(name)}[/]  {escape(template.description)}")
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for column, spec in template.columns.items():
            need = "required" if spec.required else "[dim]optional[/]"
            table.add_row("", f"[cyan]{escape(column)}[/]", need, escape(spec.doc))
        console.print(table)
        console.print()
    console.print("Chat templates: for bases that have none (`chat_template:` of the base)\n", markup=False)
    _print("chat template", [(name, describe(name)) for name in list_chat_templates()])
    console.print(
        "\nA template of your own is named by its path: a .yaml for rows, a .jinja for chats. Where your columns have "
        "other names, write `columns: {question: Frage}` (template column: yours).",
        markup=False,
    )


def list_runs(folder: Path) -> None:
    """Print the runs in a folder with the stages that are finished."""
    runs = [RunDirectory(path) for path in sorted(folder.glob("*")) if (path / "recipe.lock.json").exists()]
    rows = []
    for run in runs:
        finished = [stage for stage in STAGES if run.marker(stage) is not None]
        rows.append((run.folder.name, ", ".join(finished) or "nothing finished yet"))
    if not rows:
        PrintableConsole().print(f"no runs in {folder}", markup=False)
        return
    _print("run", rows)


def _print(header: str, rows: list[tuple[str, str]]) -> None:
    table = Table(header, "", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, text in rows:
        table.add_row(f"[bold]{escape(name)}[/]", escape(text))
    PrintableConsole().print(table)
