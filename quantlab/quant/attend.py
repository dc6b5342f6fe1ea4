"""Attention on grids in one pass: no score leaves the processor's cache."""

import torch
from torch import Tensor

from quantlab.quant import native
from quantlab.quant.snapper import Snapper

WIDTH_MULTIPLE = 16  # of a head: what the widest processors add up at a time


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    scores_on: Snapper | None,
    probs_on: Snapper | None,
) -> Tensor | None:
    """Softmax attention over (batch, heads, tokens, width), with scores and probabilities on their grids if they have
    one; the mask is added to the scores on their grid.

    Returns (batch, tokens, heads, width), equal to torch's operators up to the order of sums; None for tensors that
    ``kernels.c`` does not take. Raises MemoryError.
    """
    tensors = [x.transpose(1, 2) for x in (query, key, value)]
    batch, queries, heads, width = tensors[0].shape
    keys = key.shape[2]
    if mask is not None:
        mask = mask.expand(batch, 1, queries, keys)
    fits = width % WIDTH_MULTIPLE == 0 and (mask is None or mask.stride(3) == 1)
    if not fits or not native.takes(*tensors, *([] if mask is None else [mask])):
        return None
    if not all(x.is_contiguous() for x in tensors):
        return None
    library = native.library()
    assert library is not None
    context = torch.empty_like(tensors[0])
    strides = torch.tensor([0, 0] if mask is None else [mask.stride(0), mask.stride(2)])
    grids = [None if snapper is None else snapper.per_head(heads) for snapper in (scores_on, probs_on)]
    failed = library.attend(
        *(x.data_ptr() for x in tensors), native.address(mask), context.data_ptr(),
        batch, heads, queries, keys, width, strides.data_ptr(), scaling, *map(native.address, grids),
        torch.get_num_threads(),
    )  # fmt: skip
    if failed:
        raise MemoryError(f"attention over {keys} tokens")
    return context
