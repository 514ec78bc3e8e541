"""Guesses which row template fits a file, and which of its columns stands for which of the template's.

Names decide where they say something; where they say nothing, what stands in the columns does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from finetune.errors import DataError
from finetune.initialize_columns import ColumnFacts
from finetune.initialize_names import PART, is_group, is_metadata, language_of, name_score, words_in
from finetune.row_template_types import Column, MessagesTemplate, RowTemplate

BY_SHAPE = 10.0
"""A list of turns is what it is, whatever it is called."""
BY_LANGUAGE = 3.5
"""Columns that are called by their languages."""
BY_CONTENT = 0.5
LIKELY = 0.6
"""Least part of the best guess's score that makes another one worth naming."""
BY_POSITION = 0.2
_SENTIMENTS = words_in(
    "positive negative neutral pos neg mixed positiv negativ gemischt positif négatif neutre positivo negativo neutro"
    " 正面 负面 中性 积极 消极 好评 差评"
)

_OWN_TEMPLATE = (
    "name one with --rows TEMPLATE after renaming your columns to its, or write one of your own: a .yaml with name,"
    " description, kind, columns and turns (see `finetune list templates`), and give its path to --rows"
)


@dataclass(frozen=True)
class Guess:
    """How the rows of a file are probably to be read."""

    template: RowTemplate
    columns: dict[str, str] = field(default_factory=dict)
    """Template column → column of the file, also where both have the same name."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Template column → what it was guessed from."""
    score: float = 0.0
    others: tuple[str, ...] = ()
    """Templates that would have fitted as well, the likeliest first."""

    def renamed(self) -> dict[str, str]:
        """Return the columns that a recipe has to name: those that are called otherwise than in the template."""
        return {name: source for name, source in self.columns.items() if name != source}


def guess_rows(facts: Sequence[ColumnFacts], templates: Sequence[RowTemplate]) -> Guess:
    """Return the best guess among these templates.

    Raises:
        DataError: none fits; the message lists the columns and what the templates ask for.
    """
    matches = [found for template in templates if (found := _match(template, facts)) is not None]
    matches += [found for match in matches if (found := _sorted_by_answer(match, facts, templates)) is not None]
    if not matches:
        raise DataError(_nothing_fits(facts, templates), hint=_OWN_TEMPLATE)
    matches.sort(key=lambda match: (-match.score, len(match.template.columns), match.template.name))
    names = dict.fromkeys(match.template.name for match in matches if match.score >= LIKELY * matches[0].score)
    others = tuple(name for name in names if name != matches[0].template.name)[:3]
    return replace(matches[0], others=others)


def _match(template: RowTemplate, facts: Sequence[ColumnFacts]) -> Guess | None:
    """Assign columns to a template's, the surest first; None where a required one stays empty."""
    columns: dict[str, str] = {}
    reasons: dict[str, str] = {}
    score = 0.0
    for value, name, source, reason in sorted(_pairs(template, facts), key=lambda pair: -pair[0]):
        if name not in columns and source not in columns.values():
            columns[name], reasons[name] = source, reason
            score += value
    missing = [name for name, column in template.columns.items() if column.required and name not in columns]
    by_content = _by_content(template, missing, [fact for fact in facts if fact.name not in columns.values()], columns)
    if by_content is None:
        return None
    for name, (value, source, reason) in by_content.items():
        columns[name], reasons[name] = source, reason
        score += value
    return Guess(template, columns, reasons, score + _sentiment_bonus(template, columns, facts))


def _sorted_by_answer(match: Guess, facts: Sequence[ColumnFacts], templates: Sequence[RowTemplate]) -> Guess | None:
    """Take instructions for a classification where all answers are a few short values and one text is asked about."""
    classification = next((template for template in templates if template.name == "classification"), None)
    by_name = {fact.name: fact for fact in facts}
    if match.template.name != "alpaca" or classification is None or not by_name[match.columns["output"]].is_class:
        return None
    instruction, label = match.columns["instruction"], match.columns["output"]
    text, asked = match.columns.get("input", ""), by_name[instruction]
    constant = asked.distinct == 1
    why = f"{by_name[label].distinct} short answers in {by_name[label].filled:,} rows"
    if text and by_name[text].is_prose and constant:
        columns = {"text": text, "label": label, "instruction": instruction}
        reasons = {
            "text": "the one text that differs from row to row",
            "label": why,
            "instruction": "a text that is the same in all rows",
        }
    elif not (text and by_name[text].filled) and asked.is_prose:
        columns, reasons = {"text": instruction, "label": label}, {"text": "the whole question", "label": why}
    else:
        return None
    return Guess(classification, columns, reasons, match.score + BY_CONTENT)


def _pairs(template: RowTemplate, facts: Sequence[ColumnFacts]) -> list[tuple[float, str, str, str]]:
    """List (score, template column, column of the file, reason) for all that go together by shape or by name."""
    found = []
    for name, column in template.columns.items():
        for fact in facts:
            if not _fits(template, name, column, fact):
                continue
            value = name_score(name, fact.name)
            if isinstance(template, MessagesTemplate) and name == template.list_column:
                value, reason = value + BY_SHAPE, f"lists of {template.role_key} and {template.content_key}"
            else:
                reason = "its name" if value > PART else "a word in its name"
            # A related word is enough for what a template needs, and too little for what it can do without.
            if value > (0 if column.required else PART):
                found.append((value, name, fact.name, reason))
    return found + _language_pairs(template, facts)


def _language_pairs(template: RowTemplate, facts: Sequence[ColumnFacts]) -> list[tuple[float, str, str, str]]:
    """Pair the first two columns that are called by languages with those of the template for translations."""
    called = [fact.name for fact in facts if _is_language(fact)]
    required = [name for name, column in template.columns.items() if column.required]
    if template.name != "translation" or len(called) < 2 or len(required) != 2:
        return []
    return [
        (BY_LANGUAGE, name, source, f"its name, the language {language_of(source)!r}")
        for name, source in zip(required, called, strict=False)
    ]


def _is_language(fact: ColumnFacts) -> bool:
    # `id` is Indonesian, and far more often a number of the row.
    return bool(language_of(fact.name)) and not is_metadata(fact.name) and fact.is_prose


def _fits(template: RowTemplate, name: str, column: Column, fact: ColumnFacts) -> bool:
    """Say whether a column's values are of the type that the template reads."""
    if isinstance(template, MessagesTemplate) and name == template.list_column:
        return fact.is_mostly("list") and {template.role_key, template.content_key} <= fact.keys
    if template.label_column == name and not fact.may_be_class:
        return False
    match column.type:
        case "text":
            return fact.is_mostly("text")
        case "text_or_integer":
            return fact.is_mostly("text", "integer")
        case "text_or_lines":
            return fact.is_mostly("text", "list") and not fact.keys
    return fact.is_mostly("list") or (not fact.distinct and not fact.filled)


def _by_content(
    template: RowTemplate, missing: Sequence[str], left: Sequence[ColumnFacts], columns: Mapping[str, str]
) -> dict[str, tuple[float, str, str]] | None:
    """Fill required columns by what stands in the others of the file; None where that decides nothing."""
    if not missing:
        return {}
    telling = [fact for fact in left if fact.filled and not is_metadata(fact.name) and not is_group(fact.name)]
    classes = [fact for fact in telling if fact.is_class]
    prose = [fact for fact in telling if fact.is_prose]
    match template.name, list(missing):
        case "classification", ["text", "label"] if len(prose) == 1 and len(classes) == 1 == len(telling) - 1:
            return {"text": _text(prose[0]), "label": _label(classes[0])}
        case "classification", ["label"] if len(classes) == 1 == len(telling):
            return {"label": _label(classes[0])}
        case "classification" | "sentiment", ["text"] if len(prose) == 1:
            return {"text": _text(prose[0])}
        case "text", ["text"] if len(prose) == 1 and not columns:
            return {"text": _text(prose[0])}
        case "alpaca", ["instruction", "output"] if len(prose) == 2 == len(telling):
            why = "the {} of two columns of text: names say nothing, so compare with the first row"
            instruction, output = prose[0].name, prose[1].name
            return {
                "instruction": (BY_POSITION, instruction, why.format("first")),
                "output": (BY_POSITION, output, why.format("second")),
            }
    return None


def _text(fact: ColumnFacts) -> tuple[float, str, str]:
    return BY_CONTENT, fact.name, f"the only column of texts ({fact.typical:.0f} characters)"


def _label(fact: ColumnFacts) -> tuple[float, str, str]:
    return BY_CONTENT, fact.name, f"{fact.distinct} short values in {fact.filled} rows"


def _sentiment_bonus(template: RowTemplate, columns: Mapping[str, str], facts: Sequence[ColumnFacts]) -> float:
    """Prefer the template for sentiments where the classes are such."""
    label = columns.get(template.label_column or "")
    values = next((fact.classes for fact in facts if fact.name == label), frozenset())
    if template.name != "sentiment" or not values:
        return 0.0
    return 2.0 if {value.casefold() for value in values} <= _SENTIMENTS else 0.0


def _nothing_fits(facts: Sequence[ColumnFacts], templates: Sequence[RowTemplate]) -> str:
    seen = "\n".join(f"    {fact.name[:60]!r}: {fact.described()}" for fact in facts[:30])
    wanted = "\n".join(
        f"    {template.name}: "
        + ", ".join(name if column.required else f"[{name}]" for name, column in template.columns.items())
        for template in templates
    )
    return f"no row template fits these columns\n  there are:\n{seen}\n  wanted is one of:\n{wanted}"
