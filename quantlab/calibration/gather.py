"""One pass over batches that keeps of each site what is asked, without padding."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from quantlab.calibration.prefix import Sum
from quantlab.cli.progress import progress
from quantlab.machine.parallel import side_by_side
from quantlab.network.sites import Site
from quantlab.network.taps import tapped
from quantlab.tasks.batching import Batch, on_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel


S = TypeVar("S", bound=Sum)


def gather(
    model: PreTrainedModel,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    make: Callable[[Tensor, int], S],
    count_padding: bool = False,
) -> dict[str, S]:
    """Runs the batches through the model as it is. Returns what ``make`` kept of each site, by its name.

    ``make(elements, number)`` gets a site's elements (elements, channels) of the batch of that number.
    Batches run side by side and their parts are added up in order, so the result is the same to the bit for
    any number of threads. A site that no batch reaches is missing.
    """
    running = threading.local()  # of the batch that this thread runs: its number, its padding mask, its parts

    def look(site: Site, x: Tensor) -> Tensor:
        part = make(site.tap.elements(x, None if count_padding else running.mask), running.number)
        running.parts[site.name] = running.parts[site.name] + part if site.name in running.parts else part
        return x

    @torch.inference_mode()
    def run(numbered: tuple[int, Batch]) -> dict[str, S]:
        running.number, batch = numbered
        inputs = on_device(batch, model.device)
        mask = inputs.get("attention_mask")
        running.mask = None if mask is None else mask.bool()
        running.parts = {}
        model(**inputs)
        parts: dict[str, S] = running.parts
        return parts

    found: dict[str, S] = {}
    passes = side_by_side(run, list(enumerate(batches)), model.device)
    with tapped(model, {site.tap: partial(look, site) for site in sites}), closing(passes):
        for _ in progress(batches, "calibrating"):
            for name, part in next(passes).items():
                found[name] = found[name] + part if name in found else part
    return found
