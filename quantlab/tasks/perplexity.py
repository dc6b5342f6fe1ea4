"""Perplexity of a text: how well a decoder predicts each next token.

The protocol of GPTQ (Frantar et al. 2022, arXiv 2210.17323) and of the papers that followed: the texts are
joined by a blank line and tokenized once, windows do not overlap, the remainder is dropped, and a window's
first token is not predicted. lm-eval's number is another one, for each word: ``word_perplexity``.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from quantlab.config.checks import can_name_hub_repository, one_of, part, texts, whole
from quantlab.tasks.columns import pair_texts
from quantlab.tasks.examples import Examples, Texts, TokenRows
from quantlab.tasks.heads import TOKENS
from quantlab.tasks.hub import load_hub
from quantlab.tasks.scores import Kind
from quantlab.tasks.tables import READERS, DataTable, read_file
from quantlab.tasks.task import Splits, Task

BLANK_LINE = "\n\n"
WORD = re.compile(r"\S+")


@dataclass(frozen=True, kw_only=True)
class Perplexity(Task):
    """Windows of the tokens of a text. ``max_length`` is the window's."""

    data: str  # a text file, a table with a column of texts, or a data set's name on the hub
    text: str | None = None  # the column of a table
    calibration: str | None = None  # another such file; None: the first share of the data
    calibration_share: float = 0.2  # of the text
    window: int = 1024  # in tokens
    stride: int | None = None  # tokens from one window's start to the next one's; None: the window
    documents: str = "joined"  # or apart: no window goes over the end of a text
    split: str = "test"  # of a hub data set
    config: str | None = None  # the hub data set's configuration
    revision: str | None = None  # a commit, tag or branch of the hub data set

    length_key: ClassVar[str] = "window"
    head: ClassVar[str] = TOKENS

    def __post_init__(self) -> None:
        whole("task.window", self.window, 2)
        object.__setattr__(self, "max_length", max(self.window, 4))
        super().__post_init__()
        if self.stride is not None:
            whole("task.stride", self.stride, 1, self.window)
        texts("task.data", (self.data,))
        one_of("task.documents", self.documents, ("joined", "apart"))
        part("task.calibration_share", self.calibration_share)

    @property
    def regression(self) -> bool:
        """Never: there are no labels."""
        return False

    @property
    def kind(self) -> Kind:
        return Kind.WINDOWS

    def load(self) -> Splits:
        """The texts that calibrate and the texts that are evaluated."""
        evaluated = self._documents(self.data)
        if self.calibration is not None:
            calibrating, how = self._documents(self.calibration), str(self.calibration)
        else:
            calibrating, evaluated = cut(evaluated, self.calibration_share)
            how = f"the first {self.calibration_share:.0%} of {self.data}"
        tags = {"splits": f"calibration: {how}; evaluation: {self.data}"}
        return Splits(train=_texts(calibrating), evaluation=_texts(evaluated), tags=tags)

    def units(self, examples: Examples, processor: Any) -> TokenRows:
        """The windows of the texts. Raises ValueError where a text is shorter than a window, and where the
        tokenizer does not say which characters a token stands for."""
        if not isinstance(examples, Texts):
            raise ValueError(f"windows are made of texts, got {type(examples).__name__}")
        if not processor.is_fast:
            raise ValueError("perplexity counts words by a fast tokenizer's offsets: save tokenizer.json")
        whole_texts = [text for (text,) in examples.texts]
        parts = [BLANK_LINE.join(whole_texts)] if self.documents == "joined" else whole_texts
        windows = [self._windows(part, processor) for part in parts]
        ids, predicted = (np.concatenate(arrays) for arrays in zip(*windows, strict=True))
        if not len(ids):
            longest = max(len(processor(part, verbose=False)["input_ids"]) for part in parts)
            raise ValueError(
                f"task.window={self.window}, but the text has only {longest:,} tokens: take a longer text "
                "or a shorter window"
            )
        clusters = np.repeat(np.arange(len(parts)), [len(window_ids) for window_ids, _ in windows])
        return TokenRows(
            labels=np.zeros(len(ids), np.int64),
            clusters=clusters if self.documents == "apart" else None,
            rows=tuple(ids),
            predicted=predicted,
        )

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

    def _documents(self, source: str) -> list[str]:
        path = Path(source).expanduser()
        if path.is_file() and path.suffix[1:].lower() not in READERS:
            if self.text is not None:
                raise ValueError(f"task.text={self.text} is for tables: {path} is read as one text")
            return [_whole_text(path)]
        if path.is_file():
            return self._column(read_file(path))
        if path.suffix or not can_name_hub_repository(source):
            raise FileNotFoundError(
                f"{source} is no file here: give a text, a table or a hub data set's name"
            )
        hub = load_hub(source, self.config, self.revision, f"give the path of a file: {path} is none")
        return self._column(hub.table(self.split))

    def _column(self, table: DataTable) -> list[str]:
        if self.text is None:
            raise ValueError(
                f"{table.source} is a table with columns {list(table.frame.columns)}: "
                "say with task.text which one holds the texts"
            )
        return [text for (text,) in pair_texts([table.column(self.text)])]


def cut(documents: list[str], share: float) -> tuple[list[str], list[str]]:
    """The first ``share`` of the characters, up to the end of a line, and the rest."""
    left = round(share * sum(map(len, documents)))
    for index, document in enumerate(documents):
        if len(document) > left:
            end = document.find("\n", max(left - 1, 0)) + 1 or len(document)
            return [*documents[:index], document[:end]], [document[end:], *documents[index + 1 :]]
        left -= len(document)
    return documents, []


def _texts(documents: list[str]) -> Texts:
    return Texts(texts=tuple((text,) for text in documents), labels=np.zeros(len(documents), np.int64))


def _whole_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error.reason} at byte {error.start:,}") from error
