"""LAMBADA (Paperno et al. 2016, arXiv 1606.06031): a decoder predicts the last word of a passage.

As lm-eval counts it: the word is right if each of its tokens is the likeliest, and its perplexity is the
exponential of the mean negative log-likelihood of a whole word.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from quantlab.config.checks import part, texts
from quantlab.tasks.columns import pair_texts
from quantlab.tasks.examples import Examples, Texts, TokenRows
from quantlab.tasks.heads import TOKENS
from quantlab.tasks.scores import Kind
from quantlab.tasks.tables import read_file
from quantlab.tasks.task import Splits, Task


@dataclass(frozen=True, kw_only=True)
class LastWord(Task):
    """Passages of a table, whose last word is what follows their last space."""

    data: str  # a table
    text: str = "text"  # the column of the passages
    calibration: str | None = None  # another such table; None: the first share of the passages
    calibration_share: float = 0.2

    head: ClassVar[str] = TOKENS

    def __post_init__(self) -> None:
        super().__post_init__()
        texts("task.data, task.text", (self.data, self.text))
        part("task.calibration_share", self.calibration_share)

    @property
    def regression(self) -> bool:
        """Never: there are no labels."""
        return False

    @property
    def kind(self) -> Kind:
        return Kind.WORDS

    def load(self) -> Splits:
        """The passages that calibrate and those that are evaluated."""
        evaluated = self._passages(self.data)
        if self.calibration is not None:
            calibrating, how = self._passages(self.calibration), self.calibration
        else:
            first = min(max(round(self.calibration_share * len(evaluated)), 1), len(evaluated) - 1)
            rows = np.arange(len(evaluated))
            calibrating, evaluated = evaluated.take(rows[:first]), evaluated.take(rows[first:])
            how = f"the first {len(calibrating):,} passages of {self.data}"
        tags = {"splits": f"calibration: {how}; evaluation: {self.data}"}
        return Splits(train=calibrating, evaluation=evaluated, tags=tags)

    def units(self, examples: Examples, processor: Any) -> TokenRows:
        """Each passage's tokens, of which the last word's are predicted. A passage longer than ``max_length``
        loses its beginning."""
        if not isinstance(examples, Texts):
            raise ValueError(f"last words are of texts, got {type(examples).__name__}")
        rows, counts = [], []
        for (text,) in examples.texts:
            passage = text.rstrip()
            context = passage.rpartition(" ")[0]
            whole, before = (processor(each, verbose=False)["input_ids"] for each in (passage, context))
            rows.append(np.array(whole[-self.max_length :], dtype=np.int64))
            counts.append(min(len(whole) - len(before), len(rows[-1]) - 1))
        wrong = next((row for row, count in enumerate(counts) if count < 1), None)
        if wrong is not None:
            raise ValueError(f"passage {wrong} has no last word after others: {examples.texts[wrong][0]!r}")
        return TokenRows(labels=examples.labels, rows=tuple(rows), predicted=np.array(counts)[:, None])

    def _passages(self, source: str) -> Texts:
        path = Path(source).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{source} is no file here: give a table with a column {self.text!r}")
        rows = pair_texts([read_file(path).column(self.text)])
        return Texts(texts=rows, labels=np.zeros(len(rows), np.int64))
