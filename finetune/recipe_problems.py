"""Translates what pydantic says of a recipe: the key, what is wrong in plain words, what is accepted."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from finetune.errors import nearest
from finetune.recipe_accepted import Accepted, accepted_at, keys_at, sections_with
from finetune.recipe_document import Finding, KeyPath, Node, child_at, dotted, node_at
from finetune.recipe_values import wrong_value

# The one place where the recipe has two sections to choose from: pydantic puts the choice into the path.
_EITHER_OR: KeyPath = ("data", "held_out")

_NEVER = "it does not exist here: code that comes with a model is never run"
_SECRET = "it does not exist here: a recipe holds no secrets; log in with `hf auth login` or set HF_TOKEN"
_BATCH = "batches are counted in tokens: training.tokens_per_step and training.tokens_per_micro_batch"
_NF4 = "write a section `quantization:` with `kind: nf4`"
# Keys of other tools that have no near match here.
_FOREIGN = {
    "trust_remote_code": _NEVER,
    "token": _SECRET,
    "hf_token": _SECRET,
    "api_key": _SECRET,
    "password": _SECRET,
    "batch_size": _BATCH,
    "micro_batch_size": _BATCH,
    "per_device_train_batch_size": _BATCH,
    "gradient_accumulation_steps": _BATCH,
    "load_in_4bit": _NF4,
    "load_in_8bit": _NF4,
    "base_model": "write `model` in the section `base`",
    "model_name_or_path": "write `model` in the section `base`",
    "datasets": "write `train` in the section `data`",
    "lora_r": "write `rank` in the section `adapter`",
    "lora_alpha": "write `alpha` in the section `adapter`",
    "lora_dropout": "write `dropout` in the section `adapter`",
    "target_modules": "write `targets` in the section `adapter`",
    "lora_target_modules": "write `targets` in the section `adapter`",
    "use_dora": "write `variant: dora` in the section `adapter`",
    "num_epochs": "write `epochs` in the section `training`",
    "num_train_epochs": "write `epochs` in the section `training`",
    "lr": "write `learning_rate` in the section `training`",
    "lr_scheduler_type": "write `schedule` in the section `training`",
    "sequence_len": "write `max_tokens` in the section `data`",
    "max_seq_length": "write `max_tokens` in the section `data`",
    "max_length": "write `max_tokens` in the section `data`",
    "output_dir": "the run is written to runs/<name>; see `finetune run --help`",
}


def findings_of(error: ValidationError, root: Node) -> list[Finding]:
    """Every error of a failed validation, once for each key, with the nearest match where there is one."""
    errors = [(_path_of(details, root), details) for details in error.errors(include_url=False)]
    unknown = {path for path, details in errors if details["type"] == "extra_forbidden"}
    missing = {path for path, details in errors if details["type"] == "missing"}
    wrong = {path for path, details in errors if _is_wrong_value(path, details, root)}
    findings = [unknown_key(path, root) for path in unknown]
    findings += [_missing_key(path, root) for path in missing if not _is_misspelt(path, unknown)]
    # A union complains of the whole value as well as of the part that is wrong.
    innermost = {path for path in wrong if not any(_is_below(other, path) for other in wrong)}
    findings += [_wrong_value(path, root) for path in innermost]
    return findings


def unknown_key(path: KeyPath, root: Node) -> Finding:
    """A key that the recipe does not know at this place, with the key that was probably meant."""
    return Finding(path, "unknown key", _hint_for_key(path, root))


def _hint_for_key(path: KeyPath, root: Node) -> str:
    key = str(path[-1])
    accepted = keys_at(path[:-1], root)
    if path[:-1] == _EITHER_OR and key == "fraction":
        return "held-out rows are a fraction or a source of their own, not both; delete one"
    if key in _FOREIGN:
        return _FOREIGN[key]
    guess = nearest(key, accepted)
    elsewhere = [section for section in sections_with(key) if section]
    if elsewhere:
        home = f"`{key}` belongs in {' or '.join(f'`{section}`' for section in elsewhere)}"
        return f"{guess} {home}" if "?" in guess else home
    if sections_with(key):
        return "it belongs at the top level: indent it less"
    nested = tuple(key.split("."))
    if len(nested) > 1 and accepted_at((*path[:-1], *nested), root):
        return f"write `{nested[-1]}` in the section `{'.'.join(nested[:-1])}`"
    return guess


def _missing_key(path: KeyPath, root: Node) -> Finding:
    section = path[:-1]
    place = f"the section `{dotted(section)}`" if section else "the recipe"
    what = f"is missing: {place} needs it"
    if section == _EITHER_OR:
        return Finding(path, what, "write a `fraction` of the training rows, or a `source` with its `rows`")
    return Finding(path, what, f"write `{path[-1]}: {_example(accepted_at(path, root))}`")


def _example(alternatives: Sequence[Accepted]) -> str:
    choices = [choice for form in alternatives for choice in form.choices]
    return str(choices[0]) if choices else "…"


def _wrong_value(path: KeyPath, root: Node) -> Finding:
    node = node_at(root, path)
    assert node is not None
    what, hint = wrong_value(node.content, accepted_at(path, root))
    return Finding(path, what, hint)


def _path_of(details: ErrorDetails, root: Node) -> KeyPath:
    """The path in the document: without the names that pydantic gives to the members of unions."""
    location = details["loc"]
    if location[:2] == _EITHER_OR:
        location = (*_EITHER_OR, *location[3:])
    names_a_key = details["type"] in ("extra_forbidden", "missing")
    path: KeyPath = ()
    node: Node | None = root
    for position, part in enumerate(location):
        child = child_at(node, part) if node else None
        if child is not None or (names_a_key and position == len(location) - 1):
            path, node = (*path, part), child
    return path


def _is_wrong_value(path: KeyPath, details: ErrorDetails, root: Node) -> bool:
    if details["type"] in ("extra_forbidden", "missing"):
        return False
    node = node_at(root, path)
    # In strict mode an array whose items are all wrong is also reported as too short.
    return not (details["type"] == "too_short" and node is not None and bool(node.content))


def _is_misspelt(missing: KeyPath, unknown: set[KeyPath]) -> bool:
    beside = [str(path[-1]) for path in unknown if path[:-1] == missing[:-1]]
    return bool(get_close_matches(str(missing[-1]), beside, n=1, cutoff=0.6))


def _is_below(path: KeyPath, ancestor: KeyPath) -> bool:
    return len(path) > len(ancestor) and path[: len(ancestor)] == ancestor
