"""What one alternative of transform, split and rounding makes of a model: weights, bases and quantizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from quantlab.engines.insert import InsertActivations, insert_weights
from quantlab.methods.method import plan_site
from quantlab.network.sites import Site
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import ActivationQuant
from quantlab.quant.sketch import Sketch
from quantlab.rounding.rounding import Rounding
from quantlab.searching.first_order import ActivationTable
from quantlab.searching.search_config import SearchConfig, bits_of
from quantlab.searching.space import Space, activation_table
from quantlab.splits.split import SplitMethod, is_narrow
from quantlab.transforms.transform import Transform
from quantlab.trial.material import Material
from quantlab.trial.planning import plan_of_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedSlots:
    """The weights' plan of one alternative, and the quantizers that its candidates choose from."""

    base: QuantPlan  # without activations
    table: ActivationTable
    fixed: dict[str, ActivationQuant]  # of sites that the search does not decide, by name

    @classmethod
    def of(
        cls,
        config: SearchConfig,
        material: Material,
        sites: Sequence[Site],
        space: Space,
        fp32: Mapping[str, Sketch],
    ) -> PreparedSlots:
        """Plans the slots of ``config``. Where they look at the grids of activations, decided sites are at
        their narrowest. ``fp32`` are the sketches of the FP32 network."""
        method, bits, calibration = config.method, config.bits, config.calibration
        settings = replace(config, method=space.method(method, space.narrow))
        base, sketches, splits = plan_of_weights(settings, material, sites, fp32)
        specs = {site: method.site_spec(site, bits) for site in space.fixed}
        fixed = {
            s.name: plan_site(s, spec, sketches[s.name], calibration, splits.get(s.name))
            for s, spec in specs.items()
            if spec
        }
        table = activation_table(space, method, bits, sketches, calibration, splits)
        return cls(base=base, table=table, fixed=fixed)


def are_plain(config: SearchConfig) -> bool:
    """Whether no slot looks at the grids of activations, so that weights are the same for all candidates."""
    slots = type(config.transform), type(config.split), type(config.rounding)
    return slots == (Transform, SplitMethod, Rounding)


def check_slots(config: SearchConfig, sites: Sequence[Site], space: Space) -> None:
    """Raises ValueError where the transform or the split of ``config`` cannot do its work, whatever the
    search chooses. Reads no weights."""
    config.transform.check(sites)
    split = config.split
    if type(split) is SplitMethod:
        return
    if split.fits_grids:
        raise ValueError(
            f"{type(split).__name__} fits the split of a site to its bits, which the search decides: take "
            "split=llm_int8 or split=top_channels"
        )
    for choice in space.choices:
        method = space.method(config.method, space.all(choice))
        specs = {site.name: method.site_spec(site, config.bits) for site in sites}
        grids = {name: spec.grid if spec else None for name, spec in specs.items()}
        if not all(is_narrow(grids[site.name]) for site in space.sites):
            raise ValueError(
                f"{type(split).__name__} keeps columns wide beside integers, but search.choices has "
                f"{choice}: take int{bits_of(choice)} instead"
            )
        split.check(sites, grids)


@dataclass(eq=False)
class WeightsInTurn(AbstractContextManager["WeightsInTurn"]):
    """Keeps the weights of one plan at a time in a model; the model's own are back at the exit."""

    model: PreTrainedModel
    engine: str
    _held: ExitStack = field(default_factory=ExitStack)
    _plan: QuantPlan | None = None
    _activate: InsertActivations | None = None

    def of(self, plan: QuantPlan) -> InsertActivations:
        """Puts the plan's weights into the model, unless they are there; returns what inserts
        activations."""
        if self._plan is not plan or self._activate is None:
            self.release()
            with torch.inference_mode(False):
                self._activate = self._held.enter_context(insert_weights(self.model, plan, self.engine))
            self._plan = plan
        return self._activate

    def release(self) -> None:
        """Puts the model's own weights back."""
        self._plan = None
        self._held.close()

    def __exit__(self, *_: object) -> None:
        self.release()
