"""The files of a search's folder: tables, the answer, its method and pictures."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from quantlab.cli.conf_dir import FOUND_METHODS
from quantlab.cli.secrets import without_password
from quantlab.searching.alternatives import overrides_of
from quantlab.searching.answer_summary import AnswerSummary, wrapped
from quantlab.searching.history import EvaluatedCandidate, History
from quantlab.searching.search_pictures import best_cost_over_time, draw_precisions, draw_progress
from quantlab.searching.study import storage_url
from quantlab.storage.files import write_whole
from quantlab.sweeping.run_config import SLOTS, chosen_groups
from quantlab.trial.result import plain_data

BEST, FRONT, CANDIDATES, METHOD = "best.json", "front.csv", "candidates.csv", "method.yaml"
MAP, PROGRESS, PROGRESS_TABLE = "map.png", "progress.png", "progress.csv"
SCORES_TABLE, SCORES_PICTURE = "scores/scores.csv", "scores/scores.png"
LABELS = {
    BEST: "answer",
    METHOD: "as a method",
    FRONT: "front",
    CANDIDATES: "candidates",
    PROGRESS_TABLE: "best cost",
    SCORES_TABLE: "scores",
    MAP: "pictures",
    PROGRESS: "",
    SCORES_PICTURE: "",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchFiles:
    """Writes a search's files into its folder, each whole."""

    summary: AnswerSummary
    folder: Path

    def write(self, history: History) -> None:
        """Tables, answer and method. The method also goes to ``conf/method/found`` of the working folder."""
        write_whole(self.folder / BEST, json.dumps(self.summary.as_data(history), indent=2))
        write_whole(self.folder / CANDIDATES, self._table(history.evaluated).to_csv(index=False))
        write_whole(self.folder / FRONT, self._table(history.front).to_csv(index=False))
        spent, best = best_cost_over_time(history, self.summary.whole)
        progress = pd.DataFrame({"evaluations": spent, "best_cost": best})
        write_whole(self.folder / PROGRESS_TABLE, progress.to_csv(index=False))
        if answer := history.answer:
            text = self._method_yaml(answer, history)
            write_whole(self.folder / METHOD, text)
            FOUND_METHODS.mkdir(parents=True, exist_ok=True)
            write_whole(FOUND_METHODS / f"{self._name}.yaml", text)

    def draw(self, history: History) -> None:
        """The pictures: the answer's precisions, and the best cost against what was spent."""
        summary = self.summary
        if answer := history.answer:
            title = f"{self._name}: {summary.line(answer)}"
            precisions = summary.space.by_site(answer.chosen)
            draw_precisions(summary.space, precisions, title).savefig(self.folder / MAP, dpi=150)
        figure = draw_progress(history, summary.whole, summary.cost.unit)
        figure.savefig(self.folder / PROGRESS, dpi=150)

    def text(self, history: History) -> list[str]:
        """How to run the answer and make the report, and the paths of all files, in lines for a terminal."""
        run = wrapped(f"run it: python -m quantlab.run {self._overrides(history)} ...")
        paths = [(label, self.folder / name) for name, label in LABELS.items()]
        study = without_password(storage_url(self.summary.config.search.storage, self.folder))
        return [
            *(run if history.answer else []),
            f"report: python -m quantlab.report {self.folder}",
            *(f"  {label:11}  {path}" for label, path in paths if path.is_file()),
            f"  {'study':11}  {study}",
        ]

    @property
    def _name(self) -> str:
        return self.summary.config.search.name

    def _overrides(self, history: History) -> str:
        """The answer's method and slots as one types them. Slots that a preset chose are named too."""
        if history.answer is None:
            return ""
        config = self.summary.config
        name = self.summary.space.slots(history.answer.chosen)
        settings = next(one.settings for one in config.alternatives if one.name == name)
        own, changed = chosen_groups(), dict(settings)
        kept = [
            f"{slot}={own[slot]}"
            for slot, plain in SLOTS.items()
            if slot not in changed and own.get(slot, plain) != plain
        ]
        slots = [*kept, *overrides_of(settings)]
        return " ".join([f"method=found/{self._name}", *map(shlex.quote, slots)])

    def _method_yaml(self, answer: EvaluatedCandidate, history: History) -> str:
        """The answer as a file of ``conf/method``."""
        summary = self.summary
        method = plain_data(summary.space.method(summary.config.method, answer.chosen))
        method["rules"] = [{"match": rule["match"], "bits": rule["bits"]} for rule in method["rules"]]
        heading = (
            f"# Found by the search {self._name}: {summary.line(answer)};\n# {summary.honesty(history)}.\n"
        )
        overrides = self._overrides(history)
        if " " in overrides:
            heading += f"# It is this with its slots: {overrides}\n"
        if history.decided_nothing:
            heading += "# Nothing was decided: this is everything at its widest.\n"
        if not history.best:
            heading += f"# The goal was not met: {summary.goal()}. This is the closest plan.\n"
        return heading + yaml.safe_dump(method, sort_keys=False)

    def _table(self, candidates: Sequence[EvaluatedCandidate]) -> pd.DataFrame:
        """One row a candidate: its measurement, then each variable's choice, and the alternative's name where
        there are several."""
        names = list(self.summary.space.decided)
        columns = list(self.summary.row(candidates[0])) if candidates else ["number"]
        rows = [self.summary.row(one) | dict(zip(names, one.chosen, strict=True)) for one in candidates]
        return pd.DataFrame(rows, columns=[*columns, *names])
