"""What trainings against outliers share: the matrices and the sites of a network, and sites' statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quantlab.network.architecture import family_of
from quantlab.network.sites import Site, matching
from quantlab.network.taps import tapped

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Statistic = Callable[[Tensor], Tensor]  # of elements (elements, channels) in FP32: a number


def chosen_sites(
    model: PreTrainedModel, sites: Sequence[Site], globs: Sequence[str] | None, usual: Sequence[str]
) -> list[Site]:
    """The sites that a penalty looks at, where they are made.

    ``globs`` None: those of the ``usual`` globs that this network has. Raises ValueError for a glob that
    matches nothing, with the nearest names, and for a network that has none of the usual sites.
    """
    made = [site for site in sites if site.made_at is not None]
    if globs is not None:
        picked = matching(globs, [site.name for site in made], "training.sites", family_of(model).unreachable)
        return [site for site in made if site.name in picked]
    chosen = [site for site in made if site.matches(usual)]
    if not chosen:
        raise ValueError(
            f"training.sites: the network has none of {', '.join(usual)}; name its own "
            "(quantlab list sites shows them)"
        )
    return chosen


def matrices(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of the Linears (GPT-2's ``Conv1D`` among them), by name, without those of embeddings."""
    from transformers.pytorch_utils import Conv1D

    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {
        f"{path}.weight": module.weight
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) not in embedded
    }


@contextmanager
def mean_over_sites(
    model: PreTrainedModel, sites: Sequence[Site], statistic: Statistic
) -> Iterator[Callable[[], Tensor]]:
    """Yields a function that returns the mean over the sites of a statistic in the last forward pass.

    The statistic gets a site's valid elements, padding out, in FP32 (float64 stays), and is differentiable.
    It is given out once, so that no graph outlives its step. Forward passes without gradients, as in an
    evaluation, are not looked at. The function raises RuntimeError where no pass has been.
    """
    masks: list[Tensor | None] = [None]
    seen: dict[str, Tensor] = {}

    def begin(_: nn.Module, __: tuple[Any, ...], named: dict[str, Any]) -> None:
        mask = named.get("attention_mask")
        masks[0] = None if mask is None else mask.bool()
        seen.clear()

    def look(site: Site, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            seen[site.name] = statistic(wide(site.tap.elements(x, masks[0])))
        return x

    def mean() -> Tensor:
        if not seen:
            raise RuntimeError("the penalty is of a forward pass with gradients: there has been none since")
        values = torch.stack(list(seen.values()))
        seen.clear()
        return values.mean()

    handle = model.register_forward_pre_hook(begin, with_kwargs=True)
    try:
        with tapped(model, {site.tap: partial(look, site) for site in sites}):
            yield mean
    finally:
        handle.remove()


def wide(x: Tensor) -> Tensor:
    """The tensor in FP32 or, if it is so, in float64: fourth powers overflow half precision."""
    return x if x.dtype == torch.float64 else x.float()
