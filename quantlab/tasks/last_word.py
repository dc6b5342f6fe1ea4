"""LAMBADA (Paperno et al. 2016, arXiv 1606.06031): a decoder predicts the last word of a passage.

As lm-eval counts it: the word is right if each of its tokens is the likeliest, and its perplexity is the
exponential of the mean negative log-likelihood of a whole word.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from quantlab.tasks.examples import Examples, TokenRows
from quantlab.tasks.next_tokens import NextTokens
from quantlab.tasks.scores import Kind


@dataclass(frozen=True, kw_only=True)
class LastWord(NextTokens):
    """Passages, whose last word is what follows their last space."""

    @property
    def kind(self) -> Kind:
        return Kind.WORDS

    def texts_of(self, content: str) -> list[str]:
        """A passage a line."""
        return [line for line in content.split("\n") if line.strip()]

    def cut(self, whole: list[str]) -> tuple[list[str], list[str]]:
        """The first share of the passages, at least one, and the rest."""
        first = max(1, min(round(self.calibration_share * len(whole)), len(whole) - 1))
        return whole[:first], whole[first:]

    def units(self, examples: Examples, processor: Any) -> TokenRows:
        """Each passage's tokens, of which the last word's are predicted. A passage longer than ``max_length``
        loses its beginning. Raises ValueError that names a passage without a last word."""
        contents = self.contents(examples)
        rows, counts = [], []
        for text in contents:
            passage = text.rstrip()
            context = passage.rpartition(" ")[0]
            whole, before = (processor(each, verbose=False)["input_ids"] for each in (passage, context))
            rows.append(np.array(whole[-self.max_length :], dtype=np.int64))
            counts.append(min(len(whole) - len(before), len(rows[-1]) - 1))
        wrong = next((row for row, count in enumerate(counts) if count < 1), None)
        if wrong is not None:
            raise ValueError(f"passage {wrong} has no last word after others: {contents[wrong]!r}")
        return TokenRows(labels=examples.labels, rows=tuple(rows), predicted=np.array(counts)[:, None])
