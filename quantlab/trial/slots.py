"""The settings that decide a plan."""

from dataclasses import dataclass
from typing import Protocol

from quantlab.calibration.estimators import Calibration
from quantlab.methods.bits import Bits
from quantlab.methods.method import Method
from quantlab.network.sites import Placement
from quantlab.rounding.rounding import Rounding
from quantlab.splits.split import SplitMethod
from quantlab.transforms.transform import Transform


class PlanSettings(Protocol):
    """The settings that decide a plan. A trial's config has them."""

    @property
    def method(self) -> Method: ...
    @property
    def bits(self) -> Bits: ...
    @property
    def calibration(self) -> Calibration: ...
    @property
    def transform(self) -> Transform: ...
    @property
    def split(self) -> SplitMethod: ...
    @property
    def rounding(self) -> Rounding: ...


class SlotSettings(PlanSettings, Protocol):
    """All of them: with the sites that are quantized."""

    @property
    def placement(self) -> Placement: ...


@dataclass(frozen=True, kw_only=True)
class Slots:
    """These settings alone."""

    placement: Placement
    calibration: Calibration
    bits: Bits
    method: Method
    transform: Transform
    split: SplitMethod
    rounding: Rounding
