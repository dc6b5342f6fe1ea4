"""GLUE (Wang et al. 2018, arXiv 1804.07461): from the hub, or from a folder of files in the hub's columns."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from quantlab.checks import nearest, one_of
from quantlab.tasks.base import Examples, Splits, Task, class_indices

CONFIGS = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")
SCORES = (0.0, 5.0)  # the bounds of STS-B's similarity, GLUE's one regression


def _read_jsonl(path: Path) -> pd.DataFrame:
    # Not by pandas, which guesses at types: a text such as "007" must stay one.
    with path.open(encoding="utf-8") as file:
        return pd.DataFrame([json.loads(line) for line in file if line.strip()])


def _read_tsv(path: Path) -> pd.DataFrame:
    # GLUE's own files hold stray quotes and texts such as "null": neither quoting nor missing values exist in them.
    return pd.read_csv(
        path, sep="\t", quoting=csv.QUOTE_NONE, keep_default_na=False, index_col=False, dtype=str, encoding="utf-8-sig"
    )


# Read directly, not through a library's cache of converted files, so that a changed file can never be read stale.
READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    "parquet": pd.read_parquet,
    "jsonl": _read_jsonl,
    "tsv": _read_tsv,
}


@dataclass(frozen=True, kw_only=True)
class Glue(Task):
    """One of GLUE's tasks. With ``data_dir``, nothing is downloaded."""

    config: str  # its name among the hub dataset's configurations
    text: tuple[str, ...]  # the columns of the one or two texts
    evaluation_split: str = "validation"  # its name on the hub; a folder's file may also be called validation
    data_dir: str | None = None  # a folder of {train,validation}.{parquet,jsonl,tsv}
    hub: str = "nyu-mll/glue"
    revision: str | None = None  # a commit, tag or branch of the hub dataset

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("config", self.config, CONFIGS)
        if len(self.text) not in (1, 2):
            raise ValueError(f"text must name one or two columns, got {list(self.text)}")

    def load(self) -> Splits:
        """The train split and GLUE's public evaluation split. Nothing but local files is read with ``data_dir``."""
        read = self._from_hub if self.data_dir is None else self._from_folder
        return Splits(train=self._examples(*read("train")), evaluation=self._examples(*read(self.evaluation_split)))

    def _from_folder(self, split: str) -> tuple[pd.DataFrame, str]:
        stems = (split,) if split == "train" else dict.fromkeys((split, "validation"))
        path = find_file(Path(str(self.data_dir)).expanduser(), tuple(stems))
        try:
            return READERS[path.suffix[1:]](path), str(path)
        except (ValueError, OSError) as error:  # what pandas and pyarrow raise on a broken file
            raise ValueError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error

    def _from_hub(self, split: str) -> tuple[pd.DataFrame, str]:
        import datasets  # takes a second to import, and only the hub needs it

        source = f"{self.hub}/{self.config}/{split}"
        try:
            frame = datasets.load_dataset(self.hub, self.config, revision=self.revision, split=split).to_pandas()
        except (ValueError, OSError) as error:  # includes the hub's connection errors and unknown names
            hint = f"or give task.data_dir=<folder of {expected(('train', 'validation'))}>"
            raise OSError(
                f"{source} cannot be loaded from the Hugging Face Hub ({error}); check the network, {hint}"
            ) from error
        return frame, source

    def _examples(self, frame: pd.DataFrame, source: str) -> Examples:
        for column in (*self.text, "label"):
            if column not in frame:
                found = f"found {list(frame.columns)}{nearest(column, map(str, frame.columns))}"
                raise ValueError(f"{source}: no column {column!r}; expected {[*self.text, 'label']}, {found}")
        if frame.empty:
            raise ValueError(f"{source} holds no rows")
        texts = zip(*(_texts(frame[column], source) for column in self.text), strict=True)
        label = _scores if self.regression else self._indices
        return Examples(texts=tuple(texts), labels=label(frame["label"], source))

    def _indices(self, column: pd.Series, source: str) -> np.ndarray:
        return class_indices([str(value) for value in column], self.labels, source)


def find_file(folder: Path, stems: tuple[str, ...]) -> Path:
    """The one file of a split. Raises FileNotFoundError or ValueError that says what is expected and what is there."""
    if not folder.is_dir():
        raise FileNotFoundError(f"task.data_dir={folder} is no folder; expected one with {expected(stems)}")
    found = [path for stem in stems for suffix in READERS if (path := folder / f"{stem}.{suffix}").is_file()]
    if len(found) > 1:
        raise ValueError(f"{folder} has {' and '.join(path.name for path in found)} for the same split; keep one")
    if not found:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise FileNotFoundError(f"{folder} has no {expected(stems)}; it holds {there}")
    return found[0]


def expected(stems: tuple[str, ...]) -> str:
    """``{train}.{parquet,jsonl,tsv}``: the file names of a split, for messages."""
    return f"{stems[0] if len(stems) == 1 else '{' + ','.join(stems) + '}'}.{{{','.join(READERS)}}}"


def _texts(column: pd.Series, source: str) -> list[str]:
    values: list[str] = column.tolist()
    bad = next((row for row, value in enumerate(values) if not isinstance(value, str)), None)
    if bad is not None:
        raise ValueError(f"{source}: column {column.name!r} must hold texts, row {bad} holds {values[bad]!r}")
    return values


def _scores(column: pd.Series, source: str) -> np.ndarray:
    scores = pd.to_numeric(column, errors="coerce").to_numpy(np.float32)
    bad = ~((scores >= SCORES[0]) & (scores <= SCORES[1]))  # true for NaN too
    if bad.any():
        worst = column.iloc[int(bad.argmax())]
        raise ValueError(f"{source}: label {worst!r} is no score in [{SCORES[0]:g}, {SCORES[1]:g}]")
    return scores
