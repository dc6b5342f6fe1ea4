"""GLUE (Wang et al. 2018, arXiv 1804.07461): from the hub, or from a folder of files in the hub's columns."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantlab.config.checks import one_of, texts
from quantlab.tasks.columns import class_indices, pair_texts, scores
from quantlab.tasks.examples import Texts
from quantlab.tasks.hub import load_hub
from quantlab.tasks.tables import DataTable, expected, read_split
from quantlab.tasks.task import Splits, Task

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


@dataclass(frozen=True, kw_only=True)
class Glue(Task):
    """One of GLUE's tasks. With ``data_dir``, nothing is downloaded."""

    config: str  # its name among the hub dataset's configurations
    text: tuple[str, ...]  # the columns of the one or two texts
    evaluation_split: str = "validation"  # its name on the hub; a folder's file may also be called validation
    data_dir: str | None = None  # a folder of train and validation files, or of the hub's shards
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
        tables = self._from_hub() if self.data_dir is None else self._from_folder(Path(self.data_dir))
        train, evaluation = map(self._examples, tables)
        return Splits(train=train, evaluation=evaluation)

    def _from_folder(self, data_dir: Path) -> Iterator[DataTable]:
        folder, header, split = data_dir.expanduser(), HEADERS.get(self.config, ()), self.evaluation_split
        yield read_split(folder, ("train",), header)
        stems = dict.fromkeys((split, SPLITS.get(split, split), "validation", "dev"))
        yield read_split(folder, tuple(stems), header)

    def _from_hub(self) -> Iterator[DataTable]:
        otherwise = f"give task.data_dir=<folder of {expected(('train', 'validation'))}>"
        data = load_hub(self.hub, self.config, self.revision, otherwise)
        yield data.table("train")
        yield data.table(self.evaluation_split)

    def _examples(self, table: DataTable) -> Texts:
        *columns, label = (table.column(name, COLUMNS.get(name, ())) for name in (*self.text, "label"))
        labels = scores(label, *SCORES) if self.regression else class_indices(label, self.labels)
        return Texts(texts=pair_texts(columns), labels=labels)
