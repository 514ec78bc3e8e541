"""LICENSE and NOTICE of a published folder, where the licences ask for them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from evaluation.files import write_text
from finetune.errors import DataError
from finetune.licence_table import Licence
from finetune.licences import Decision

LICENCE_FILE, BASE_LICENCE_FILE, NOTICE_FILE = "LICENSE", "LICENSE.base", "NOTICE"
_BESIDE_A_BASE = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt")


def write_licence_files(folder: Path, decision: Decision, base: Path, stated: Path | None) -> None:
    """Write the texts of the licences that have to go along, and what has to be said of whose work it is.

    Raises:
        DataError: a licence's text has to go along and is not there.
    """
    base_licence = next(one.licence for one in decision.inputs if one.what == "base")
    for licence in decision.texts:
        of_base = licence.id == base_licence.id
        name = LICENCE_FILE if licence.id == decision.licence.id else BASE_LICENCE_FILE
        write_text(folder / name, _text_of(licence, base if of_base else None, stated if of_base else None))
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


def _text_of(licence: Licence, base: Path | None, stated: Path | None) -> str:
    if stated is not None:
        return _read(stated)
    if licence.id == "apache-2.0":
        return files("finetune").joinpath("apache-2.0.txt").read_text(encoding="utf-8")
    beside = next((base / name for name in _BESIDE_A_BASE if base and (base / name).is_file()), None)
    if beside is None:
        raise DataError(
            f"a copy of the licence {licence.id} has to go along, and none lies beside the base",
            where="licence",
            hint=f"save it from {licence.source} and name the file: --license-file LICENSE.txt",
        )
    return _read(beside)


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("no text could be read from it", where=str(path)) from error
    if not text.strip():
        raise DataError("it is empty", where=str(path))
    return text
