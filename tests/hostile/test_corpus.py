"""Everything hostile that comes as a file or a name: nothing of it is run, written elsewhere, or waited for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from attacked import Attack, attack_in_process
from corpus_files import files
from corpus_texts import texts
from figures import Figures
from tiny_model import write_tiny_base


def failures(attacks: Sequence[Attack], folder: Path) -> list[str]:
    """Try every attack, and say which did what it must not."""
    names = [attack.name for attack in attacks]
    assert len(names) == len(set(names)), "two attacks have one name"
    seen = ((one, attack_in_process(one, folder / str(number))) for number, one in enumerate(attacks))
    return [f"{one.name}: {wrong}" for one, found in seen if (wrong := found.wrong(one))]


def test_texts_and_names(tmp_path: Path, figures: Figures) -> None:
    attacks = list(texts())
    wrong = failures(attacks, tmp_path)
    claim = "a hostile recipe, template or name runs nothing, writes nothing, asks nobody and ends within 1 s"
    figures.report(
        "Corpus", claim, len(attacks), "inputs", len(wrong), "each in a process of its own, watched by an audit hook"
    )
    assert not wrong, "\n".join(wrong)


def test_files(tmp_path: Path, figures: Figures) -> None:
    attacks = list(files(write_tiny_base(tmp_path / "tiny")))
    wrong = failures(attacks, tmp_path)
    claim = "a hostile file of weights, a model, an archive, rows or an adapter does nothing of the kind"
    figures.report("Corpus", claim, len(attacks), "inputs", len(wrong), "refused by name, or every row set aside")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("deed", "told"),
    [
        (lambda place: __import__("os").system("true"), "os.system"),
        (lambda place: __import__("pickle").loads(b"cposix\nsystem\n(S'true'\ntR."), "pickle.find_class"),
        (lambda place: (place.parent / "elsewhere").write_text("x"), "wrote"),
        (lambda place: __import__("socket").getaddrinfo("example.org", 80), "socket.getaddrinfo"),
        (lambda place: sum(range(2 * 10**8)), "took"),
        (lambda place: bytearray(8 * 2**30), "fault"),
        (lambda place: 1 / 0, "fault"),
        (lambda place: "taken", "taken"),
        (lambda place: (place / "executed").touch(), "a payload ran"),
    ],
)
def test_what_must_not_be_is_seen(deed: object, told: str, tmp_path: Path) -> None:
    """Else the corpus would prove nothing."""
    attack = Attack("planted", deed)  # type: ignore[arg-type]
    assert told in attack_in_process(attack, tmp_path / "place").wrong(attack)
