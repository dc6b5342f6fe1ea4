"""Formal error propagation: what a network's derivative predicts of each source's error at the logits.

A source's local error ``e = Q(x) - x`` is taken on unquantized input. Forward-mode differentiation carries
it to the logits, ``J e``. That is the recursion over layers, ``d' = (I + J_F J_N) d + e`` in a pre-norm
network and ``d' = J_N ((I + J_F) d + e)`` in a post-norm one, with all Jacobians exact. The measured error
beside it is of the network with that source alone quantized.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from quantlab.analysis.tangents import OneBatch, Source, Watched, power
from quantlab.cli.progress import progress
from quantlab.network.attention import TensorFunction
from quantlab.network.taps import Tap
from quantlab.tasks.batching import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FRACTIONS = (1 / 2, 1 / 8)  # of its error, at which a source is measured again where the prediction fails
FACTOR = 2.0  # a prediction that is off by more fails
FLOOR = 1e-5  # of the logits: errors below it are FP32's own rounding, whose ratio says nothing


@dataclass
class Sums:
    """Sums of squares over all elements, of one source or of all together."""

    local: float = 0.0  # of e
    signal: float = 0.0  # of x, at the source
    predicted: float = 0.0  # of J e at the logits
    measured: float = 0.0
    inner: float = 0.0  # predicted times measured
    at: dict[str, float] = field(default_factory=dict)  # of the predicted error, by watched site
    smaller: dict[float, float] = field(default_factory=dict)  # measured at a fraction of the error

    @property
    def ratio(self) -> float:
        """Measured over predicted, root mean squares; NaN without either, infinite without a prediction."""
        if self.predicted == 0:
            return np.inf if self.measured else np.nan
        return float(np.sqrt(self.measured / self.predicted))

    @property
    def cosine(self) -> float:
        """Between the measured and the predicted error; NaN without either."""
        length = np.sqrt(self.measured * self.predicted)
        return float(self.inner / length) if length else np.nan

    def ratio_at(self, fraction: float) -> float:
        """:attr:`ratio` at this fraction of the error; NaN where it is not measured."""
        power = self.smaller.get(fraction, np.nan)
        return float(np.sqrt(power / self.predicted)) / fraction if self.predicted else np.nan


@dataclass(kw_only=True)
class Propagated:
    """What one pass over all sources found."""

    sources: dict[str, Sums]
    together: Sums  # predicted: the sum of all J e; measured: all sources quantized
    answers: float = 0.0  # the sum of squares of the logits themselves
    elements: int = 0  # logits
    signal: dict[str, float] = field(default_factory=dict)  # of the watched tensors, by site
    measured_at: dict[str, float] = field(default_factory=dict)  # their error with all sources quantized

    @property
    def superposition(self) -> float:
        """|d|² / sum |J e|²: near 1 if errors are independent, above if they are coherent."""
        alone = sum(one.predicted for one in self.sources.values())
        return self.together.measured / alone if alone else np.nan

    def fails(self, sums: Sums) -> bool:
        """Whether the prediction is off by more than a factor of 2, and more than rounding."""
        seen = max(sums.measured, sums.predicted) > FLOOR**2 * self.answers
        return seen and not 1 / FACTOR <= sums.ratio <= FACTOR


@torch.no_grad()
def propagate(
    model: PreTrainedModel, sources: Sequence[Source], watched: Watched, batches: Sequence[Batch]
) -> Propagated:
    """Predicts and measures the errors of all sources, one batch after the other.

    Each source takes a pass with tangents and one without, from the first layer that it changes. Sources
    whose prediction fails are measured again at smaller errors (:data:`FRACTIONS`). Logits are kept for one
    batch only.
    """
    found = Propagated(sources={source.name: Sums() for source in sources}, together=Sums())
    every = {tap: snap for source in sources for tap, snap in source.snaps.items()}
    skips = any(source.layer is not None for source in sources)
    for number, batch in enumerate(batches):
        with OneBatch(model, batch, watched, every, skips) as network:
            title = (
                f"propagating {len(sources)} errors, batch {number + 1} of {len(batches)}, two passes each"
            )
            total = _alone(network, progress(sources, title), found)
            _together(network, every, total, found)
    failing = [source for source in sources if found.fails(found.sources[source.name])]
    if failing:
        for batch in batches:
            with OneBatch(model, batch, {}, every, skips) as network:
                _at_fractions(network, progress(failing, "errors without a linear prediction"), found)
    return found


def _alone(network: OneBatch, sources: Iterable[Source], found: Propagated) -> Tensor:
    """Adds what a batch says of every source; returns the sum of their predictions."""
    total = torch.zeros_like(network.base)
    for source in sources:
        sums = found.sources[source.name]
        tangent = network.tangent(source)
        sums.local += tangent.local
        sums.signal += tangent.signal
        for name, power_there in tangent.at.items():
            sums.at[name] = sums.at.get(name, 0.0) + power_there
        _add(sums, tangent.logits, network.run(source.snaps, source.layer) - network.base)
        total += tangent.logits
    return total


def _together(
    network: OneBatch, every: Mapping[Tap, TensorFunction], total: Tensor, found: Propagated
) -> None:
    states: dict[str, Tensor] = {}
    _add(found.together, total, network.run(every, None, states=states) - network.base)
    found.answers += power(network.base)
    found.elements += network.base.numel()
    for name, state in states.items():
        base = network.states[name]
        found.signal[name] = found.signal.get(name, 0.0) + power(base)
        found.measured_at[name] = found.measured_at.get(name, 0.0) + power(state - base)


def _at_fractions(network: OneBatch, sources: Iterable[Source], found: Propagated) -> None:
    for source in sources:
        smaller = found.sources[source.name].smaller
        for fraction in FRACTIONS:
            measured = network.run(source.snaps, source.layer, fraction) - network.base
            smaller[fraction] = smaller.get(fraction, 0.0) + power(measured)


def _add(sums: Sums, predicted: Tensor, measured: Tensor) -> None:
    sums.predicted += power(predicted)
    sums.measured += power(measured)
    sums.inner += float((predicted * measured).sum(dtype=torch.float64))
