"""Laws of mixing, balancing and augmentation: shares to within a row, nothing lost unasked, no order in it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from figures import Figures

from evaluation.conversation import Conversation, Message
from finetune.augmentation import augment
from finetune.mixing import balance, mix
from finetune.recipe_data import Augmentation, Paraphrase


def test_sources_have_their_shares(figures: Figures) -> None:
    cases = figures.amount(100, 5000)
    chance = random.Random(1)
    failures = sum(not _shares_hold(chance) for _ in range(cases))
    claim = "each source has its share to within a row, every row equally often to within one, in whatever order"
    figures.report("Mixing", claim, cases, "mixtures", failures)
    assert failures == 0


def test_classes_are_within_the_ratio(figures: Figures) -> None:
    cases = figures.amount(100, 5000)
    chance = random.Random(2)
    failures = sum(not _ratio_holds(chance) for _ in range(cases))
    claim = "classes are within the ratio asked for, with as few rows repeated or left out as that takes"
    figures.report("Mixing", claim, cases, "label sets", failures)
    assert failures == 0


def test_augmentation_takes_its_share_and_leaves_answers_alone(figures: Figures) -> None:
    cases = figures.amount(2000, 50_000)
    section = Augmentation(
        case=0.25,
        punctuation=0.5,
        paraphrase=0.1,
        paraphrases=(Paraphrase(text="Say it.", alternatives=("Tell it.",)),),
    )
    counts: Counter[str] = Counter()
    failures = both = 0
    for i in range(cases):
        row = _row(i)
        copies = augment(row, f"row {i}", section, seed=3)
        counts.update(kind for kind, _ in copies)
        both += {"case", "punctuation"} <= {kind for kind, _ in copies}
        unsound = any(c == row or c.messages[-1] != row.messages[-1] for _, c in copies)
        failures += unsound or copies != augment(row, f"row {i}", section, seed=3)
    claim = "a copy differs from its row, has the same answer, and is the same each time"
    shares = {kind: counts[kind] / cases for kind in ("case", "punctuation", "paraphrase")}
    note = ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items()) + " of the rows; asked for 25, 50, 10 %"
    figures.report("Mixing", claim, cases, "rows", failures, note)
    assert failures == 0
    tolerance = 4 * (0.25 / cases) ** 0.5
    assert all(abs(shares[kind] - asked) < tolerance for kind, asked in _ASKED.items())
    # Each kind draws for itself: otherwise the rows of a small share would all be among those of a large one.
    assert abs(both / cases - _ASKED["case"] * _ASKED["punctuation"]) < tolerance


_ASKED = {"case": 0.25, "punctuation": 0.5, "paraphrase": 0.1}


def _shares_hold(chance: random.Random) -> bool:
    sizes = [chance.randint(5, 60) for _ in range(chance.randint(2, 6))]
    weights = [chance.uniform(0.5, 3) for _ in sizes]
    rows = [[f"{source} {chance.randrange(size)}" for _ in range(size)] for source, size in enumerate(sizes)]
    seed = chance.randrange(100)
    chosen = mix(rows, weights, None, seed)
    shuffled = [chance.sample(keys, len(keys)) for keys in rows]
    again = mix(shuffled, weights, None, seed)
    exact = [sum(sizes) * weight / sum(weights) for weight in weights]
    return (
        sum(map(len, chosen)) == sum(sizes)
        and all(abs(len(found) - share) < 1 for found, share in zip(chosen, exact, strict=True))
        and all(_evenly_used(found, size) for found, size in zip(chosen, sizes, strict=True))
        and _named(rows, chosen) == _named(shuffled, again)
    )


def _evenly_used(found: Sequence[int], size: int) -> bool:
    uses = Counter(found)
    times = [uses[i] for i in range(size)]
    return max(times) - min(times) <= 1 and set(uses) <= set(range(size))


def _named(rows: Sequence[Sequence[str]], chosen: Sequence[Sequence[int]]) -> list[Counter[str]]:
    return [Counter(keys[i] for i in found) for keys, found in zip(rows, chosen, strict=True)]


def _ratio_holds(chance: random.Random) -> bool:
    labels = [str(int(chance.expovariate(0.7))) for _ in range(chance.randint(1, 200))]
    keys = [str(chance.random()) for _ in labels]
    ratio = chance.choice([1.0, 1.1, 1.5, 2.0, 3.7])
    before = Counter(labels)
    repeated = balance(labels, keys, "repeat", ratio, seed=0)
    drawn = balance(labels, keys, "draw", ratio, seed=0)
    grown, thinned = Counter(labels[i] for i in repeated), Counter(labels[i] for i in drawn)
    order = chance.sample(range(len(labels)), len(labels))
    again = balance([labels[i] for i in order], [keys[i] for i in order], "draw", ratio, seed=0)
    return (
        all(max(after.values()) <= ratio * min(after.values()) + 1e-9 for after in (grown, thinned))
        and all(_least_growth(before, grown, label, ratio) for label in before)
        and all(_least_loss(before, thinned, label, ratio) for label in before)
        and len(drawn) == len(set(drawn))
        and set(repeated) == set(range(len(labels)))
        and sorted(keys[i] for i in drawn) == sorted(keys[order[i]] for i in again)
    )


def _least_growth(before: Counter[str], after: Counter[str], label: str, ratio: float) -> bool:
    one_less_is_too_few = max(before.values()) > ratio * (after[label] - 1) + 1e-9
    return after[label] == before[label] or (after[label] > before[label] and one_less_is_too_few)


def _least_loss(before: Counter[str], after: Counter[str], label: str, ratio: float) -> bool:
    one_more_is_too_many = after[label] + 1 > ratio * min(before.values()) + 1e-9
    return after[label] == before[label] or (after[label] < before[label] and one_more_is_too_many)


def _row(number: int) -> Conversation:
    question, answer = f"Say it.\nWhat is Number {number}?", f"Number {number}. Say it."
    return Conversation(messages=(Message(role="user", content=question), Message(role="assistant", content=answer)))
