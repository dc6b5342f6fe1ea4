"""Scores on disk: computed by the first worker of a study, read by the others."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from optuna.study import Study

from quantlab.results.store import locked_folder
from quantlab.searching.search_pictures import draw_scores
from quantlab.searching.setup import PreparedModel
from quantlab.searching.site_scores import Scores
from quantlab.searching.study import count_setup
from quantlab.storage.files import whole_folder


def kept_scores(prepared: PreparedModel, study: Study, folder: Path) -> Scores:
    """Reads the scores from ``folder``, or computes them and writes them there."""
    with locked_folder(folder.parent / "scoring", "the scores", wait=True):
        if not folder.is_dir():
            scores = prepared.scores()
            count_setup(study, "scores", sum(scores.rows.values()))
            with whole_folder(folder) as scratch:
                save_scores(scores, scratch)
        table = pd.read_csv(folder / "scores.csv")
        table["choice"] = [_as_chosen(choice, prepared.space.choices) for choice in table["choice"]]
        costs = json.loads((folder / "costs.json").read_text(encoding="utf-8"))
    return Scores(table=table, rows=costs["rows"], seconds=costs["seconds"])


def save_scores(scores: Scores, folder: Path) -> None:
    """Writes ``scores.csv``, ``scores.png``, and ``costs.json`` with rows and seconds of each score."""
    scores.table.to_csv(folder / "scores.csv", index=False)
    (folder / "costs.json").write_text(
        json.dumps({"rows": scores.rows, "seconds": scores.seconds}), encoding="utf-8"
    )
    draw_scores(scores).savefig(folder / "scores.png", dpi=150)


def _as_chosen(text: Any, choices: tuple[Any, ...]) -> Any:
    """The choice that a table's cell stands for."""
    return next(choice for choice in choices if str(choice) == str(text))
