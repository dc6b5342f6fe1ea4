"""Times the step in which a decoder makes one token, with the tokens before it in its cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quantlab.profiling.clocks import Run
from quantlab.profiling.timing import Inputs, TorchSubject, checked

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class DecodingSubject(TorchSubject):
    """A decoder that answers one token more, with the keys and values of the inputs' tokens in its cache."""

    @classmethod
    def of(cls, subject: TorchSubject) -> DecodingSubject:
        """The step of a subject's decoder."""
        return cls(**{field.name: getattr(subject, field.name) for field in fields(subject)})

    def load(self, inputs: Inputs, threads: int, stack: ExitStack) -> Run:
        model, inserted = self.model(stack)
        return checked(decoding_step(model, self.tensors(inputs)), inserted)


def decoding_step(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Callable[[], Tensor]:
    """Fills a cache with the keys and values of (batch, tokens) inputs. Returns a step of one token more.

    The step repeats the last token, returns its logits, (batch, 1, words), and takes it out of the cache
    again, so that each call is the same step.
    """
    from transformers import DynamicCache

    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    cache = DynamicCache(config=model.config)
    # transformers before 5.24 knows the argument by its old name alone.
    name = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
    held: dict[str, Any] = {name: cache, "use_cache": True}
    model(**inputs, **held)
    longer = torch.cat([mask, torch.ones_like(mask[:, -1:])], dim=1)

    def step() -> Tensor:
        logits: Tensor = model(input_ids=ids[:, -1:], attention_mask=longer, **held).logits
        cache.crop(-1)
        return logits

    return step
