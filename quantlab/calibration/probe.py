"""The calibration pass: what every site's values look like, as sketches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quantlab.cli.progress import progress
from quantlab.machine.parallel import side_by_side
from quantlab.network.sites import Site
from quantlab.network.taps import tapped
from quantlab.quant.sketch import Sketch
from quantlab.tasks.batching import Batch, on_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Requantize = Callable[[Site, Sketch], Callable[[Tensor], Tensor] | None]


def observe(
    model: PreTrainedModel,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    count_padding: bool = False,
    requantize: Requantize | None = None,
) -> dict[str, Sketch]:
    """Runs the batches through the model and returns a sketch of every site, by the site's name.

    Batches run side by side in threads. Each batch has its own sketches, merged in the batches' order, so the
    result is the same to the bit for any number of threads.

    ``requantize(site, sketch so far)`` returns the function that the site's tensor then passes through, or
    None. So later sites see earlier ones quantized, as in Bondarenko's code; batches then run one by one.
    Raises ValueError that names the site on NaN and infinity.
    """
    sketches = {site.name: Sketch(channels=site.channels) for site in sites}
    running = threading.local()  # of the batch that this thread runs: its padding mask and its sketches

    def look(site: Site, x: Tensor) -> Tensor:
        sketch = running.seen.setdefault(site.name, Sketch(channels=site.channels))
        try:
            sketch.update(site.tap.elements(x, None if count_padding else running.mask))
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
