"""What `finetune adapter` does: looks at adapter folders, mixes them, extracts one, folds one into its base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from evaluation.files import staged_folder, write_model
from evaluation.screen import PrintableConsole
from finetune.adapter_combining import Mix, check_combinable, combine
from finetune.adapter_comparing import describe_change, likeness
from finetune.adapter_extracting import extract_adapter
from finetune.base_files import BaseFiles, open_base
from finetune.bases import resolve_base
from finetune.console import Reporter
from finetune.errors import DataError
from finetune.merge_records import MERGE_FILE
from finetune.merging_check import prove_folded
from finetune.merging_shards import check_fits, fold_shards
from finetune.merging_tokenizer import copy_tokenizer
from finetune.peft_config import CONFIG_FILE
from finetune.peft_weights import PeftFolder, open_peft_folder
from finetune.peft_writing import write_lora
from finetune.published import check_published_base
from finetune.recipe import Base
from finetune.recipe_file import load_recipe
from finetune.run_directory import RunDirectory
from finetune.run_lock import check_trained_base, find_run_base, load_lock

SHOWN_MODULES = 12
"""Modules that a table names; the rest is summed up."""


def list_adapters(folder: Path) -> None:
    """Print every adapter below a folder: rank, variant, base, size."""
    found = sorted(path.parent for path in folder.rglob(CONFIG_FILE))
    if not found:
        PrintableConsole().print(f"no adapters below {folder}", markup=False, soft_wrap=True)
        return
    table = Table("adapter", "rank", "kind", "base", "tensors", box=None, padding=(0, 2, 0, 0))
    for path in found:
        try:
            adapter = open_peft_folder(path)
        except DataError as error:
            table.add_row(escape(str(path)), "", "", "", escape(error.what))
            continue
        config = adapter.config
        base = config.base_model_name_or_path or "not named"
        tensors = sum(len(parts) for parts in adapter.parts.values())
        table.add_row(escape(str(path)), str(config.r), config.kind, escape(base), str(tensors))
    PrintableConsole().print(table)


def show_adapter(folder: Path) -> None:
    """Print what an adapter changes: settings, and for each kind of layer how large the change is."""
    adapter = open_peft_folder(folder)
    config = adapter.config
    console = PrintableConsole(highlight=False)
    console.print(f"base      {config.base_model_name_or_path or 'not named'}", markup=False, soft_wrap=True)
    console.print(
        f"kind      {config.kind}, rank {config.r}, alpha {config.lora_alpha:g}", markup=False, soft_wrap=True
    )
    table = Table("layers", "count", "shape", "‖s·B·A‖, mean", box=None, padding=(0, 2, 0, 0))
    for line in describe_change(adapter):
        table.add_row(*line)
    console.print(table)


def check_adapter(folder: Path, base: str | None, cache: Path) -> None:
    """Check that an adapter is whole and finite, moved from its start, and fits its base.

    Raises:
        DataError: what is wrong with it.
    """
    adapter = open_peft_folder(folder)
    for module in adapter.modules:
        adapter.change(module)
    where = find_base(adapter, base, cache, Reporter())
    check_fits(where, adapter)
    PrintableConsole().print(
        f"{folder}: {len(adapter.modules)} modules, all finite, all fit {where.folder.name}",
        markup=False,
        soft_wrap=True,
    )


def diff_adapters(one: Path, other: Path) -> None:
    """Print how alike two adapters are, module by module: length of each change and the angle between them."""
    first, second = open_peft_folder(one), open_peft_folder(other)
    for adapter in (first, second):
        if adapter.config.residual or adapter.config.use_dora:
            what = f"{adapter.config.kind} changes a weight by more than its factors say"
            raise DataError(what, where=str(adapter.folder), hint="merge both and compare what they answer")
    table = Table("module", "‖first‖", "‖second‖", "cosine", box=None, padding=(0, 2, 0, 0))
    modules = sorted({*first.modules, *second.modules})
    for module in modules[:SHOWN_MODULES]:
        table.add_row(escape(module), *likeness(first, second, module))
    console = PrintableConsole()
    console.print(table)
    if len(modules) > SHOWN_MODULES:
        console.print(f"and {len(modules) - SHOWN_MODULES} modules more", markup=False, soft_wrap=True)
    console.print(f"over all: cosine {likeness(first, second, None)[2]}", markup=False, soft_wrap=True)


def combine_adapters(folders: Sequence[Path], mix: Mix, out: Path) -> None:
    """Write one adapter made from several.

    Raises:
        DataError: they cannot be mixed, and why not.
    """
    refuse_used(out)
    adapters = [open_peft_folder(folder) for folder in folders]
    check_combinable(adapters)
    modules = sorted({module for adapter in adapters for module in adapter.modules})
    reporter = Reporter()
    factors = {}
    with reporter.bar(f"mix {len(adapters)} adapters ({mix.way})", len(modules)) as advance:
        for module in modules:
            factors[module] = combine(adapters, module, mix)
            advance(1)
    config = adapters[0].config
    with staged_folder(out) as staging:
        write_lora(staging, factors, {}, (config.base_model_name_or_path, config.revision))
        copy_tokenizer(adapters[0].folder, staging)
    energies = sorted((one.energy, module) for module, one in factors.items())
    mean = sum(energy for energy, _ in energies) / len(energies)
    rank = max(one.down.shape[0] for one in factors.values())
    reporter.say(f"{out}: rank {rank} keeps {mean:.1%} of the change on average, least {energies[0][0]:.1%}")
    reporter.say(
        f"  least in {energies[0][1]}; a larger --rank keeps more" if energies[0][0] < 0.999 else "  nothing lost"
    )


def extract(tuned: Path, base: str, rank: int, out: Path, cache: Path) -> None:
    """Write the adapter that is nearest to the difference of two models."""
    refuse_used(out)
    reporter = Reporter()
    found = resolve_base(Base(model=base), cache, reporter.say)
    with reporter.bar("extract", len(open_base(tuned).files)) as advance:
        extracted = extract_adapter(found.folder, tuned, out, rank, found.published[0], advance)
    if extracted.energies:
        least = min(extracted.energies, key=extracted.energies.__getitem__)
        mean = sum(extracted.energies.values()) / len(extracted.energies)
        reporter.say(
            f"{out}: rank {rank} keeps {mean:.1%} of the difference on average, "
            f"least {extracted.energies[least]:.1%} ({least})"
        )
    if extracted.saved:
        reporter.say(f"  kept whole: {', '.join(extracted.saved)}")


def merge_adapter(folder: Path, base: str | None, out: Path, dtype: str, cache: Path) -> None:
    """Fold an adapter into the files of its base, and prove the result from the files as written.

    Raises:
        DataError: the adapter cannot be folded, or not into this base.
        ProofFailed: the result is not the two together; it is not kept.
    """
    refuse_used(out)
    reporter = Reporter()
    adapter = open_peft_folder(folder)
    files = find_base(adapter, base, cache, reporter)
    with staged_folder(out) as staging:
        merged = staging / "merged"
        with reporter.bar("fold", len(files.files)) as advance:
            fold_shards(files, adapter, merged, dtype, advance)
        with reporter.bar("prove", len(files.files)) as advance:
            proof = prove_folded(files, adapter, merged, dtype, advance)
        for path in merged.iterdir():
            path.rename(staging / path.name)
        merged.rmdir()
        write_model(staging / MERGE_FILE, proof)
    captured = "" if proof.least_captured is None else f", at least {proof.least_captured:.1%} of each change kept"
    reporter.say(f"{out}: {len(proof.modules)} modules folded, largest error {proof.largest_error:.1e}{captured}")


def refuse_used(out: Path) -> None:
    """Check that nothing would be lost by writing a folder.

    Raises:
        DataError: there is something in it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError("there is something there already", where=str(out), hint="name another folder, or empty it")


def find_base(adapter: PeftFolder, named: str | None, cache: Path, reporter: Reporter) -> BaseFiles:
    """Find the base of an adapter: as named, as its run was made from it, or as its own settings name it.

    Raises:
        DataError: nobody names it, the run's is another one now, or the adapter was trained or published for another.
    """
    run = RunDirectory(adapter.folder.parent)
    if named is None and run.recipe.exists() and run.lock_file.exists():
        recipe = load_recipe(str(run.recipe), []).recipe
        return open_base(find_run_base(recipe.base, load_lock(run), cache, reporter.say).folder)
    name = named or adapter.config.base_model_name_or_path
    if name is None:
        raise DataError(
            "its settings name no base", where=str(adapter.folder), hint="name it: --base org/name or a folder"
        )
    revision = adapter.config.revision if named is None else None
    found = resolve_base(Base(model=name, revision=revision), cache, reporter.say).folder
    check_published_base(adapter.folder, found)
    check_trained_base(adapter.folder, found)
    return open_base(found)
