"""A trial's config, and the checks that it can run."""

from dataclasses import dataclass, field, fields
from typing import Any

from quantlab.calibration.estimators import Calibration
from quantlab.config.checks import one_of
from quantlab.engines.insert import ENGINES
from quantlab.evaluation.answering import Evaluation
from quantlab.evaluation.verdicts import require_decidable
from quantlab.methods.bits import Bits, tied_weights, weighted_modules
from quantlab.methods.method import Method, check_weight_ranges
from quantlab.network.architecture import all_sites, family_of
from quantlab.network.compatibility import check_token_types, token_limit
from quantlab.network.models import ModelSpec
from quantlab.network.sites import Placement, Site
from quantlab.profiling.profile import Profile
from quantlab.rounding.rounding import Rounding
from quantlab.runtimes.runtime import FileRuntime, Runtime, TorchOnly
from quantlab.splits.split import SplitMethod
from quantlab.storage.memo import Memo
from quantlab.tasks.batching import Tokenized
from quantlab.tasks.heads import TOKENS
from quantlab.tasks.task import Task
from quantlab.training.training import Training
from quantlab.transforms.transform import Transform
from quantlab.trial.material import encoded_rows, resolve_checkpoint, select_rows
from quantlab.trial.result import plain_data
from quantlab.trial.trained import trained


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """Everything that decides a trial's numbers, as components."""

    model: ModelSpec
    task: Task
    placement: Placement
    calibration: Calibration
    bits: Bits
    method: Method
    evaluation: Evaluation
    profile: Profile
    engine: str = "integer"  # or simulated: computes the answers, and is timed
    transform: Transform = field(default_factory=Transform)
    split: SplitMethod = field(default_factory=SplitMethod)
    rounding: Rounding = field(default_factory=Rounding)
    training: Training = field(default_factory=Training)  # makes another checkpoint of the model before
    runtime: Runtime = field(default_factory=TorchOnly)  # also answers and is timed, unless it is TorchOnly

    def __post_init__(self) -> None:
        one_of("engine", self.engine, ENGINES)

    @property
    def trained(self) -> ModelSpec:
        """The model that is quantized: what the training makes of ``model``, or that itself."""
        return trained(self.model, self.training, self)


def plain_config(config: TrialConfig) -> dict[str, Any]:
    """Returns the trial's settings as plain data, without the fields of subclasses."""
    return {field.name: plain_data(getattr(config, field.name)) for field in fields(TrialConfig)}


def check_trial(config: TrialConfig, memo: Memo) -> list[Site]:
    """Checks that the trial can run. Returns its sites. Reads files; loads no weight.

    Raises ValueError or OSError if a name, glob, group count, device or folder of the config is wrong, or if
    checkpoint, tokenizer and rows do not fit each other. A training is checked, and not begun.
    """
    config.runtime.check()
    if config.evaluation.max_drop is not None:
        require_decidable(config.task.metrics[0], config.evaluation.max_drop)
        if isinstance(config.runtime, FileRuntime):
            config.evaluation.require_all_rows(f"runtime={config.runtime.package}")
    checkpoint = resolve_checkpoint(config.model, config.task, memo)
    skeleton, shared = checkpoint.skeleton, (config.model, config.task, config.evaluation)
    train = select_rows(*shared, memo).train
    for rows in (
        config.calibration.rows(train).encode(checkpoint.processor, config.task.max_length),
        encoded_rows(*shared, memo),
    ):
        if isinstance(rows, Tokenized):
            check_token_types(rows, skeleton, checkpoint.folder)
            one_more = config.task.head == TOKENS  # a decoder's next token is timed, too
            config.profile.check_length(token_limit(skeleton) - one_more)
    sites = config.placement.select(all_sites(skeleton), family_of(skeleton).unreachable)
    config.training.check(skeleton, all_sites(skeleton))
    config.training.check_slots(config.calibration, config.split, config.rounding)
    config.method.check(sites)
    config.transform.check(sites)
    specs = {site.name: config.method.site_spec(site, config.bits) for site in sites}
    config.split.check(sites, {name: spec.grid if spec else None for name, spec in specs.items()})
    modules = weighted_modules(skeleton)
    config.bits.check_rules([*(site.name for site in sites), *modules, *tied_weights(skeleton)])
    config.bits.check_kinds(list(modules.values()))
    config.bits.with_tied(tied_weights(skeleton)).check_groups(modules)
    check_weight_ranges(config.bits, config.calibration)
    return sites
