"""What quantizing a site changes of the loss, to first order."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from quantlab.engines.insert import quantizer
from quantlab.methods.bits import Precision
from quantlab.network.attention import TensorFunction
from quantlab.network.sites import Site
from quantlab.network.taps import tapped
from quantlab.plan.plan import QuantPlan, SiteTransform
from quantlab.plan.quantizers import ActivationQuant
from quantlab.tasks.batching import Batch, on_device, total_rows

ActivationTable = dict[tuple[str, Precision], ActivationQuant]  # by site and precision
Transforms = tuple[SiteTransform, ...]


def first_order_of(
    model: PreTrainedModel,
    sites: Sequence[Site],
    table: ActivationTable,
    choice: Precision,
    batches: Sequence[Batch],
    labels: np.ndarray,
    transforms: Transforms = (),
) -> dict[str, float]:
    """What each site's quantization error changes of a row's loss, to first order.

    Mean over rows of ``|sum(dL/dx * (Q(x) - x))|``, with the row's loss L and the site's tensor x. One
    forward and one backward pass a batch, in FP32.
    """
    effect = {site.name: 0.0 for site in sites}
    passed: dict[str, tuple[Tensor, Tensor]] = {}  # this batch's tensor and its error, by site

    def look(name: str, snap: TensorFunction) -> TensorFunction:
        def keep(x: Tensor) -> Tensor:
            if not x.requires_grad:
                x = x.detach().requires_grad_()
            x.retain_grad()
            passed[name] = (x, snap(x.detach()) - x.detach())
            return x

        return keep

    bases = QuantPlan(transforms=transforms).site_bases
    taps = {
        site.tap: look(
            site.name, quantizer(table[site.name, choice], model.device, basis=bases.get(site.name))
        )
        for site in sites
    }
    with torch.enable_grad(), tapped(model, taps):
        for batch in batches:
            logits = model(**on_device(batch, model.device)).logits
            torch.autograd.backward(_loss(logits, batch, labels))
            for name, (x, error) in passed.items():
                if x.grad is not None:
                    effect[name] += float((x.grad * error).flatten(1).sum(1).abs().sum())
            passed.clear()
    return {name: total / total_rows(batches) for name, total in effect.items()}


def _loss(logits: Tensor, batch: Batch, labels: np.ndarray) -> Tensor:
    """The sum of the rows' losses: the gradient with respect to a row's tensor is then that row's own."""
    if batch.predicted is not None:
        return _tokens_loss(logits, batch)
    own = torch.from_numpy(labels[batch.indices]).to(logits.device)
    if logits.shape[-1] == 1:
        return (logits[:, 0] - own.to(logits.dtype)).square().sum()
    return torch.nn.functional.cross_entropy(logits, own.long(), reduction="sum")


def _tokens_loss(logits: Tensor, batch: Batch) -> Tensor:
    """The sum over rows of the mean loss of a row's predicted tokens, its last ones, nats."""
    assert batch.predicted is not None
    ids, lengths = batch.inputs["input_ids"].to(logits.device), batch.inputs["attention_mask"].sum(1)
    losses = [
        torch.nn.functional.cross_entropy(row[end - count - 1 : end - 1], own[end - count : end])
        for row, own, end, count in zip(
            logits, ids, lengths.tolist(), batch.predicted[:, 0].astype(int).tolist(), strict=True
        )
    ]
    return torch.stack(losses).sum()
