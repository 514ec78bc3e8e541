"""The audit of the data stage: the account of every row, and what the rows are like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from evaluation.files import sha256_of_json
from evaluation.mask_oracle import Row, check_masks
from evaluation.rendering import Example, Renderer
from finetune.audit_records import Audit, MaskAudit, SourceAccount, TokenSpan
from finetune.packed_batches import padding_saved
from finetune.prepare_found import Prepared
from finetune.privacy_shown import ShownTexts
from finetune.recipe import Recipe
from finetune.spans import spans_of

PREVIEWED_ROWS = 5
"""Training examples that the audit shows token by token, spread evenly: files are often sorted."""
PREVIEWED_TOKENS = 2000
"""Tokens that are shown of each."""


def build_audit(recipe: Recipe, prepared: Prepared, renderer: Renderer) -> Audit:
    """Sum up what was found, and compute the masks of some training rows in a second way.

    Raises:
        DataError: the two ways disagree.
    """
    train, observed = prepared.train, prepared.observed
    accounts = [part for part, _ in prepared.purposes]
    privacy = recipe.privacy
    looked_for = privacy.detect if privacy else ()
    return Audit(
        sources=account(prepared),
        set_aside_by_reason=dict(Counter(row.reason for row in prepared.set_aside()).most_common()),
        train=train.statistics(),
        validation=prepared.validation.statistics() if recipe.data.validation else None,
        held_out_samples=len(prepared.samples),
        truncated=sum(part.count_changed("truncated") for part in accounts),
        split=sum(part.count_changed("split") for part in accounts),
        over_max_tokens=sum(part.over_max_tokens for part in accounts),
        repeated=len(prepared.parts.train) - len(np.unique(prepared.parts.train)),
        copies=dict(train.copies),
        copies_left_out=dict(train.copies_left_out),
        turns=dict(observed.turns),
        languages=observed.languages(),
        labels=dict(observed.labels.most_common()) if observed.labels else None,
        repetition=observed.repetition(),
        private={kind: sum(read.private.get(kind, 0) for read in prepared.table.sources) for kind in looked_for},
        only_international_phones=privacy is not None and "phone" in privacy.detect and not privacy.regions,
        leaks=prepared.leaks.counts,
        leaked=prepared.leaks.leaked,
        padding_saved=_padding_saved(recipe, prepared),
        masks=_check_masks(recipe, prepared, renderer),
        mask_preview=_previews(recipe, train.checked, renderer),
        tokenizer_sha256=_tokenizer_hash(renderer),
        template_sha256=sha256_of_json(str(renderer.tokenizer.chat_template or "")),
        rows_per_second=prepared.rows / prepared.seconds,
        chunks=sum(part.chunks for part in accounts),
        chunks_from_cache=sum(part.chunks_from_cache for part in accounts),
    )


def _spread(rows: Sequence[Row]) -> Sequence[Row]:
    return rows[:: max(1, len(rows) // PREVIEWED_ROWS)][:PREVIEWED_ROWS]


def _previews(recipe: Recipe, rows: Sequence[Row], renderer: Renderer) -> tuple[tuple[TokenSpan, ...], ...]:
    """Show some examples token by token; where personal data is looked for, with placeholders in its place."""
    shown = ShownTexts(recipe.privacy)
    examples: list[Example] = []
    for _, conversation, example in _spread(rows):
        visible = shown.conversation(conversation)
        if visible == conversation:
            examples.append(example)
        else:
            rendered = renderer.examples([visible], recipe.data.train_on)
            examples += [one for one in rendered if isinstance(one, Example)]
    return tuple(spans_of(_beginning(example), renderer) for example in examples)


def _beginning(example: Example) -> Example:
    return Example(example.input_ids[:PREVIEWED_TOKENS], example.labels[:PREVIEWED_TOKENS])


def account(prepared: Prepared) -> tuple[SourceAccount, ...]:
    """Account for every row of every source: it is used for one purpose, set aside, or left over.

    Each of these is counted for itself, and they have to add up.
    """
    table = prepared.table
    counts = prepared.used().counts(table)
    later = table.count_by_source(prepared.set_aside_numbers())
    accounts = []
    for i, read in enumerate(table.sources):
        rows = len(read.rows) + len(read.set_aside)
        aside = len(read.set_aside) + later[i]
        counted = aside + sum(counts[name][i] for name in counts)
        assert counted == rows, f"{counted} of the {rows} rows of source {i} are accounted for"
        accounts.append(
            SourceAccount(
                source=read.source.source,
                sha256=read.sha256,
                rows=rows,
                train=counts["train"][i],
                validation=counts["validation"][i],
                held_out=counts["held_out"][i],
                set_aside=aside,
                over_limit=counts["left_over"][i],
            )
        )
    return tuple(accounts)


def _padding_saved(recipe: Recipe, prepared: Prepared) -> float:
    training = recipe.training
    devices = training.devices if isinstance(training.devices, int) else 1
    return padding_saved(
        prepared.train.lengths(), training.tokens_per_step, training.tokens_per_micro_batch, devices, recipe.seed
    )


def _check_masks(recipe: Recipe, prepared: Prepared, renderer: Renderer) -> MaskAudit:
    """Check a sample here; where all were to be checked, that was done while they were rendered."""
    checked = check_masks(renderer, prepared.train.checked, recipe.data.train_on)
    if recipe.data.audit.masks == "sample":
        return MaskAudit(examples=checked.examples, tokens=checked.tokens, probes=checked.probes)
    lengths = [part.lengths() for part, _ in prepared.purposes]
    return MaskAudit(
        examples=sum(len(part) for part in lengths),
        tokens=sum(int(part.sum()) for part in lengths),
        probes=checked.probes,
    )


def _tokenizer_hash(renderer: Renderer) -> str:
    vocabulary = sorted((i, token) for token, i in renderer.tokenizer.get_vocab().items())
    return sha256_of_json([f"{i} {token}" for i, token in vocabulary])
