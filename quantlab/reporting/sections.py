"""Sections of a page and plain tables in them."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from quantlab.reporting.shapes import Plot


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """A table of texts, with a title and a caption."""

    id: str
    title: str
    caption: str
    names: Sequence[str]
    numeric: Sequence[bool]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Section:
    """A heading with paragraphs, commands, plots and tables beneath it."""

    id: str
    title: str
    paragraphs: Sequence[str] = ()
    commands: Sequence[str] = ()
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()

    @property
    def filled(self) -> bool:
        """Whether there is anything beneath the heading."""
        return bool(self.paragraphs or self.commands or self.plots or self.tables)


def as_table(id: str, title: str, table: pd.DataFrame, caption: str = "") -> Table:
    """A data frame as texts; columns of numbers stand to the right."""
    texts = table.astype(object).where(table.notna(), "").map(str)
    numeric = [bool(texts[name].str.fullmatch(r"[-+−]?[\d.].*|").all()) for name in texts.columns]
    return Table(
        id=id,
        title=title,
        caption=caption,
        names=list(map(str, texts.columns)),
        numeric=numeric,
        rows=texts.to_numpy().tolist(),
    )
