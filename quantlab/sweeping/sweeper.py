"""A sweep from its first line to its table: what is there is reused, what is missing is run, all of it is
shown."""

import errno
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from functools import partial

import psutil
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from quantlab.cli.console import plain_console
from quantlab.cli.errors import compact_errors
from quantlab.cli.secrets import without_password, without_passwords
from quantlab.results.store import locked_folder
from quantlab.results.table import Results
from quantlab.storage.files import write_whole
from quantlab.sweeping.clusters import join
from quantlab.sweeping.composing import TrialsLoader
from quantlab.sweeping.ending import FinishedSweep, print_sweep, write_sweep_files
from quantlab.sweeping.member import entry
from quantlab.sweeping.prepare import PreparedSweep, PreparedTrial, prepare_sweep
from quantlab.sweeping.quoting import in_hydra
from quantlab.sweeping.sweep import Member, varying
from quantlab.sweeping.tracked_trial import trial_outcome
from quantlab.tracking.tracker import RunEntry, RunOutcome, RunsTable
from quantlab.trial.result import RESULT

WORKERS_END_S = 3.0

Launch = Callable[[Sequence[Sequence[str]]], Sequence[JobReturn]]


def run_sweep(
    context: HydraContext, task: TaskFunction, master: DictConfig, arguments: Sequence[str]
) -> None:
    """Everything between ``-m`` and the table. Raises where a trial cannot run, failed, or was not
    recorded."""
    console = plain_console()
    context = HydraContext(callbacks=context.callbacks, config_loader=TrialsLoader(context.config_loader))
    with compact_errors():
        sweeping = prepare_sweep(context.config_loader, master, arguments)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=task, config=master
        )
        join(launcher)
        with _room(sweeping), locked_folder(sweeping.folder, f"sweep {sweeping.sweep.name}", wait=False):
            settings = without_passwords(OmegaConf.to_container(master, resolve=False))
            OmegaConf.save(OmegaConf.create(settings), sweeping.folder / "multirun.yaml")
            ended, page = _recorded(sweeping, partial(launcher.launch, initial_job_idx=0), console)
    print_sweep(ended, sweeping, console, page)
    if complaint := ended.complaint(sweeping):
        raise CompactHydraException(complaint)


@contextmanager
def _room(sweeping: PreparedSweep) -> Iterator[None]:
    """Says which disk it is that is full, and that nothing is lost."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            f"{sweeping.store.root}: the disk is full; what is done is kept, start again later"
        ) from error


def _recorded(
    sweeping: PreparedSweep, launch: Launch, console: Console
) -> tuple[FinishedSweep, tuple[str, ...]]:
    """Reuses, runs and closes the sweep, under its own run."""
    sweep, tracking = sweeping.sweep, sweeping.tracking
    identity = _identity(sweeping)
    own = RunEntry(
        identity=identity, name=sweep.name, tags={"sweep_parent": identity, "question": sweep.question}
    )
    with tracking.start(own, sweeping.folder) as run:
        members = _members(sweeping, identity, run.id)
        reused = _reused(sweeping, members)
        missing = [trial for key, trial in sweeping.unique.items() if key not in reused]
        trials = "1 trial" if len(members) == 1 else f"{len(members)} trials"
        console.print(f"sweep {identity}: {trials}, {len(reused)} reused, {len(missing)} to run")
        console.print(f"results: {sweeping.folder}")
        try:
            with _workers_ended():
                returns = (
                    launch([_job(sweeping, trial, members[trial.key]) for trial in missing])
                    if missing
                    else []
                )
        finally:
            tracking.tidy()
        ended = write_sweep_files(sweeping, reused, _errors(sweeping, missing, returns))
        run.log(
            RunOutcome(metrics=ended.metrics, tags=ended.tags, files=tuple(path.name for path in ended.files))
        )
    page = tracking.table_page(_runs_table(identity, ended.results)) if ended.results else ()
    return ended, page


def _runs_table(identity: str, results: Results) -> RunsTable:
    """The sweep's trials as the tracker's page shows them: the best score first, with what was swept."""
    primary = results.primary
    timed = ("speedup_vs_fp32", "latency_p50_ms")
    return RunsTable(
        tag="sweep",
        value=identity,
        order_by=primary,
        ascending=not results.scale.score.higher_is_better,
        metrics=(
            primary,
            f"{primary}_drop_points" if results.scale.percent else f"{primary}_ratio",
            "size_mb",
            *(name for name in timed if results.metric(name).notna().any()),
        ),
        params=results.swept,
        tags=("alarms",),
    )


def _identity(sweeping: PreparedSweep) -> str:
    """Names the sweep in tags: the same each time it is started, but new for one that repeats everything."""
    path = sweeping.folder / "identity"
    if sweeping.sweep.fresh or not path.is_file():
        write_whole(path, f"{sweeping.folder.name}-{datetime.now():%Y%m%d-%H%M%S}")
    return path.read_text(encoding="utf-8")


def _members(sweeping: PreparedSweep, identity: str, parent: str | None) -> dict[str, Member]:
    swept = varying([trial.row for trial in sweeping.trials])
    return {
        trial.key: Member(
            number=number,
            total=len(sweeping.unique),
            name=trial.row.name,
            key=trial.key,
            sweep=identity,
            parent=parent,
            swept=tuple(f"{name}={value}" for name, value in trial.row.settings.items() if name in swept),
        )
        for number, trial in enumerate(sweeping.unique.values(), start=1)
    }


def _reused(sweeping: PreparedSweep, members: Mapping[str, Member]) -> set[str]:
    """The trials that are there already, recorded under this sweep too; a fresh sweep has none."""
    reused = set()
    for key, member in members.items():
        folder = sweeping.store.folder(key)
        if sweeping.sweep.fresh:
            (folder / RESULT).unlink(missing_ok=True)
        elif summary := sweeping.store.summary(key, sweeping.unique[key].timing):
            sweeping.tracking.replay(
                entry(member, sweeping.unique[key].params), folder, trial_outcome(folder, summary)
            )
            reused.add(key)
    return reused


def _job(sweeping: PreparedSweep, trial: PreparedTrial, member: Member) -> list[str]:
    folders = [
        f"hydra.sweep.dir={in_hydra(str(sweeping.store.root))}",
        f"hydra.sweep.subdir=trials/{trial.key}",
    ]
    return [*trial.overrides, f"sweep.member={in_hydra(asdict(member))}", *folders]


@contextmanager
def _workers_ended() -> Iterator[None]:
    """Ends the processes that a stopped launcher leaves running for a while: they would write to a closed
    sweep.

    Raises ChildProcessError where the launcher stopped because one of them was killed.
    """
    here = psutil.Process()
    others = set(here.children(recursive=True))
    try:
        yield
    except BaseException as error:
        workers = [worker for worker in here.children(recursive=True) if worker not in others]
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.terminate()
        psutil.wait_procs(workers, timeout=WORKERS_END_S)
        if isinstance(error, BrokenExecutor):
            raise ChildProcessError("a worker was killed (out of memory?); start again to go on") from error
        raise


def _errors(
    sweeping: PreparedSweep, missing: Sequence[PreparedTrial], returns: Sequence[JobReturn]
) -> dict[str, str]:
    """What went wrong, by key. A result that a machine with other disks sent back is written here."""
    errors = {}
    for trial, job in zip(missing, returns, strict=True):
        if job.status != JobStatus.COMPLETED:
            errors[trial.key] = without_password(str(job._return_value))
        elif sweeping.store.summary(trial.key) is None:
            folder = sweeping.store.folder(trial.key)
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / RESULT, json.dumps(job.return_value, indent=2))
    return errors
