"""What transforms share: the sites that they may take, and how well the Linears that read one do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from quantlab.calibration.probe import Probe
from quantlab.config.checks import freeze, one_of, whole
from quantlab.machine.parallel import side_by_side
from quantlab.network.sites import Site, matching_sites
from quantlab.plan.plan import SiteTransform
from quantlab.quant.basis import Basis, Diagonal
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.quant.sketch import Sketch
from quantlab.transforms.transform import Transform

Function = Callable[[Tensor], Tensor]
Quantize = Callable[[Basis], Function]  # makes the function that quantizes a site's tensor in a basis


@dataclass(frozen=True, kw_only=True)
class OperandTransform(Transform):
    """A basis for each site that the globs in ``sites`` match and that a Linear reads.

    A weight that multiplies another tensor too, because another module shares it or its Linear runs several
    times, has no basis of its own: the sites that its Linear reads are left out.
    With ``norm_outputs`` sites that no norm makes are left out too, as in most papers.
    """

    sites: tuple[str, ...] = ("*",)
    norm_outputs: bool = False

    def __post_init__(self) -> None:
        freeze(self)
        one_of("transform.norm_outputs", self.norm_outputs, (True, False))

    def check(self, sites: Sequence[Site]) -> None:
        matching_sites(self.sites, sites, "transform.sites")

    def bases(self, probe: Probe) -> tuple[SiteTransform, ...]:
        """Raises ValueError for a glob that matches only sites that no weight reads."""
        able = [site for site in probe.sites if self.takes(probe, site)]
        names = [site.name for site in able]
        for pattern in self.sites:
            asked = matching_sites([pattern], probe.sites, "transform.sites")
            if not asked & set(names):
                raise ValueError(f"transform.sites: {self.refusal(pattern, sorted(asked))}")
        chosen = [site for site in able if site.matches(self.sites)]
        found = side_by_side(self.maker(probe, chosen), chosen, probe.model.device)
        return tuple(
            SiteTransform(site=site.name, basis=basis, weights=weight_names(probe, site))
            for site, basis in zip(chosen, found, strict=True)
            if basis is not None
        )

    def takes(self, probe: Probe, site: Site) -> bool:
        """Whether the site can have a basis: Linears read it, whose weights multiply nothing else, and a norm
        makes it where one must."""
        names = weight_names(probe, site)
        made = not self.norm_outputs or site.name in probe.norms
        return made and bool(names) and not probe.without_basis & set(names)

    def refusal(self, pattern: str, sites: Sequence[str]) -> str:
        """Why a glob that matches these sites has nothing to do."""
        norm = "no norm makes, or " if self.norm_outputs else ""
        return f"{norm}no weight of its own reads what {pattern!r} matches ({', '.join(sites[:3])})"

    @abstractmethod
    def maker(self, probe: Probe, sites: Sequence[Site]) -> Callable[[Site], Basis | None]:
        """The function that makes the basis of each of these sites; None where a site keeps its own."""


@dataclass(frozen=True, kw_only=True)
class FormulaTransform(OperandTransform):
    """Bases by a formula of what the probe knows."""

    def maker(self, probe: Probe, sites: Sequence[Site]) -> Callable[[Site], Basis | None]:
        return partial(self.basis, probe)

    @abstractmethod
    def basis(self, probe: Probe, site: Site) -> Basis | None:
        """The site's basis; None where it keeps its own."""


@dataclass(frozen=True, kw_only=True)
class SampledTransform(OperandTransform):
    """Bases that are chosen by trial on at most ``rows`` of the site's rows in calibration, drawn by
    ``seed``."""

    rows: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("transform.rows", self.rows, 1)
        whole("transform.seed", self.seed, 0)

    def maker(self, probe: Probe, sites: Sequence[Site]) -> Callable[[Site], Basis | None]:
        rows = probe.rows(sites, self.rows, self.seed)
        return lambda site: self.basis(probe, site, rows[site.name])

    @abstractmethod
    def basis(self, probe: Probe, site: Site, rows: Tensor) -> Basis | None:
        """The site's basis, from a sample of its rows (rows, channels); None where it keeps its own."""


def weight_names(probe: Probe, site: Site) -> tuple[str, ...]:
    """The parameters that read a site."""
    return tuple(f"{path}.weight" for path in probe.readers.get(site.name, ()))


@dataclass(frozen=True, kw_only=True, eq=False)
class Readers:
    """The weights (outputs, channels) that read one site.

    ``snaps`` are the functions that quantize them, ``biased`` says which of their Linears have a bias.
    """

    weights: Sequence[Tensor]
    snaps: Sequence[Function]
    biased: Sequence[bool]

    @classmethod
    def of(cls, probe: Probe, site: Site) -> Readers:
        """The readers of a site, each quantized as the trial quantizes it."""
        linears = [probe.model.get_submodule(path) for path in probe.readers[site.name]]
        return cls(
            weights=probe.weights(site.name),
            snaps=[partial(_snapped, probe, name) for name in weight_names(probe, site)],
            biased=[linear.bias is not None for linear in linears],
        )

    @property
    def largest(self) -> Tensor:
        """The largest magnitude of the weights that read each channel, (channels,), on the CPU as sketches
        are."""
        return torch.stack([weight.abs().amax(0) for weight in self.weights]).amax(0).cpu()

    def outputs(self, rows: Tensor) -> Tensor:
        """What the Linears make of rows (rows, channels), without bias: (rows, all outputs)."""
        return rows @ torch.cat(list(self.weights)).T

    def quantized(self, basis: Basis) -> list[Tensor]:
        """The weights, quantized in a basis."""
        pairs = zip(self.weights, self.snaps, strict=True)
        return [basis.weight_back(snap(basis.weight(weight))) for weight, snap in pairs]

    def quantized_outputs(self, rows: Tensor, quantized: Sequence[Tensor], shift: Tensor | None) -> Tensor:
        """:meth:`outputs` with quantized weights; a shift z passes the FP32 weights where there is a bias."""
        outputs = rows @ torch.cat(list(quantized)).T
        if shift is None:
            return outputs
        gains = [
            (weight - other) @ shift * biased
            for weight, other, biased in zip(self.weights, quantized, self.biased, strict=True)
        ]
        return outputs + torch.cat(gains)


@dataclass(frozen=True, eq=False)
class OutputError:
    """The mean squared error of the readers' outputs over ``rows`` (rows, channels), quantized in a basis.

    Without ``quantize`` the rows stay in FP32.
    """

    rows: Tensor
    readers: Readers
    quantize: Quantize | None = None

    @cached_property
    def original(self) -> Tensor:
        """The outputs in FP32."""
        return self.readers.outputs(self.rows)

    def __call__(self, basis: Basis) -> float:
        """The error in this basis."""
        seen = self.rows
        if self.quantize is not None:
            seen = basis.back(self.quantize(basis)(basis.forward(self.rows)))
        shift = None if basis.shift is None else basis.shift.tensor.to(self.rows)
        outputs = self.readers.quantized_outputs(seen, self.readers.quantized(basis), shift)
        return float((outputs - self.original).square().mean())


def site_quantizer(probe: Probe, site: Site, rows: Tensor, basis: Basis) -> Function:
    """The function that quantizes a site's tensor in a basis, as the trial does.

    Its range is that of the rows, and of each channel's extremes in calibration.
    """
    sketch, seen = probe.sketches[site.name], Sketch(channels=site.channels)
    seen.update(basis.forward(torch.cat([rows, sketch.min[None].to(rows), sketch.max[None].to(rows)])))
    item = probe.plan_site(site, seen)
    return item.function(rows.device) if item else torch.clone


def identity(channels: int) -> Diagonal:
    """The basis that changes nothing."""
    return Diagonal(FrozenTensor(torch.ones(channels)))


def _snapped(probe: Probe, name: str, value: Tensor) -> Tensor:
    return probe.weight_planners[name](value).snap(value) if name in probe.weight_planners else value
