"""LICENSE and NOTICE of a published folder, where the licences ask for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from evaluation.files import write_text
from finetune.errors import DataError
from finetune.licence_table import Licence
from finetune.licences import Decision, find_licence

LICENCE_FILE, BASE_LICENCE_FILE, NOTICE_FILE = "LICENSE", "LICENSE.base", "NOTICE"
_BESIDE_A_BASE = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt")


def write_licence_files(folder: Path, decision: Decision, base: Path, stated: Sequence[tuple[str, Path]]) -> None:
    """Write the texts of the licences that have to go along, and what has to be said of whose work it is.

    `stated` are pairs of a licence and the file with its text; "" is the only licence whose text is missing.

    Raises:
        DataError: a licence's text has to go along and is not there, or a text is of no licence that has to.
    """
    base_licence = next(one.licence for one in decision.inputs if one.what == "base")
    found = {one: _found_text(one, base if one.id == base_licence.id else None) for one in decision.texts}
    named = _stated_texts(found, stated)
    for licence, text in found.items():
        name = LICENCE_FILE if licence.id == decision.licence.id else BASE_LICENCE_FILE
        written = named.get(licence.id, text)
        if written is None:
            raise DataError(
                f"a copy of the licence {licence.id} has to go along, and none lies beside the base",
                where="licence",
                hint=f"save it from {licence.source} and name the file: --license-file {licence.id}=LICENSE.txt",
            )
        write_text(folder / name, written)
    if notice := notice_text(decision):
        write_text(folder / NOTICE_FILE, notice)


def notice_text(decision: Decision) -> str:
    """Return what NOTICE says; "" where nothing has to be said."""
    lines = [*decision.built_with, *decision.notices]
    lines += [f"Use is bound by the acceptable use policy at {policy}" for policy in decision.policies]
    lines += [
        f"Made from {one.name}, under {one.licence.id} ({one.licence.source}); changed by fine-tuning."
        for one in dict.fromkeys(decision.attributions)
    ]
    return "\n\n".join(lines) + "\n" if lines else ""


def _found_text(licence: Licence, base: Path | None) -> str | None:
    """Return the text of a licence that is here: the one that comes with the package, or that beside the base."""
    if licence.id == "apache-2.0":
        return files("finetune").joinpath("apache-2.0.txt").read_text(encoding="utf-8")
    beside = next((base / name for name in _BESIDE_A_BASE if base and (base / name).is_file()), None)
    return None if beside is None else _read(beside)


def _stated_texts(found: Mapping[Licence, str | None], stated: Sequence[tuple[str, Path]]) -> dict[str, str]:
    """Read the files that were named, by the id of the licence that each is the text of."""
    needed = [licence.id for licence in found]
    missing = [licence.id for licence, text in found.items() if text is None]
    texts: dict[str, str] = {}
    for name, path in stated:
        hint = f"licences whose text has to go along: {', '.join(needed) or 'none'}; write ID=FILE"
        meant = [find_licence(name, "--license-file").id] if name else missing
        if len(meant) != 1:
            what = "it is not said which licence this is the text of"
            raise DataError(what, where=f"--license-file {path}", hint=hint)
        if meant[0] not in needed:
            raise DataError(f"the text of {meant[0]} does not have to go along", where="--license-file", hint=hint)
        if meant[0] in texts:
            raise DataError(f"two texts of {meant[0]} are named", where="--license-file", hint=hint)
        texts[meant[0]] = _read(path)
    return texts


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("no text could be read from it", where=str(path)) from error
    if not text.strip():
        raise DataError("it is empty", where=str(path))
    return text
