"""What a valid recipe must also satisfy: facts about several keys at once, and the forms of names.

Each rule is a pure function of the recipe, so that a laptop can check a recipe for a machine that it
does not have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from finetune.data_rules import (
    augmentation_alters_something,
    chat_template_exists,
    class_keys_have_classes,
    leakage_limits_can_refuse,
    may_have_classes,
    sources_have_comparable_weights,
    split_has_texts,
)
from finetune.privacy_rules import privacy_can_be_looked_for
from finetune.recipe import Recipe
from finetune.recipe_data import HeldOutSource
from finetune.recipe_document import Finding, KeyPath
from finetune.source_rules import base_is_pinned, base_is_readable, row_templates_exist, sources_are_readable

_NO_VALIDATION = "add a section `data.validation`, or delete the key"


def check_rules(recipe: Recipe) -> list[Finding]:
    """Findings of every rule."""
    rules = (
        base_is_readable,
        base_is_pinned,
        sources_are_readable,
        sources_are_distinct,
        base_is_not_float16,
        merge_has_what_it_chooses_by,
        validation_keys_have_validation_rows,
        early_stopping_can_stop,
        checkpoints_are_counted_in_one_way,
        step_holds_micro_batches,
        longest_example_fits,
        nothing_is_listed_twice,
        baseline_has_classes,
        generation_limit_has_a_task,
        row_templates_exist,
        chat_template_exists,
        sources_have_comparable_weights,
        class_keys_have_classes,
        augmentation_alters_something,
        split_has_texts,
        leakage_limits_can_refuse,
        privacy_can_be_looked_for,
    )
    return [finding for rule in rules for finding in rule(recipe)]


def sources_are_distinct(recipe: Recipe) -> list[Finding]:
    """Rows are trained on once, and never both trained on and held out."""
    findings: list[Finding] = []
    seen: dict[tuple[str, str | None], int] = {}
    for position, source in enumerate(recipe.data.train):
        first = seen.setdefault((source.source, source.split), position)
        if first != position:
            hint = "delete one; `training.epochs` is how rows are seen more than once"
            findings.append(Finding(("data", "train", position, "source"), f"the same as data.train.{first}", hint))
    held_out = recipe.data.held_out
    if isinstance(held_out, HeldOutSource) and (held_out.source, held_out.split) in seen:
        what = f"the same rows as data.train.{seen[held_out.source, held_out.split]}"
        hint = "write `held_out: {fraction: 0.1}` to hold some of them out"
        findings.append(Finding(("data", "held_out", "source"), what, hint))
    return findings


def checkpoints_are_counted_in_one_way(recipe: Recipe) -> list[Finding]:
    """Checkpoints come by steps or by minutes."""
    checkpoints = recipe.training.checkpoints
    if checkpoints.every_steps is None or checkpoints.every_minutes is None:
        return []
    where = ("training", "checkpoints", "every_minutes")
    return [Finding(where, "checkpoints are counted by steps already", "delete it, or every_steps")]


def base_is_not_float16(recipe: Recipe) -> list[Finding]:
    """Training needs the range of bfloat16: float16 overflows at 65504, and small gradients become 0 without a word."""
    if recipe.base.dtype != "float16":
        return []
    hint = "write bfloat16, float32, or auto"
    return [Finding(("base", "dtype"), "float16 has too little range to train in", hint)]


def merge_has_what_it_chooses_by(recipe: Recipe) -> list[Finding]:
    """`best` of two merges is chosen by validation loss; there are two only on a quantized base."""
    at: KeyPath = ("merge", "onto")
    if recipe.merge.onto == "dequantized" and recipe.quantization is None:
        hint = "write full_precision, or add a section `quantization`"
        return [Finding(at, "nothing to dequantize: the base is not quantized", hint)]
    if recipe.merge.onto == "best" and recipe.quantization is not None and recipe.data.validation is None:
        given = "onto" in recipe.merge.model_fields_set
        chosen = "best is chosen" if given else "merge.onto is best by default, which is chosen"
        what = f"{chosen} by validation loss, and there are no validation rows"
        hint = "add a section `data.validation`, or write merge.onto: full_precision or dequantized"
        return [Finding(at if given else ("quantization",), what, hint)]
    return []


def validation_keys_have_validation_rows(recipe: Recipe) -> list[Finding]:
    """A key that acts on validation rows is not given without any."""
    if recipe.data.validation is not None:
        return []
    training = recipe.training
    given = training.model_fields_set & {"validations", "keep"}
    given |= {"early_stopping"} if training.early_stopping else set()
    what = "has no effect: there are no validation rows"
    return [Finding(("training", key), what, _NO_VALIDATION) for key in sorted(given)]


def early_stopping_can_stop(recipe: Recipe) -> list[Finding]:
    """Patience is shorter than the number of measurements."""
    stopping = recipe.training.early_stopping
    measurements = recipe.training.validations or 4
    if stopping is None or stopping.patience < measurements:
        return []
    what = f"has no effect: patience {stopping.patience} of {measurements} measurements never stops training"
    hint = f"raise training.validations to more than {stopping.patience}, or lower the patience"
    return [Finding(("training", "early_stopping", "patience"), what, hint)]


def step_holds_micro_batches(recipe: Recipe) -> list[Finding]:
    """One micro-batch on each device is at most one step."""
    training = recipe.training
    micro_batch = training.tokens_per_micro_batch
    most = training.tokens_per_step // _least_devices(recipe)
    if micro_batch is None or micro_batch <= most:
        return []
    at: KeyPath = ("training", "tokens_per_micro_batch")
    return [Finding(at, f"{micro_batch} is more than a device's part of a step", f"write at most {most}")]


def longest_example_fits(recipe: Recipe) -> list[Finding]:
    """An example of `max_tokens` fits into what a device holds at a time."""
    training = recipe.training
    share = training.tokens_per_step // _least_devices(recipe)
    room = min(training.tokens_per_micro_batch or share, share)
    if recipe.data.max_tokens <= room:
        return []
    what = f"an example of {recipe.data.max_tokens} tokens does not fit into the {room} that a device holds"
    key = "tokens_per_micro_batch" if room == training.tokens_per_micro_batch else "tokens_per_step"
    return [Finding(("data", "max_tokens"), what, f"write at most {room}, or raise training.{key}")]


def nothing_is_listed_twice(recipe: Recipe) -> list[Finding]:
    """Lists of names hold each name once."""
    lists: tuple[tuple[KeyPath, Sequence[str]], ...] = (
        (("adapter", "targets"), () if recipe.adapter.targets == "all-linear" else recipe.adapter.targets),
        (("evaluation", "tasks"), recipe.evaluation.tasks),
        (("evaluation", "contenders"), recipe.evaluation.contenders or ()),
    )
    return [
        Finding((*path, names.index(name, names.index(name) + 1)), f"{name} is listed twice", "delete one")
        for path, names in lists
        for name, count in Counter(names).items()
        if count > 1
    ]


def baseline_has_classes(recipe: Recipe) -> list[Finding]:
    """Baselines are classifiers: they are asked for only where held-out rows have classes."""
    contenders = recipe.evaluation.contenders or ()
    if "baseline" not in contenders:
        return []
    at: KeyPath = ("evaluation", "contenders", contenders.index("baseline"))
    if "held_out" not in recipe.evaluation.tasks:
        return [Finding(at, "baselines are scored on the held-out rows only", "add held_out to evaluation.tasks")]
    if any(may_have_classes(source) for source in recipe.data.train):
        return []
    what = f"baselines need classes, and rows are {', '.join(sorted({s.rows for s in recipe.data.train}))}"
    return [Finding(at, what, "delete baseline, or use the row template `classification`")]


def generation_limit_has_a_task(recipe: Recipe) -> list[Finding]:
    """`max_new_tokens` is about the held-out rows; task files carry their own."""
    if recipe.evaluation.max_new_tokens is None or "held_out" in recipe.evaluation.tasks:
        return []
    hint = "add held_out to evaluation.tasks, or delete the key: task files carry their own"
    return [Finding(("evaluation", "max_new_tokens"), "has no effect: held_out is not among the tasks", hint)]


def _least_devices(recipe: Recipe) -> int:
    return 1 if recipe.training.devices == "all" else recipe.training.devices
