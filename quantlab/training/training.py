"""What a training is: another checkpoint of the same network, made before anything is quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from quantlab.calibration.estimators import Calibration
from quantlab.network.models import Recipe
from quantlab.network.sites import Site
from quantlab.plan.plan import QuantPlan
from quantlab.rounding.rounding import Rounding
from quantlab.splits.split import SplitMethod

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(kw_only=True, eq=False)
class Course:
    """What a training changes while a model is trained.

    The loop adds ``penalty()`` to the task's loss after each forward pass, trains ``groups`` (of AdamW,
    besides the network's parameters, without decay) and calls ``after_step()`` after each step. ``forward``
    runs the model on a batch; None: the model itself does. ``plan()`` is what the checkpoint is to be
    quantized by; None: whatever a trial asks for.
    """

    forward: Callable[..., Any] | None = None
    penalty: Callable[[], Tensor] | None = None
    groups: Sequence[dict[str, object]] = field(default=())
    after_step: Callable[[], None] | None = None
    plan: Callable[[], QuantPlan] | None = None


@dataclass(frozen=True, kw_only=True)
class Training:
    """No training: the checkpoint stays as it is. Subclasses train it further: one file and one YAML each."""

    trains: ClassVar[bool] = False
    simulates: ClassVar[bool] = False  # whether it trains through the trial's own quantization

    def check(self, skeleton: PreTrainedModel, sites: Sequence[Site]) -> None:
        """Raises ValueError if this network, with all these sites, cannot be trained so. Reads no weights."""

    def check_slots(self, calibration: Calibration, split: SplitMethod, rounding: Rounding) -> None:
        """Raises ValueError if it cannot train through a quantization with these choices."""


@dataclass(frozen=True, kw_only=True)
class Plain(Training):
    """Trains on the task's loss alone: what every other training is compared with, step for step.

    Subclasses change the model at the start (:meth:`start`), or the course of the training.
    """

    recipe: Recipe

    trains: ClassVar[bool] = True

    def start(self, model: PreTrainedModel) -> None:
        """Changes the model before its training begins."""

    @contextmanager
    def course(self, model: PreTrainedModel, sites: Sequence[Site], plan: QuantPlan) -> Iterator[Course]:
        """What changes while the model is trained; ``plan`` is the trial's own where it simulates."""
        yield Course()
