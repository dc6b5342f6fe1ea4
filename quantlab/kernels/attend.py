"""Attention with quantized scores and probabilities in one pass: the scores stay in the processor's cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

from quantlab.kernels import native
from quantlab.kernels.snapper import Snapper

WIDTH_MULTIPLE = 16  # a head's width must be a multiple: the widest vector registers hold 16 floats


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    scores_on: Snapper | None,
    probs_on: Snapper | None,
) -> Tensor | None:
    """Softmax attention with quantized scores and probabilities, in ``kernels.c``.

    Computes ``P(softmax(S(scaling q k^T) + mask)) v``, where S and P are the quantizers ``scores_on`` and
    ``probs_on``, or the identity for None. Query, key and value are (batch, heads, tokens, width).

    Returns (batch, tokens, heads, width), equal to torch's operators up to the order of sums, or None if
    ``kernels.c`` does not take the tensors or grids. Raises MemoryError if there is no scratch memory.
    """
    if not _fit(query, key, value, mask, (scores_on, probs_on)):
        return None
    tensors = [x.transpose(1, 2) for x in (query, key, value)]
    batch, queries, heads, width = tensors[0].shape
    keys = key.shape[2]
    if mask is not None:
        mask = mask.expand(batch, 1, queries, keys)
    if not native.takes(*tensors, *([] if mask is None else [mask])):
        return None
    if not all(x.is_contiguous() for x in tensors) or (mask is not None and mask.stride(3) != 1):
        return None
    library = native.library()
    assert library is not None
    context = torch.empty_like(tensors[0])
    strides = torch.tensor([0, 0] if mask is None else [mask.stride(0), mask.stride(2)])
    grids = [None if snapper is None else snapper.per_head(heads) for snapper in (scores_on, probs_on)]
    failed = library.attend(
        *(x.data_ptr() for x in tensors),
        native.address(mask),
        context.data_ptr(),
        batch,
        heads,
        queries,
        keys,
        width,
        strides.data_ptr(),
        scaling,
        *map(native.address, grids),
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError(f"no memory for attention over {keys} tokens")
    return context


def _fit(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, grids: Sequence[Snapper | None]
) -> bool:
    """Whether all shapes agree. ``kernels.c`` does not check: it reads batch, heads and width from the query,
    and the number of keys from the key."""
    if query.ndim != 4 or key.ndim != 4 or query.shape[3] % WIDTH_MULTIPLE:
        return False
    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    if key.shape != (batch, heads, keys, width) or value.shape != key.shape:
        return False
    if mask is not None and (
        mask.ndim != 4
        or any(n not in (1, m) for n, m in zip(mask.shape, (batch, 1, queries, keys), strict=True))
    ):
        return False
    return all(snapper is None or snapper.fits_heads(heads) for snapper in grids)
