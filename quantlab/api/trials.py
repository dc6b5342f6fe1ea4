"""One trial from Python, and a plan in a model of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from quantlab.api.checkpoints import saved_checkpoint
from quantlab.cli.catalogue import register
from quantlab.cli.conf_dir import CONF
from quantlab.cli.errors import import_errors
from quantlab.engines.insert import Inserted
from quantlab.engines.insert import insert as inserted
from quantlab.plan.plan import QuantPlan
from quantlab.results.saved import load_plan
from quantlab.storage.memo import Memo
from quantlab.sweeping.run_config import RunConfig
from quantlab.trial import trial
from quantlab.trial.result import TrialResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from quantlab.api.checkpoints import Processor

MEMO = Memo()  # shared by the trials of one process: a second trial loads and calibrates nothing again
COMMANDS_OWN = ("tracking", "launcher", "sweep", "sweeps", "hydra")  # settings of what a trial does not do


def run_trial(
    *overrides: str,
    model: PreTrainedModel | None = None,
    processor: Processor | None = None,
    tokenizer: Processor | None = None,
    config_dir: str | Path | None = None,
) -> TrialResult:
    """Runs one trial: quantizes, evaluates and profiles, and returns the :class:`TrialResult`.

    ``overrides`` are those of ``quantlab run``: ``run_trial("task=rte", "method=peg", "method.k=4")``.
    ``config_dir`` is a folder of configs of one's own (the command's ``--config-dir``). Nothing is tracked or
    written besides the cache folder: ``result.save(folder)`` writes what the command leaves in ``outputs/``.

    ``model`` and ``processor`` take the place of ``model=...``: a network of transformers that is in memory
    and has the task's head, and its tokenizer or image processor (``tokenizer`` is another name for it).
    Label names come from ``model.config.id2label``, as they do from a checkpoint's config.json. The model is
    not changed. It is saved to a temporary folder, once for each content, and the trial and the processes of
    its profile read it from there; the folder is removed when this process ends. So the model is in memory
    twice, and its fingerprint is that of the saved files.

    Unless it is ``profile=off``, the profile starts fresh processes that import the calling script, which
    therefore needs ``if __name__ == "__main__":``.

    Raises hydra.errors.HydraException where the overrides do not compose, and ValueError or OSError that says
    what is wrong with a setting, the checkpoint or the data.
    """
    _refuse_commands_settings(overrides)
    own = ["tracking=off"]
    if processor is not None and tokenizer is not None:
        raise ValueError("processor= and tokenizer= are two names for one thing: give one of them")
    processor = tokenizer if processor is None else processor
    if model is not None and processor is not None:
        _refuse_other_model(overrides)
        own += ["model=hf", f"model.path={_quoted(saved_checkpoint(model, processor))}"]
    elif model is not None or processor is not None:
        raise ValueError(
            "a model in memory comes with its tokenizer or image processor: give model= and processor="
        )
    return trial.run_trial(composed([*own, *overrides], config_dir), MEMO)


def composed(overrides: Sequence[str], config_dir: str | Path | None = None) -> RunConfig:
    """The config that the command line builds from these overrides."""
    register()
    search = [] if config_dir is None else [f"hydra.searchpath=[{_quoted(_folder(config_dir).as_uri())}]"]
    with initialize_config_dir(CONF, version_base="1.3"), import_errors():
        config: RunConfig = instantiate(compose("config", [*search, *overrides]))
    return config


@contextmanager
def insert(
    model: PreTrainedModel, plan: QuantPlan | str | Path, engine: str = "integer"
) -> Iterator[Inserted]:
    """Inside, the model runs as the plan says; at the exit it is bit for bit what it was.

    ``plan`` is a trial's (``result.plan``, ``load_trial(folder).plan``), or the path of a plan.json or of a
    trial's folder. ``model`` has the architecture of the trial's, is in FP32 and in ``eval()``. ``engine`` is
    ``integer`` (integer matrix products wherever a kernel is exact and fast here) or ``simulated`` (FP32
    arithmetic on quantized values). Yields which site's quantizer ran how often, and what each Linear ran on.

    Raises ValueError, before anything is changed, where the plan does not fit the model.
    """
    with inserted(model, plan if isinstance(plan, QuantPlan) else load_plan(Path(plan)), engine) as ran:
        yield ran


def _refuse_commands_settings(overrides: Sequence[str]) -> None:
    for override in overrides:
        group = override.lstrip("+~").partition("=")[0].partition(".")[0].partition("/")[0]
        if group in COMMANDS_OWN:
            raise ValueError(
                f"{override}: run_trial runs one trial and records it nowhere; quantlab run takes {group}"
            )


def _refuse_other_model(overrides: Sequence[str]) -> None:
    for override in overrides:
        if override.partition("=")[0].lstrip("+") in ("model", "model.path", "model.revision"):
            raise ValueError(f"{override} names another model than the one in memory: leave one of them out")


def _folder(path: str | Path) -> Path:
    folder = Path(path).absolute()
    if not folder.is_dir():
        raise FileNotFoundError(f"config_dir {folder} is no folder")
    return folder


def _quoted(value: object) -> str:
    """A value as Hydra's grammar takes it whatever characters it has."""
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"
