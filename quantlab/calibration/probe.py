"""The probe: what the slots may ask about a network, and the pass that sketches its sites."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quantlab.calibration.gather import gather
from quantlab.calibration.moments import Drawn, draw
from quantlab.cli.progress import progress
from quantlab.machine.parallel import side_by_side
from quantlab.network.readers import norms_of, readers, run_often
from quantlab.network.sites import Site
from quantlab.network.taps import tapped
from quantlab.plan.quantizers import ActivationQuant, WeightQuant
from quantlab.quant.basis import Basis
from quantlab.quant.sketch import Sketch
from quantlab.quant.split import Split
from quantlab.tasks.batching import Batch, on_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Requantize = Callable[[Site, Sketch], Callable[[Tensor], Tensor] | None]
View = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """What a slot may ask about the network: its sites, the weights that read them, what calibration saw."""

    model: PreTrainedModel  # in FP32
    sites: Sequence[Site]  # those that the placement selects
    batches: Sequence[Batch]  # of the rows that calibrate
    count_padding: bool
    sketches: Mapping[str, Sketch]  # of every site, in the FP32 network
    weight_planners: Mapping[str, Callable[[Tensor], WeightQuant]]  # by weight: the quantizer of a value
    plan_site: Callable[[Site, Sketch], ActivationQuant | None]  # the quantizer that a site gets; None: FP32

    @cached_property
    def readers(self) -> dict[str, tuple[str, ...]]:
        """The Linears that read each selected site's tensor, by the site's name, in the network's order."""
        found: dict[str, list[str]] = {}
        for path, site in readers(self.model, self.sites).items():
            found.setdefault(site, []).append(path)
        return {site: tuple(paths) for site, paths in found.items()}

    def weights(self, site: str) -> list[Tensor]:
        """The weights (outputs, channels) of the Linears that read a site."""
        return [self.model.get_parameter(f"{path}.weight").data for path in self.readers[site]]

    def rows(self, sites: Sequence[Site], most: int, seed: int = 0) -> dict[str, Tensor]:
        """A sample of each site's rows in the FP32 network, at most ``most``, (rows, channels), by its name.

        Raises ValueError for a site that calibration never reaches.
        """

        def make(elements: Tensor, number: int) -> Drawn:
            return draw(most, seed, number, elements)

        drawn = gather(self.model, sites, self.batches, make, self.count_padding)
        if missing := [site.name for site in sites if site.name not in drawn]:
            raise ValueError(f"site {missing[0]} was never seen in calibration")
        return {name: sample.tensors[0].clone() for name, sample in drawn.items()}

    @cached_property
    def norms(self) -> dict[str, str]:
        """The path of the norm that makes each selected site's tensor, by the site's name."""
        return norms_of(self.model, self.sites)

    @cached_property
    def without_basis(self) -> frozenset[str]:
        """The weights that multiply other tensors than one site's: tied ones, and those of Linears that run
        several times."""
        return self.tied | {f"{path}.weight" for path in run_often(self.model)}

    @cached_property
    def tied(self) -> frozenset[str]:
        """The weights that several modules share, by each of their names."""
        names = [name for name, _ in self.model.named_parameters(remove_duplicate=False)]
        shared = Counter(id(self.model.get_parameter(name)) for name in names)
        return frozenset(name for name in names if shared[id(self.model.get_parameter(name))] > 1)


def narrow_view(basis: Basis | None, split: Split | None) -> View:
    """What a site's narrow grid sees of its elements: in its basis, without what a split keeps wide."""

    def view(x: Tensor) -> Tensor:
        based = x if basis is None else basis.forward(x)
        return based if split is None else split.narrow(based)

    return view


def observe(
    model: PreTrainedModel,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    count_padding: bool = False,
    requantize: Requantize | None = None,
    views: Mapping[str, View] | None = None,
    tokens: bool = False,
) -> dict[str, Sketch]:
    """Runs the batches through the model and returns a sketch of every site, by the site's name.

    Batches run side by side in threads. Each batch has its own sketches, merged in the batches' order, so the
    result is the same to the bit for any number of threads.

    ``requantize(site, sketch so far)`` returns the function that the site's tensor then passes through, or
    None. So later sites see earlier ones quantized, as in Bondarenko's code; batches then run one by one.
    ``views`` are functions of a site's elements (elements, channels), whose result is sketched instead.
    ``tokens``: sketches keep the extremes of tokens too. Raises ValueError that names the site on NaN and
    infinity.
    """
    views = views or {}
    sketches = {site.name: Sketch(channels=site.channels, tokens=tokens) for site in sites}
    running = threading.local()  # of the batch that this thread runs: its padding mask and its sketches

    def look(site: Site, x: Tensor) -> Tensor:
        sketch = running.seen.setdefault(site.name, Sketch(channels=site.channels, tokens=tokens))
        try:
            elements = site.tap.elements(x, None if count_padding else running.mask)
            sketch.update(views[site.name](elements) if site.name in views else elements)
        except ValueError as error:
            raise ValueError(f"calibration, site {site.name}: {error}") from None
        function = requantize(site, sketch) if requantize else None
        return function(x) if function else x

    @torch.inference_mode()
    def run(batch: Batch) -> dict[str, Sketch]:
        inputs = on_device(batch, model.device)
        mask = inputs.get("attention_mask")
        running.mask = None if mask is None else mask.bool()
        running.seen = sketches if requantize else {}
        model(**inputs)
        seen: dict[str, Sketch] = running.seen
        return seen

    functions = {site.tap: partial(look, site) for site in sites}
    passes = side_by_side(run, batches, model.device, most=1 if requantize else None)
    with tapped(model, functions), closing(passes):
        for _ in progress(batches, "calibrating"):
            seen = next(passes)
            if seen is not sketches:
                sketches |= {name: sketches[name].merge(sketch) for name, sketch in seen.items()}
    return sketches
