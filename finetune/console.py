"""The one place that prints: sentences, bars for whatever takes longer than two seconds, and the training line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from evaluation.screen import PrintableConsole

PLAIN_LINES = 10
"""Lines that a bar leaves where there is no terminal to draw it on."""


class Reporter:
    """Tells a person how far a run is."""

    def __init__(self, console: Console | None = None) -> None:
        """Print to the given console, or to standard error."""
        self.console = console or PrintableConsole(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, markup=False, soft_wrap=True)

    def show(self, table: Table) -> None:
        """Print a table."""
        self.console.print(table)

    @contextmanager
    def bar(self, description: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Show a bar, or a count where the total is not known, and yield what advances it by a number of items."""
        with self._progress(MofNCompleteColumn()) as progress:
            task = progress.add_task(description, total=total, status="")
            yield lambda count: progress.advance(task, count)

    @contextmanager
    def training(self, steps: int) -> Iterator[TrainingBar]:
        """Show the training bar: step, loss, tokens per second, time left."""
        with self._progress(MofNCompleteColumn(), TextColumn("{task.fields[status]}")) as progress:
            yield TrainingBar(self, progress, progress.add_task("train", total=steps, status=""), steps)

    def _progress(self, *columns: ProgressColumn) -> Progress:
        return Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            *columns,
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )


class TrainingBar:
    """The bar of a training run, or every tenth of it as a line where there is no terminal."""

    def __init__(self, reporter: Reporter, progress: Progress, task: TaskID, steps: int) -> None:
        """Belong to a progress display that is already shown."""
        self._reporter = reporter
        self._progress = progress
        self._task = task
        self._steps = steps

    def note(self, text: str) -> None:
        """Print a line beside the bar."""
        self._reporter.say(f"  {text}")

    def update(self, step: int, loss: float, tokens_per_second: float, validation_loss: float | None) -> None:
        """Show a finished step."""
        status = f"loss {loss:.3f}  {tokens_per_second:.0f} tokens/s"
        if validation_loss is not None:
            status += f"  validation {validation_loss:.3f}"
        self._progress.update(self._task, completed=step, status=status)
        every = max(1, self._steps // PLAIN_LINES)
        if not self._reporter.console.is_terminal and (step % every == 0 or step == self._steps):
            self._reporter.say(f"  step {step}/{self._steps}  {status}")
