"""Perplexity of a text: how well a decoder predicts each next token.

The protocol of GPTQ (Frantar et al. 2022, arXiv 2210.17323) and of the papers that followed: the texts are
joined by a blank line and tokenized once, windows do not overlap, the remainder is dropped, and a window's
first token is not predicted. lm-eval's number is another one, for each word: ``word_perplexity``.
"""

import logging
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from quantlab.config.checks import one_of, whole
from quantlab.tasks.examples import Examples, TokenRows
from quantlab.tasks.next_tokens import NextTokens
from quantlab.tasks.scores import Kind

BLANK_LINE = "\n\n"
WORD = re.compile(r"\S+")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Perplexity(NextTokens):
    """Windows of the tokens of a text. ``max_length`` is the window's."""

    window: int = 1024  # in tokens
    stride: int | None = None  # tokens from one window's start to the next one's; None: the window
    documents: str = "joined"  # or apart: no window goes over the end of a text

    length_key: ClassVar[str] = "window"

    def __post_init__(self) -> None:
        whole("task.window", self.window, 2)
        object.__setattr__(self, "max_length", max(self.window, 4))
        super().__post_init__()
        if self.stride is not None:
            whole("task.stride", self.stride, 1, self.window)
        one_of("task.documents", self.documents, ("joined", "apart"))

    @property
    def kind(self) -> Kind:
        return Kind.WINDOWS

    def texts_of(self, content: str) -> list[str]:
        """All of it, as one text."""
        return [content]

    def cut(self, whole: list[str]) -> tuple[list[str], list[str]]:
        """The first share of the characters, up to the end of a line, and the rest."""
        return cut(whole, self.calibration_share)

    def units(self, examples: Examples, processor: Any) -> TokenRows:
        """The windows of the texts. Texts that are kept apart and shorter than a window have none, and a line
        of the log counts them.

        Raises ValueError where no text is as long as a window, and where the tokenizer does not say which
        characters a token stands for.
        """
        contents = self.contents(examples)
        if not processor.is_fast:
            raise ValueError("perplexity counts words by a fast tokenizer's offsets: save tokenizer.json")
        apart = self.documents == "apart"
        parts = contents if apart else [BLANK_LINE.join(contents)]
        windows = [self._windows(part, processor) for part in parts]
        ids, predicted = (np.concatenate(arrays) for arrays in zip(*windows, strict=True))
        if not len(ids):
            longest = max(len(processor(part, verbose=False)["input_ids"]) for part in parts)
            texts = f"each of the {len(parts):,} texts" if apart else "the text"
            raise ValueError(
                f"task.window={self.window}, but {texts} has only {longest:,} tokens{' or fewer' * apart}: "
                "take a longer text or a shorter window"
            )
        clusters = np.repeat(np.arange(len(parts)), [len(window_ids) for window_ids, _ in windows])
        rows = TokenRows(
            labels=np.zeros(len(ids), np.int64),
            clusters=clusters if apart else None,
            rows=tuple(ids),
            predicted=predicted,
        )
        for dropped in self.unit_tags(examples, rows).values():
            log.warning("%s texts are shorter than task.window=%d and are left out", dropped, self.window)
        return rows

    def unit_tags(self, examples: Examples, units: Examples) -> dict[str, str]:
        """``documents_dropped``, if texts that are kept apart were shorter than a window: 12 of 60."""
        kept = len(examples) if units.clusters is None else len(np.unique(units.clusters))
        dropped = len(examples) - kept
        return {"documents_dropped": f"{dropped:,} of {len(examples):,}"} if dropped else {}

    def _windows(self, text: str, processor: Any) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (windows, window), and the numbers (windows, 2) of predicted tokens and their words."""
        encoded = processor(text, return_offsets_mapping=True, verbose=False)
        ids = np.array(encoded["input_ids"], dtype=np.int64)
        ends = np.array([end for _, end in encoded["offset_mapping"]], dtype=np.int64)
        begins = np.array([word.start() for word in WORD.finditer(text)], dtype=np.int64)
        # The token of a word's first character is the first one that ends behind it.
        words = np.bincount(
            np.searchsorted(np.maximum.accumulate(ends), begins, side="right"), minlength=len(ids) + 1
        )
        until = np.concatenate([[0], np.cumsum(words)])  # words that begin before a token
        stride = self.stride or self.window
        starts = np.arange(0, len(ids) - self.window + 1, stride)
        counts = np.full(len(starts), min(stride, self.window - 1))
        counts[:1] = self.window - 1
        stops = starts + self.window
        windows = ids[starts[:, None] + np.arange(self.window)]
        return windows, np.stack([counts, until[stops] - until[stops - counts]], axis=1)


def cut(documents: list[str], share: float) -> tuple[list[str], list[str]]:
    """The first ``share`` of the characters, up to the end of a line, and the rest."""
    left = round(share * sum(map(len, documents)))
    for index, document in enumerate(documents):
        if len(document) > left:
            end = document.find("\n", max(left - 1, 0)) + 1 or len(document)
            return [*documents[:index], document[:end]], [document[end:], *documents[index + 1 :]]
        left -= len(document)
    return documents, []
