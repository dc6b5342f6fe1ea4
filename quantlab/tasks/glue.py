"""GLUE (Wang et al. 2018, arXiv 1804.07461): from the hub, or from a folder of files in the hub's columns."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from quantlab.config.checks import nearest, one_of, texts
from quantlab.tasks.tables import expected, read_split
from quantlab.tasks.task import Examples, Splits, Task

CONFIGS = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")
SCORES = (0.0, 5.0)  # the bounds of STS-B's similarity, GLUE's one regression

# What GLUE's own archive calls a split or a column, where the hub calls it otherwise.
SPLITS = {"validation": "dev", "validation_matched": "dev_matched", "validation_mismatched": "dev_mismatched"}
COLUMNS = {
    "label": ("gold_label", "is_duplicate", "Quality", "score"),
    "sentence1": ("#1 String",),
    "sentence2": ("#2 String",),
    "premise": ("sentence1",),
    "hypothesis": ("sentence2",),
}
HEADERS = {"cola": ("source", "label", "mark", "sentence")}  # of the archive's files that have none
NO_LABEL = ("", "-", "None", "nan", "<NA>")
HIDDEN = "-1"


@dataclass(frozen=True, kw_only=True)
class Glue(Task):
    """One of GLUE's tasks. With ``data_dir``, nothing is downloaded."""

    config: str  # its name among the hub dataset's configurations
    text: tuple[str, ...]  # the columns of the one or two texts
    evaluation_split: str = "validation"  # its name on the hub; a folder's file may also be called validation
    data_dir: str | None = None  # a folder of {train,validation}.{parquet,jsonl,tsv}, or of the hub's shards
    hub: str = "nyu-mll/glue"
    revision: str | None = None  # a commit, tag or branch of the hub dataset

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("config", self.config, CONFIGS)
        texts("text", self.text)
        if len(self.text) not in (1, 2):
            raise ValueError(f"text must name one or two columns, got {list(self.text)}")

    def load(self) -> Splits:
        """The train split and GLUE's public evaluation split. Nothing but local files is read with
        ``data_dir``."""
        read = self._from_hub if self.data_dir is None else self._from_folder
        return Splits(
            train=self._examples(*read("train")), evaluation=self._examples(*read(self.evaluation_split))
        )

    def _from_folder(self, split: str) -> tuple[pd.DataFrame, str]:
        stems = (split,) if split == "train" else (split, SPLITS.get(split, split), "validation", "dev")
        folder = Path(str(self.data_dir)).expanduser()
        return read_split(folder, tuple(dict.fromkeys(stems)), HEADERS.get(self.config, ()))

    def _from_hub(self, split: str) -> tuple[pd.DataFrame, str]:
        import datasets  # takes a second to import, and only the hub needs it

        source = f"{self.hub}/{self.config}/{split}"
        try:
            frame = datasets.load_dataset(
                self.hub, self.config, revision=self.revision, split=split
            ).to_pandas()
        except (ValueError, OSError) as error:  # includes the hub's connection errors and unknown names
            hint = f"or give task.data_dir=<folder of {expected(('train', 'validation'))}>"
            raise OSError(
                f"{source} cannot be loaded from the Hugging Face Hub ({error}); check the network, {hint}"
            ) from error
        return frame, source

    def _examples(self, frame: pd.DataFrame, source: str) -> Examples:
        columns = {column: _column(frame, column, source) for column in (*self.text, "label")}
        if frame.empty:
            raise ValueError(f"{source} holds no rows")
        texts = zip(*(_texts(columns[name], name, source) for name in self.text), strict=True)
        label = _scores if self.regression else self._indices
        return Examples(texts=tuple(texts), labels=label(columns["label"], source))

    def _indices(self, column: pd.Series, source: str) -> np.ndarray:
        allowed = {name: index for index, name in enumerate(self.labels)}
        allowed |= {str(index): index for index in range(len(self.labels))}
        names = [str(int(value)) if _is_whole(value) else str(value) for value in column]
        wrong = next((row for row, name in enumerate(names) if name not in allowed), None)
        if wrong is not None:
            raise ValueError(f"{source}: {_place(column, wrong)}: {self._wrong(names[wrong])}")
        return np.array([allowed[name] for name in names], dtype=np.int64)

    def _wrong(self, label: str) -> str:
        """Why a label is not one of the task's."""
        if label in NO_LABEL:
            return f"label {label!r} means that there is none; remove the rows without a label"
        allowed = ", ".join(f"{index} ({name})" for index, name in enumerate(self.labels))
        hint = (
            ", which marks the hidden labels of a test set"
            if label == HIDDEN
            else nearest(label, self.labels)
        )
        return f"unknown label {label!r}{hint}; allowed are {allowed}"


def _column(frame: pd.DataFrame, name: str, source: str) -> pd.Series:
    """A column by its name on the hub or in GLUE's own archive."""
    for column in (name, *COLUMNS.get(name, ())):
        if column in frame:
            found: pd.Series = frame[column]
            return found
    there = list(map(str, frame.columns))
    raise ValueError(f"{source}: no column {name!r}; found {there}{nearest(name, there)}")


def _place(column: pd.Series, row: int) -> str:
    """``line 12``: where a row stands in its file."""
    return f"{column.index.name or 'row'} {column.index[row]}"


def _is_whole(value: object) -> bool:
    """Whether a label is a whole number that a column of floats holds: it does where a label is missing."""
    return isinstance(value, float) and value.is_integer()


def _texts(column: pd.Series, name: str, source: str) -> list[str]:
    values: list[str] = column.tolist()
    bad = next((row for row, value in enumerate(values) if not isinstance(value, str)), None)
    if bad is not None:
        raise ValueError(
            f"{source}: column {name!r} must hold texts, {_place(column, bad)} holds {values[bad]!r}"
        )
    return values


def _scores(column: pd.Series, source: str) -> np.ndarray:
    scores = pd.to_numeric(column, errors="coerce").to_numpy(np.float32)
    bad = ~((scores >= SCORES[0]) & (scores <= SCORES[1]))  # true for NaN too
    if bad.any():
        row = int(bad.argmax())
        bounds = f"[{SCORES[0]:g}, {SCORES[1]:g}]"
        raise ValueError(
            f"{source}: {_place(column, row)}: label {column.iloc[row]!r} is no score in {bounds}"
        )
    return scores
