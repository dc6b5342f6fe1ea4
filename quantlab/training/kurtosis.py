"""Kurtosis regularization: fine-tunes on penalties for heavy tails of weights and of activations.

Of weights: Shkolnik et al. 2020, arXiv 2002.07686 (KURE). Of activations: Nrusimha et al. 2024, arXiv
2404.03605.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quantlab.config.checks import at_least, freeze
from quantlab.network.sites import Site
from quantlab.plan.plan import QuantPlan
from quantlab.training.penalties import chosen_sites, matrices, mean_over_sites, wide
from quantlab.training.training import Course, Plain

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYER_OUTPUTS = ("*.attn.out", "*.ffn.out", "*.layer.out")
SMALLEST = 1e-10  # a standard deviation: elements closer to one another are equal


@dataclass(frozen=True, kw_only=True)
class Kurtosis(Plain):
    """Adds to the task's loss ``of_weights`` times the mean over the Linears' matrices W of
    ``(Kurt(W) - target)^2``, and ``of_activations`` times the mean over sites of Kurt(x).

    Kurtosis is Pearson's, m4 / m2², 3 for a Gaussian and 1.8 for a uniform distribution; of a site it is that
    of all the batch's valid elements. A weight of 0 leaves its penalty out. ``sites`` None: what attention,
    the feed-forward and the layers put out. A matrix that an embedding shares is left out.
    """

    of_weights: float
    of_activations: float
    target: float
    sites: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        freeze(self)
        at_least("training.of_weights", self.of_weights, 0)
        at_least("training.of_activations", self.of_activations, 0)
        at_least("training.target", self.target, 1)  # no distribution has less

    def check(self, skeleton: PreTrainedModel, sites: Sequence[Site]) -> None:
        chosen_sites(skeleton, sites, self.sites, LAYER_OUTPUTS)

    @contextmanager
    def course(self, model: PreTrainedModel, sites: Sequence[Site], plan: QuantPlan) -> Iterator[Course]:
        terms: list[Callable[[], Tensor]] = []
        with ExitStack() as stack:
            if self.of_weights:
                terms.append(lambda: self.of_weights * weight_penalty(model, self.target))
            if self.of_activations:
                chosen = chosen_sites(model, sites, self.sites, LAYER_OUTPUTS)
                mean = stack.enter_context(mean_over_sites(model, chosen, kurtosis))
                terms.append(lambda: self.of_activations * mean())
            yield Course(penalty=(lambda: torch.stack([term() for term in terms]).sum()) if terms else None)


def weight_penalty(model: PreTrainedModel, target: float) -> Tensor:
    """The mean over the Linears' matrices of ``(Kurt(W) - target)^2``, differentiable."""
    far = [kurtosis(wide(matrix)) - target for matrix in matrices(model).values()]
    return torch.stack(far).square().mean()


def kurtosis(x: Tensor) -> Tensor:
    """Pearson's kurtosis of all elements, differentiable.

    The variance has a floor at the precision of the mean: where all elements are equal, the kurtosis is less
    than 1, which no distribution has, and gradients are finite.
    """
    mean = x.mean()
    away = x - mean
    floor = SMALLEST**2 + (torch.finfo(x.dtype).eps * mean.detach()).square()
    return (away / (away.square().mean() + floor).sqrt()).pow(4).mean()
