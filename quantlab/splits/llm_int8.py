"""LLM.int8: columns with outliers are multiplied in FP16 (Dettmers et al. 2022, arXiv 2208.07339)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from quantlab.calibration.probe import Probe
from quantlab.config.checks import above, freeze, one_of
from quantlab.quant.sketch import Sketch
from quantlab.quant.split import Columns, Split, Threshold
from quantlab.quant.splits import channels_beyond
from quantlab.splits.split import OperandSplit


@dataclass(frozen=True, kw_only=True)
class LlmInt8(OperandSplit):
    """Columns with a magnitude of ``threshold`` or more are wide: they multiply the FP16 weights.

    ``columns="batch"`` looks at each batch, as the paper does: answers then depend on which rows share a
    batch, padding included. ``"calibration"`` freezes the columns that reached the threshold in calibration.
    An infinite threshold splits nothing.
    """

    threshold: float = 6.0
    columns: str = "batch"

    def __post_init__(self) -> None:
        freeze(self)
        if self.threshold != math.inf:
            above("split.threshold", self.threshold, 0)
        one_of("split.columns", self.columns, ("batch", "calibration"))

    def splits(self, probe: Probe, sketches: Mapping[str, Sketch]) -> dict[str, Split]:
        if math.isinf(self.threshold):
            return {}
        operands = self.operands(probe, sketches)
        if self.columns == "batch":
            return {site: Threshold(threshold=self.threshold) for site in operands}
        chosen = {site: channels_beyond(sketches[site].magnitudes(), self.threshold) for site in operands}
        return {site: Columns(channels=channels) for site, channels in chosen.items() if channels}
