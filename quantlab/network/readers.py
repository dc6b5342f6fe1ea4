"""Which Linears read a site and which norm makes it, found in one pass through the network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quantlab.network.architecture import all_sites
from quantlab.network.sites import Site
from quantlab.network.taps import tapped
from quantlab.network.trace import tiny_inputs
from quantlab.network.widths import is_norm

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.inference_mode()
def readers(model: PreTrainedModel, sites: Iterable[Site] | None = None) -> dict[str, str]:
    """The site whose tensor each Linear reads, by the Linear's path; a Linear that reads none is missing.

    ``sites`` are reached by their own taps; None: all operand sites. A Linear reads a site if it gets the
    very tensor that the site's tap saw, in one forward pass over a tiny input. The model is not on the meta
    device.
    """
    seen: dict[int, tuple[str, Tensor]] = {}  # the tensors are kept, so that no other gets their number
    found: dict[str, str] = {}

    def look(site: str, x: Tensor) -> Tensor:
        seen[id(x)] = (site, x)
        return x

    def reads(path: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and id(inputs[0]) in seen:
            found[path] = seen[id(inputs[0])][0]

    if sites is None:
        taps = {site.read_at: site.name for site in all_sites(model) if site.read_at}
    else:
        taps = {site.tap: site.name for site in sites}
    with tapped(model, {tap: partial(look, name) for tap, name in taps.items()}), ExitStack() as stack:
        for path, module in model.named_modules():
            if isinstance(module, nn.Linear):
                stack.callback(module.register_forward_pre_hook(partial(reads, path)).remove)
        model(**tiny_inputs(model))
    return found


@torch.inference_mode()
def run_often(model: PreTrainedModel) -> frozenset[str]:
    """The paths of the Linears that run several times in a forward pass, each time on another tensor."""
    runs: Counter[str] = Counter()

    def count(path: str, *_: object) -> None:
        runs[path] += 1

    with ExitStack() as stack:
        for path, module in model.named_modules():
            if isinstance(module, nn.Linear):
                stack.callback(module.register_forward_pre_hook(partial(count, path)).remove)
        model(**tiny_inputs(model))
    return frozenset(path for path, times in runs.items() if times > 1)


@torch.inference_mode()
def norms_of(model: PreTrainedModel, sites: Iterable[Site]) -> dict[str, str]:
    """The path of the norm that makes each site's tensor, by the site's name; other sites are missing.

    Found as :func:`readers` are: the site's tap saw the very tensor that the norm made.
    """
    made: dict[int, tuple[str, Tensor]] = {}  # the tensors are kept, so that no other gets their number
    seen: dict[str, Tensor] = {}

    def look(site: str, x: Tensor) -> Tensor:
        seen[site] = x
        return x

    def makes(path: str, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        made[id(output)] = path, output

    with tapped(model, {site.tap: partial(look, site.name) for site in sites}), ExitStack() as stack:
        for path, module in model.named_modules():
            if is_norm(module):
                stack.callback(module.register_forward_hook(partial(makes, path)).remove)
        model(**tiny_inputs(model))
    return {site: made[id(x)][0] for site, x in seen.items() if id(x) in made}
