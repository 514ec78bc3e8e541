"""How a plan looks: bars of memory by term, a few sentences, lines to paste; or JSON."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from finetune.plan_fit import Change
from finetune.plan_memory import Memory
from finetune.planning import Plan, Time

GIBIBYTE = 2**30
BAR_CELLS = 34
"""Cells of the longest bar: with names and figures, a line fits into 80 columns."""
COLOURS = {
    "weights": "blue",
    "quantization": "bright_blue",
    "adapter": "cyan",
    "gradients": "green",
    "optimizer": "bright_green",
    "activations": "yellow",
    "logits": "magenta",
    "workspace": "bright_black",
}
EIGHTHS = " ▏▎▍▌▋▊▉█"


def picture(plan: Plan, command: str, stated: Sequence[str]) -> RenderableType:
    """Draw a plan; `command` is the one that runs it, `stated` the settings that it was planned with."""
    parts: list[RenderableType] = [_what(plan), _bars(plan), _verdict(plan)]
    if plan.changes:
        parts.append(_changes(plan.changes, command, stated))
    elif not plan.fits:
        parts.append(_no_change(plan))
    return Group(*parts, _work(plan))


def as_json(plan: Plan) -> str:
    """Return every figure of a plan: bytes, tokens, seconds."""
    work = plan.fit.work
    return json.dumps(
        {
            "base": {"model": plan.recipe.base.model, "parameters": plan.base.shape.parameters, "from": plan.base.said},
            "device": asdict(plan.asked.device) | {"usable": plan.asked.device.usable, "count": plan.asked.devices},
            "memory": asdict(plan.fit.memory) | {"total": plan.fit.memory.total},
            "fits": plan.fits,
            "changes": [
                {"set": change.settings, "costs": change.costs, "total": change.fit.memory.total}
                for change in plan.changes
            ],
            "sharded_over": plan.sharded_over,
            "work": asdict(work) | {"lengths": plan.asked.lengths.assumed},
            "time": asdict(plan.time) if plan.time else None,
            "probe_peak_memory_bytes": plan.probe.peak_memory_bytes if plan.probe else None,
        },
        indent=2,
    )


def size(amount: float) -> str:
    """Write bytes as GiB, or as MiB where they are few."""
    if amount < GIBIBYTE / 10:
        return f"{amount / 2**20:.0f} MiB"
    return f"{amount / GIBIBYTE:.1f} GiB" if amount < 1000 * GIBIBYTE else f"{amount / GIBIBYTE:,.0f} GiB"


def duration(seconds: float) -> str:
    """Write seconds as a person would."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _what(plan: Plan) -> Text:
    recipe, shape = plan.recipe, plan.base.shape
    stored = f"NF4, {recipe.base.dtype}" if recipe.quantization else recipe.base.dtype
    checkpointing = ", checkpointing" if recipe.training.gradient_checkpointing else ""
    held = plan.fit.work.held
    return Text.from_markup(
        f"[bold]{shape.parameters / 1e9:.2f} B parameters[/] ({plan.base.said}), {stored}, "
        f"rank {recipe.adapter.rank}\n"
        f"at a time: {held.tokens:,} tokens in {held.rows} row{'s' * (held.rows > 1)} of {held.row_tokens:,}"
        f"{checkpointing}\n"
    )


def _bars(plan: Plan) -> Table:
    memory, device = plan.fit.memory, plan.asked.device
    whole = max(memory.total, device.usable)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("term", width=13)
    table.add_column("size", justify="right", width=10)
    table.add_column("bar", no_wrap=True)
    before = 0
    for name, amount in asdict(memory).items():
        table.add_row(name, size(amount), _bar(before, amount, whole, COLOURS[name]))
        before += amount
    table.add_row("[bold]peak", f"[bold]{size(memory.total)}", _whole_bar(memory, whole))
    table.add_row(
        "usable", size(device.usable), Text("─" * max(1, round(BAR_CELLS * device.usable / whole)) + "┤", style="dim")
    )
    return table


def _bar(before: int, amount: int, whole: int, colour: str) -> Text:
    """Draw one term where it begins: the bars of all terms make a staircase up to the peak."""
    start = before / whole * BAR_CELLS
    cells = amount / whole * BAR_CELLS
    full, rest = divmod(round(cells * 8), 8)
    return Text(" " * int(start)) + Text("█" * full + EIGHTHS[rest].strip() or "▏", style=colour)


def _whole_bar(memory: Memory, whole: int) -> Text:
    bar, drawn, until = Text(), 0, 0
    for name, amount in asdict(memory).items():
        until += amount
        cells = round(until / whole * BAR_CELLS)
        bar.append("█" * (cells - drawn), style=COLOURS[name])
        drawn = max(drawn, cells)
    return bar


def _verdict(plan: Plan) -> Text:
    device, count = plan.asked.device, plan.asked.devices
    each = f", on each of {count}" if count > 1 else ""
    if plan.fits:
        share = plan.fit.memory.total / device.usable
        return Text.from_markup(f"\n[bold green]It fits[/] on {device.name}{each}: {share:.0%} of what can be used.\n")
    over = plan.fit.memory.total - device.usable
    return Text.from_markup(f"\n[bold red]It does not fit[/] on {device.name}{each}: {size(over)} too much.\n")


def _changes(changes: tuple[Change, ...], command: str, stated: Sequence[str]) -> Text:
    text = Text()
    for number, change in enumerate(changes):
        lead = "The smallest change that fits" if number == 0 else "or"
        text.append(f"{lead}: {change.costs} ({size(change.fit.memory.total)})\n", style="bold" if number == 0 else "")
        changed = {setting.partition("=")[0] for setting in change.settings}
        kept = [setting for setting in stated if setting.partition("=")[0] not in changed]
        lines = [f"--set {shlex.quote(setting)}" for setting in (*kept, *change.settings)]
        text.append("  " + " \\\n    ".join([command, *lines]) + "\n", style="cyan" if number == 0 else "dim cyan")
    return text


def _no_change(plan: Plan) -> Text:
    if plan.asked.device.kind == "cpu":
        return Text("Nothing in the recipe makes it fit: take a smaller base, or a machine with more memory.\n")
    sharded = (
        f"Sharded over {plan.sharded_over} of them (FSDP) it would. "
        if plan.sharded_over
        else "Nor would it sharded over many of them. "
    )
    return Text(
        f"Nothing in the recipe makes it fit. {sharded}This program does not shard: training.devices puts a whole copy "
        "on each GPU (DDP). Take a larger GPU, or a smaller base.\n"
    )


def _work(plan: Plan) -> Text:
    work, lengths = plan.fit.work, plan.asked.lengths
    epochs = plan.recipe.training.epochs
    lines = [
        f"{work.tokens_per_step:,} tokens a step in {work.micro_batches_per_step} "
        f"micro-batch{'es' * (work.micro_batches_per_step > 1)}, {epochs} epoch{'s' * (epochs > 1)}"
    ]
    if work.steps is not None and work.tokens is not None:
        lines[0] += f": {work.steps:,} steps, {work.tokens:,} tokens"
    lines.append(f"from {lengths.assumed}")
    if plan.time:
        lines.append(_time(plan.time))
    elif work.tokens is not None:
        lines.append("time: not known; --probe measures it on this machine, --rate states it")
    if plan.probe:
        lines.append(f"the probe's own peak: {size(plan.probe.peak_memory_bytes)}, preparing the rows included")
    return Text("\n".join(lines))


def _time(time: Time) -> str:
    rate = time.rate
    said = f"about {duration(time.seconds)} at {rate.tokens_per_second:,.0f} tokens/s ({rate.said})"
    if rate.low < rate.high and time.high is not None:
        said += f", 95 %: {duration(time.low)} to {duration(time.high)}"
    return said + (f"; costs {time.cost:,.2f}" if time.cost is not None else "")
