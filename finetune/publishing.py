"""Builds a clean folder from a finished run: what is published, its evidence, its licence, and a list of it all."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError
from rich.table import Table

from evaluation.files import sha256_of_file, sha256_of_folder, staged_folder
from finetune.console import Reporter
from finetune.disk_space import SMALL_FILES, folder_size, require_space
from finetune.errors import DataError, ProofFailed
from finetune.licences import Decision, base_input, data_inputs, work_out
from finetune.merge_records import MERGE_FILE, MergeProof
from finetune.merged_files import check_merged_files
from finetune.peft_weights import ADAPTER_FILE
from finetune.publish_folder import Finished, fill_folder
from finetune.publish_manifest import MANIFEST_FILE, Manifest, Part
from finetune.publish_parts import hash_without_proof
from finetune.publish_private import describe_private
from finetune.publish_records import base_name, published_report, shown_source
from finetune.publish_rows import public_labels
from finetune.publish_settings import PublishSettings
from finetune.report_contents import Report
from finetune.report_figures import memory
from finetune.run_directory import STAGES, RunDirectory
from finetune.run_lock import Lock, find_run_base, load_lock
from finetune.server_door import ServerProof
from finetune.server_proof import load_server_proof, prove_served
from finetune.serving_model import TEMPLATE_FILE, Asked


def stage(run: RunDirectory, settings: PublishSettings, out: Path, reporter: Reporter) -> Manifest:
    """Build the folder that is published, and print its files.

    Raises:
        DataError: the run is not finished, its licences do not go together, or something in it must not be published.
        ProofFailed: adapter or merged model are not what was proven.
    """
    check_finished(run)
    check_proofs(run, settings.parts)
    served = prove_at_server(run, settings, reporter) if "merged" in settings.parts else None
    _refuse_used(out)
    report, lock = _load_report(run), load_lock(run)
    decision = _decide(report, lock, settings)
    public_labels(report.audit, settings.public_labels)
    reporter.say(f"licence: {decision.licence.id} ({decision.reason})")
    base = find_run_base(report.recipe.base, lock, settings.cache, reporter.say)
    finished = Finished(run, published_report(report, lock), report.recipe, lock, base, decision, settings, served)
    private = describe_private((run.folder, settings.cache, base.folder, out.parent))
    published = sum(folder_size(folder) for folder in (run.adapter, run.merged, run.evaluation))
    require_space(out.parent, SMALL_FILES + published, "what is published", settings.cache)
    with staged_folder(out) as staging:
        manifest = fill_folder(staging, finished, private, reporter)
    reporter.show(files_table(manifest))
    return manifest


def check_finished(run: RunDirectory) -> None:
    """Check that all five stages are done, and that what they wrote is still there as it was.

    Raises:
        DataError: names the stage.
    """
    if run.marker_file("merge").exists() and run.merged.is_dir():
        check_merged_files(run.merged)  # names the file, where the marker knows the whole alone
    for name in STAGES:
        marker = run.marker(name)
        again = f"finish it: finetune run {run.recipe} --out {run.folder}" if run.recipe.exists() else ""
        if marker is None:
            raise DataError(f"the stage {name!r} of this run is not finished", where=str(run.folder), hint=again)
        if why := run.why_stale(name, marker.inputs):
            raise DataError(f"the stage {name!r} is not as it was finished: {why}", where=str(run.folder), hint=again)
    reported = run.marker("report")
    if reported is not None and reported.inputs.get("scores") != run.output_hash("evaluate"):
        raise DataError("stages/report.json speaks of other scores", where=str(run.folder), hint=again)


def check_proofs(run: RunDirectory, parts: tuple[Part, ...]) -> None:
    """Check that what is published is what was proven: the adapter that was trained, the merge that was measured.

    Raises:
        ProofFailed: a proof is missing, damaged, or of something else.
    """
    where = str(run.merged / MERGE_FILE)
    try:
        proof = MergeProof.model_validate_json((run.merged / MERGE_FILE).read_bytes())
    except FileNotFoundError as error:
        raise ProofFailed("there is no proof of the merge", where=where, hint="run `finetune merge` again") from error
    except ValidationError as error:
        raise ProofFailed(
            "the proof of the merge is damaged", where=where, hint="run `finetune merge` again"
        ) from error
    if hash_without_proof(run.merged) != proof.merged_sha256:
        raise ProofFailed("the merged model is not the one that was proven", where=str(run.merged))
    if not proof.doors:
        what = "the merge was not tried at the doors that people use: plain transformers on adapter and merged model"
        raise ProofFailed(what, where=where, hint="run `finetune merge` again")
    trained = _load_report(run).training.adapter_sha256
    if "adapter" in parts and sha256_of_file(run.adapter / ADAPTER_FILE) != trained:
        raise ProofFailed("the adapter is not the one that was trained", where=str(run.adapter))


def prove_at_server(run: RunDirectory, settings: PublishSettings, reporter: Reporter) -> ServerProof | None:
    """Return the proof of the merged model at a running server; it is made now where there is none of this model.

    A model without a chat template has none: servers take chats.

    Raises:
        MachineError: there is none, and no server is installed.
        ProofFailed: the server makes something else of it.
    """
    if not (run.merged / TEMPLATE_FILE).is_file():
        return None
    if proof := load_server_proof(run.folder, sha256_of_folder(run.merged)):
        return proof
    reporter.say("the merged model was at no server yet: it is proven there now")
    return prove_served(Asked(str(run.folder)), None, settings.cache)


def local_base(run: RunDirectory) -> Path | None:
    """Return the folder of a base that nobody else can fetch; none where the base has a public name."""
    path = Path(load_lock(run).base)
    return path if path.is_dir() else None


def files_table(manifest: Manifest) -> Table:
    """Lay out what is in a published folder: files, sizes, hashes."""
    table = Table("file", "size", box=None, padding=(0, 2, 0, 0), title=manifest.name, title_justify="left")
    table.add_column("sha256", overflow="fold")
    for file in manifest.files:
        table.add_row(file.path, _size(file.bytes), file.sha256)
    table.add_row("", _size(sum(file.bytes for file in manifest.files)), f"{len(manifest.files)} files")
    return table


def _decide(report: Report, lock: Lock, settings: PublishSettings) -> Decision:
    model, _ = base_name(lock)
    sources = tuple(dict.fromkeys(source.source for source in report.recipe.data.sources))
    inputs = (
        base_input(model, settings.base_license),
        *data_inputs(sources, settings.data_licenses, shown_source),
    )
    return work_out(inputs, settings.license, settings.name)


def _load_report(run: RunDirectory) -> Report:
    try:
        return Report.model_validate_json((run.folder / "report.json").read_bytes())
    except ValidationError as error:
        what = "report.json was written by another version of this program, or is damaged"
        raise DataError(what, where=str(run.folder), hint="write it again: finetune report") from error


def _refuse_used(out: Path) -> None:
    """Check that nothing but an earlier publication would be replaced."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST_FILE).exists())):
        raise DataError("there is something else there already", where=str(out), hint="name another folder: --out")


def _size(size: int) -> str:
    return f"{size:,} B" if size < 2**20 else memory(size)
