"""Classification of one's own texts, from a file, a folder or a data set of the hub."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from quantlab.config.checks import texts
from quantlab.tasks.columns import pair_texts, require_no_blank
from quantlab.tasks.examples import Examples, Texts
from quantlab.tasks.labelled import LabelledData, as_texts
from quantlab.tasks.tables import DataColumn, DataTable


@dataclass(frozen=True, kw_only=True)
class TextClassification(LabelledData):
    """Texts, or pairs of texts, with one label each."""

    text: tuple[str, ...]  # the columns of the one or two texts; one name will do for one

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", as_texts(self.text))
        super().__post_init__()
        texts("task.text", self.text)
        if len(self.text) not in (1, 2) or len(set(self.text)) != len(self.text):
            raise ValueError(f"task.text must name one or two columns, got {list(self.text)}")
        if self.label in self.text:
            raise ValueError(
                f"task.label={self.label} is a column of task.text, too: it would tell the answer"
            )

    def columns(self, table: DataTable) -> list[DataColumn]:
        return [table.column(name) for name in self.text]

    def examples(self, columns: Sequence[DataColumn], labels: np.ndarray) -> Texts:
        rows = pair_texts(columns)
        require_no_blank(columns)
        return Texts(texts=rows, labels=labels)

    def groups(self, rows: Examples) -> np.ndarray:
        return pd.factorize(pd.Series(rows.texts if isinstance(rows, Texts) else ()))[0]
