"""A trial on its own, and as a member of a sweep: run and recorded, files first."""

import platform
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from quantlab.results.store import finished_summary, key_in, locked_folder
from quantlab.storage.memo import Memo
from quantlab.sweeping.run_config import RunConfig
from quantlab.sweeping.sweep import Member
from quantlab.sweeping.tracked_trial import trial_outcome
from quantlab.sweeping.training_run import training_tags
from quantlab.tracking.tracker import Run, RunEntry
from quantlab.trial.config import check_trial
from quantlab.trial.key import trial_key, trial_timing_key
from quantlab.trial.result import RESULT, TrialResult, check_writable
from quantlab.trial.trial import run_trial

NO_TAGS: Mapping[str, str] = MappingProxyType({})


def run_single(config: RunConfig, name: str, folder: Path, memo: Memo) -> tuple[TrialResult, tuple[str, ...]]:
    """Runs one trial; returns its result and the lines that lead to its page in the tracker.

    Raises ConnectionError, with the way to send it later, where the tracker did not take the result.
    """
    if config.sweep.trials:
        raise ValueError(
            f"{config.sweep.name} is a sweep: it needs -m, as in python -m quantlab.run -m +sweeps=..."
        )
    check_trial(config, memo)
    trial_key(config, memo)  # raises where checkpoint or data are wrong, before anything is recorded
    own = RunEntry(identity=uuid.uuid4().hex, name=name, params=config.params())
    result, run = _recorded(config, own, folder, memo)
    if run.problem:
        raise ConnectionError(
            f"the trial is done and in {folder / RESULT}, but was not recorded: {run.problem}; "
            f"send it later with python -m quantlab.sync {folder}"
        )
    return result, config.tracking.run_page(run.id)


def run_member(config: RunConfig, member: Member, folder: Path, memo: Memo) -> dict[str, Any]:
    """A trial of a sweep, unless another process has finished it meanwhile: ``result.json``'s content.

    Raises ValueError where its key is another here than where the sweep was started: the numbers would be as
    well.
    """
    if trial_key(config, memo) != key_in(member.key):
        raise ValueError(
            f"trial {member.name!r} has another key here ({platform.node()}) than where the sweep was "
            "started: its checkpoint or data have changed, or libraries, processor or kernels differ; "
            "start the sweep on a machine like those that run it"
        )
    with locked_folder(folder, f"trial {member.name}", wait=True):
        summary = finished_summary(folder, member.key, trial_timing_key(config))
        if summary is None:
            result, _ = _recorded(config, entry(member, config.params()), folder, memo)
            summary = result.summary()
        else:
            known = entry(member, config.params(), training_tags(config, config.tracking, memo))
            config.tracking.replay(known, folder, trial_outcome(folder, summary))
        return summary


def entry(member: Member, params: Mapping[str, str], tags: Mapping[str, str] = NO_TAGS) -> RunEntry:
    """What a tracker records of a sweep's trial before it runs: one run for each trial of each sweep."""
    return RunEntry(
        identity=f"{member.sweep}/{member.key}",
        name=member.name,
        params=dict(item.split("=", 1) for item in member.swept) | dict(params),
        tags={"sweep": member.sweep, "trial": f"{member.number} of {member.total}", **tags},
        parent=member.parent,
    )


def _recorded(config: RunConfig, entry: RunEntry, folder: Path, memo: Memo) -> tuple[TrialResult, Run]:
    check_writable(folder)
    tags = training_tags(config, config.tracking, memo)
    with config.tracking.start(replace(entry, tags={**entry.tags, **tags}), folder) as run:
        result = run_trial(config, memo)
        result.save(folder)
        run.log(trial_outcome(folder, result.summary()))
    return result, run
