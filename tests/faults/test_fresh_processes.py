"""A run in another process, folder and environment comes out the same: adapter, merged model, data, scores, report."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from figures import Figures
from tiny_runs import HUNG_SECONDS, process_command, write_classification

from finetune.adapter import adapter_hash
from finetune.repetition import compare_outcomes
from finetune.run_directory import RunDirectory
from finetune.run_lock import Lock, load_lock

pytestmark = pytest.mark.slow

HOST_OF_ITS_OWN = Path("/proc/self/ns/uts").exists() and (
    subprocess.run(["unshare", "--uts", "true"], capture_output=True, check=False).returncode == 0
    if shutil.which("unshare")
    else False
)
"""Whether a process may have a host name of its own here."""


@dataclass(frozen=True)
class Elsewhere:
    """Where and how a process runs; nothing of it may matter."""

    folder: str
    host: str = "here"
    environment: Mapping[str, str] = field(default_factory=dict)
    umask: str = "022"
    open_files: int = 0
    nice: int = 0


ELSEWHERE = (
    Elsewhere("b", "alpha", {"PYTHONHASHSEED": "1", "TZ": "Pacific/Chatham", "LC_ALL": "C"}, "077"),
    Elsewhere("with a space/and ü", "beta", {"PYTHONHASHSEED": "random", "LC_ALL": "POSIX", "LANG": "de_DE"}),
    Elsewhere("c" * 120, "gamma", {"PYTHONHASHSEED": "2", "PYTHONUTF8": "1", "TZ": "America/Caracas"}, "027", 40),
    Elsewhere("d/e/f/g/h", "delta", {"PYTHONHASHSEED": "3", "LC_ALL": "C.UTF-8", "TZ": "Asia/Kathmandu"}, open_files=3),
    Elsewhere("数据", "epsilon", {"PYTHONHASHSEED": "4", "LANGUAGE": "zh_CN", "TZ": "UTC"}),
    Elsewhere("f", "zeta", {"PYTHONHASHSEED": "5", "COLUMNS": "40", "LINES": "5", "TERM": "dumb"}, nice=5),
    Elsewhere("g", "eta", {"PYTHONHASHSEED": "6", "USER": "somebody", "LOGNAME": "somebody"}, "007"),
    Elsewhere("h", "theta", {"PYTHONHASHSEED": "7", "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1"}),
    Elsewhere("i", "iota", {"PYTHONHASHSEED": "8", "TZ": "Pacific/Kiritimati", "LC_NUMERIC": "fr_FR"}),
    Elsewhere("j", "kappa", {"PYTHONHASHSEED": "9", "TZ": "America/Adak", "LC_TIME": "tr_TR"}, open_files=100),
    Elsewhere("k", "lambda", {"PYTHONHASHSEED": "10", "MALLOC_ARENA_MAX": "1"}),
    Elsewhere("l", "mu", {"PYTHONHASHSEED": "11", "MALLOC_PERTURB_": "85"}, "000"),
    Elsewhere("m", "nu", {"PYTHONHASHSEED": "12", "PYTHONOPTIMIZE": "", "SHELL": "/bin/false"}),
    Elsewhere("n", "xi", {"PYTHONHASHSEED": "13", "TOKENIZERS_PARALLELISM": "false"}),
    Elsewhere("o", "omicron", {"PYTHONHASHSEED": "14", "TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": "3"}),
    Elsewhere("p", "pi", {"PYTHONHASHSEED": "15", "RANDOM_SEED": "9", "SEED": "9"}, open_files=7),
    Elsewhere("q", "rho", {"PYTHONHASHSEED": "16", "SOURCE_DATE_EPOCH": "1", "TZ": "Antarctica/Troll"}),
    Elsewhere("r", "sigma", {"PYTHONHASHSEED": "17", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}),
    Elsewhere("s", "tau", {"PYTHONHASHSEED": "18", "PYTHONUNBUFFERED": "1", "LC_COLLATE": "sv_SE"}, "077", nice=10),
    Elsewhere("t", "upsilon", {"PYTHONHASHSEED": "4294967295", "PYTHONMALLOC": "malloc", "DISPLAY": ":9"}),
)


def run_there(there: Elsewhere, parent: Path) -> tuple[RunDirectory, str]:
    """Run the recipe as it says, with folders of its own; return the run and what its host was called."""
    folder = parent / there.folder
    folder.mkdir(parents=True)
    place = write_classification(folder)
    # Relative names, as in a recipe that is passed on: what a run says of its rows is then the same everywhere.
    document = yaml.safe_load(place.recipe.read_text(encoding="utf-8"))
    document["base"]["model"] = "base"
    document["data"]["train"][0]["source"] = "rows.csv"
    place.recipe.write_text(yaml.safe_dump(document), encoding="utf-8")
    home, temporary = folder / "home", folder / "tmp"
    home.mkdir()
    temporary.mkdir()
    environment = {**os.environ, "HOME": str(home), "TMPDIR": str(temporary), "XDG_CACHE_HOME": str(home / "x")}
    shell = f'umask {there.umask}; uname -n > host; exec nice -n {there.nice} "$@"'
    started = ["sh", "-c", shell, "sh", *process_command("run", "tiny.yaml", "--out", "run", "--cache", "cache")]
    if HOST_OF_ITS_OWN:
        started = ["unshare", "--uts", "sh", "-c", f'hostname {there.host}; exec "$@"', "sh", *started]
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(there.open_files)]
    try:
        done = subprocess.run(
            started,
            cwd=folder,
            env=environment | there.environment,
            pass_fds=files,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=HUNG_SECONDS,
            check=False,
        )
    finally:
        for file in files:
            os.close(file)
    assert done.returncode == 0, done.stderr
    return RunDirectory(folder / "run"), (folder / "host").read_text().strip()


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The run that the others are compared with."""
    return run_there(Elsewhere("a", environment={"PYTHONHASHSEED": "0"}), tmp_path_factory.mktemp("first"))[0]


def test_fresh_processes_elsewhere_come_out_the_same(first: RunDirectory, tmp_path: Path, figures: Figures) -> None:
    others = ELSEWHERE[: figures.amount(2, len(ELSEWHERE))]
    adapters, hosts, failures = {adapter_hash(first.adapter)}, set(), []
    for there in others:
        run, host = run_there(there, tmp_path)
        hosts.add(host)
        found = compare_outcomes(first, run)
        adapters.add(adapter_hash(run.adapter))
        failures += [f"{there.folder}: {difference}" for difference in (*found.files, *found.scores)]
        if _lock(first) != _lock(run):
            failures.append(f"{there.folder}: recipe.lock.json")
        shutil.rmtree(run.folder.parent)
    assert (len(hosts) == len(others)) is HOST_OF_ITS_OWN
    figures.report(
        "Repeats",
        "fresh process, other directory, PYTHONHASHSEED, HOME, host name, locale, time zone, umask, open files: same"
        " adapter, merged model, data, answers, report.json but for times, and lock",
        len(others),
        "processes",
        len({failure.partition(":")[0] for failure in failures}),
        "" if HOST_OF_ITS_OWN else "the host name could not be changed here",
    )
    assert failures == []
    assert len(adapters) == 1


def _lock(run: RunDirectory) -> Lock:
    """Return a run's lock without the commit of the checkout, which may move while this takes its minutes."""
    lock = load_lock(run)
    assert lock.program is not None
    return lock.model_copy(update={"program": lock.program.model_copy(update={"commit": None})})


def test_the_comparison_would_notice(first: RunDirectory) -> None:
    """A process whose seed is another's comes out otherwise, so that equal hashes mean something."""
    place = first.folder.parent
    command = process_command("train", "tiny.yaml", "--out", "other", "--cache", "cache", "--set", "seed=1")
    subprocess.run(command, cwd=place, check=True, capture_output=True, timeout=HUNG_SECONDS)
    assert adapter_hash(RunDirectory(place / "other").adapter) != adapter_hash(first.adapter)
