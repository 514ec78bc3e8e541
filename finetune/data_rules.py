"""Rules on the keys of `data` that need each other: mixing, balance, augmentation, overflow, limits, chat template."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath

from finetune.errors import DataError
from finetune.recipe import Recipe
from finetune.recipe_data import Augmentation, Source
from finetune.recipe_document import Finding, KeyPath
from finetune.row_template_types import TurnsTemplate
from finetune.row_templates import is_template_file, list_row_templates, load_row_template

_AUGMENTATION: KeyPath = ("data", "augmentation")
_DELETE = "delete the key"


def sources_have_comparable_weights(recipe: Recipe) -> list[Finding]:
    """Either every source has a weight or none, and never beside `mixing`; one source alone is all there is."""
    train, mixing = recipe.data.train, recipe.data.mixing
    weighted = [i for i, source in enumerate(train) if source.weight is not None]
    if len(train) == 1:
        idle: list[KeyPath] = [("data", "train", 0, "weight")] if weighted else []
        idle += [("data", "mixing")] if mixing else []
        return [Finding(at, "has no effect: there is one source", _DELETE) for at in idle]
    if weighted and mixing:
        hint = "delete one of the two"
        return [Finding(("data", "mixing"), f"data.train.{weighted[0]} has a weight, which says the same", hint)]
    if not weighted:
        return []
    what = f"has no weight, and data.train.{weighted[0]} has one"
    hint = "give every source a weight, or none"
    return [Finding(("data", "train", i), what, hint) for i in range(len(train)) if i not in weighted]


def class_keys_have_classes(recipe: Recipe) -> list[Finding]:
    """Classes are evened out, and their shares limited, only where rows have them."""
    data = recipe.data
    if any(may_have_classes(source) for source in data.train):
        return []
    keys: list[KeyPath] = [("data", "balance")] if data.balance else []
    keys += [("data", "audit", "maximum_class_share")] if data.audit.maximum_class_share < 1 else []
    named = ", ".join(sorted({source.rows for source in data.train}))
    hint = "delete the key, or use a row template with classes, such as `classification`"
    return [Finding(at, f"has no effect: rows of {named} have no classes", hint) for at in keys]


def augmentation_alters_something(recipe: Recipe) -> list[Finding]:
    """A section without a kind, and a kind without what it alters, would add nothing."""
    section = recipe.data.augmentation
    if section is None:
        return []
    if section.case is None and section.punctuation is None and section.paraphrase is None:
        kinds = "write a share for case, punctuation or paraphrase"
        return [Finding(_AUGMENTATION, "has no effect: it names no kind of copy", kinds)]
    findings = list(_idle_paraphrases(section))
    if all(_is_text(source) for source in recipe.data.train):
        what, hint = "has no effect: plain texts have no question", _DELETE
        kinds_given = section.model_fields_set & {"case", "punctuation", "paraphrase"}
        findings += [Finding((*_AUGMENTATION, kind), what, hint) for kind in sorted(kinds_given)]
    return findings


def split_has_texts(recipe: Recipe) -> list[Finding]:
    """`overflow: split` is for texts without a question: everything else would be refused as with `refuse`."""
    data = recipe.data
    if data.overflow != "split" or any(_may_be_text(source) for source in data.sources):
        return []
    named = ", ".join(sorted({source.rows for source in data.sources}))
    what = f"nothing could be split: only plain texts are, and rows are {named}"
    return [Finding(("data", "overflow"), what, "write refuse, drop or truncate")]


def leakage_limits_can_refuse(recipe: Recipe) -> list[Finding]:
    """What is set aside is not limited as well."""
    leakage = recipe.data.leakage
    if leakage.on_overlap != "set_aside":
        return []
    idle = sorted(leakage.model_fields_set & {"maximum_share", "maximum_near_share"})
    what = "has no effect: data.leakage.on_overlap is set_aside, so every such row is taken out"
    hint = "delete the key, or write on_overlap: refuse"
    return [Finding(("data", "leakage", key), what, hint) for key in idle]


def chat_template_exists(recipe: Recipe) -> list[Finding]:
    """A chat template that comes with the package has this name; a .jinja file is read when it is used."""
    name = recipe.base.chat_template
    if name is None or PurePath(name).suffix == ".jinja":
        return []
    # Jinja takes a while to import, and few recipes name a template.
    from finetune.chat_templates import load_chat_template

    try:
        load_chat_template(name)
    except DataError as error:
        return [Finding(("base", "chat_template"), error.what, error.hint)]
    return []


def may_have_classes(source: Source) -> bool:
    """Tell whether rows may have classes; what a template file of the user's own holds is not known yet."""
    if is_template_file(source.rows) or source.rows not in list_row_templates():
        return True
    return load_row_template(source.rows).label_column is not None


def _idle_paraphrases(section: Augmentation) -> Iterator[Finding]:
    if section.paraphrase is not None and not section.paraphrases:
        hint = "add `paraphrases` with texts and alternatives, or delete the key"
        yield Finding((*_AUGMENTATION, "paraphrase"), "has no effect: there are no paraphrases", hint)
    if section.paraphrases and section.paraphrase is None:
        hint = "add `paraphrase` with a share of the rows, or delete the key"
        yield Finding((*_AUGMENTATION, "paraphrases"), "has no effect: no share of the rows is given", hint)
    seen: set[str] = set()
    for i, paraphrase in enumerate(section.paraphrases):
        at: KeyPath = (*_AUGMENTATION, "paraphrases", i)
        # Space around a text plays no part in where it is found.
        text, others = paraphrase.text.strip(), [other.strip() for other in paraphrase.alternatives]
        if not text or not all(others):
            yield Finding(at, "a text or an alternative is blank", "write what is said, and what may be said instead")
        elif text in seen:
            yield Finding((*at, "text"), "stands twice among the paraphrases", "put all alternatives under one text")
        elif text in others:
            yield Finding((*at, "alternatives"), "one of them is the text itself", "delete it")
        seen.add(text)


def _may_be_text(source: Source) -> bool:
    return is_template_file(source.rows) or source.rows not in list_row_templates() or _is_text(source)


def _is_text(source: Source) -> bool:
    """Tell whether a bundled template makes texts without a question."""
    if is_template_file(source.rows) or source.rows not in list_row_templates():
        return False
    template = load_row_template(source.rows)
    return isinstance(template, TurnsTemplate) and template.kind == "plain" and len(template.turns) == 1
