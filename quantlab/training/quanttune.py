"""QuantTune: fine-tunes on a penalty for the distance of each tensor's largest value from all others.

Of arXiv 2403.06497 only the abstract is public: it says that the loss is on the deviation of outlier
activations. The loss here is quantlab's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quantlab.config.checks import at_least, freeze, part
from quantlab.network.sites import Site
from quantlab.plan.plan import QuantPlan
from quantlab.training.penalties import chosen_sites, mean_over_sites
from quantlab.training.training import Course, Plain

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OUTLIER_SITES = ("*.ffn.mid", "*.ffn.out", "*.ffn.sum", "*.layer.out")


@dataclass(frozen=True, kw_only=True)
class QuantTune(Plain):
    """Adds ``weight`` times the mean over sites of ``(max|x| - q)_+ / q`` to the task's loss.

    q is the ``quantile`` of |x| over the batch's valid elements of a site, taken as a constant: gradients go
    to the largest element alone. ``sites`` None: the feed-forward's and the layers' outputs, where outliers
    are known to be.
    """

    weight: float
    quantile: float
    sites: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        freeze(self)
        at_least("training.weight", self.weight, 0)
        part("training.quantile", self.quantile)

    def check(self, skeleton: PreTrainedModel, sites: Sequence[Site]) -> None:
        chosen_sites(skeleton, sites, self.sites, OUTLIER_SITES)

    @contextmanager
    def course(self, model: PreTrainedModel, sites: Sequence[Site], plan: QuantPlan) -> Iterator[Course]:
        if not self.weight:
            yield Course()
            return
        chosen = chosen_sites(model, sites, self.sites, OUTLIER_SITES)
        with mean_over_sites(model, chosen, lambda x: deviation(x, self.quantile)) as mean:
            yield Course(penalty=lambda: self.weight * mean())


def deviation(x: Tensor, quantile: float) -> Tensor:
    """``(max|x| - q)_+ / q`` of all elements, q being a constant: their quantile of |x|, as numpy's.

    It is zero where q is zero beside the largest magnitude: such a tensor has no scale of its own.
    """
    flat = x.flatten()
    below = quantile * (len(flat) - 1)  # elements below the quantile, with a fraction
    first = math.floor(below)
    tail, places = flat.detach().abs().topk(len(flat) - first)
    lower, upper = tail[-1], tail[max(len(tail) - 2, 0)]
    q = lower + (below - first) * (upper - lower)
    if not q > torch.finfo(q.dtype).eps * tail[0]:
        return flat.new_zeros(())
    return torch.relu(flat[places[0]].abs() - q) / q
