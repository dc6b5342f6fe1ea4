"""Sensitivity scores: how much quantizing one variable's sites changes the answers. Four scores, cheap to
expensive."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from quantlab.evaluation.diagnosis import site_sqnr_db
from quantlab.evaluation.significance import accuracy_drop_error, spearman_ci95
from quantlab.methods.bits import Precision
from quantlab.plan.plan import QuantPlan
from quantlab.searching.alternatives import OWN
from quantlab.searching.evaluate import Runner, evaluate_candidate
from quantlab.searching.first_order import ActivationTable, Transforms, first_order_of
from quantlab.searching.judge import Judge
from quantlab.searching.space import SLOTS, Choices, Space
from quantlab.tasks.batching import Batch, total_rows

SCORES = ("noise_db", "first_order", "kl")  # of each, more is worse
DIVERGED = 1e3  # nats: the divergence of answers that are NaN


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Scores of each variable at each choice but the widest, and what they cost."""

    # Columns variable, choice, SCORES, and with_measured_loss adds two. The first one is slots where there
    # are several alternatives.
    table: pd.DataFrame
    rows: dict[str, int]  # answered for each score; a backward pass counts as two
    seconds: dict[str, float]
    measured: str = ""  # the column of the measured loss, accuracy_drop_points; "" where there is none

    @property
    def measured_error(self) -> str:
        """The column of the measured loss's standard error, paired over rows."""
        return f"{self.measured}_error"

    def of(self, score: str, slots: str | None = None) -> dict[tuple[str, Precision], float]:
        """One score by variable and choice, of the alternative ``slots``. The widest choice has none: it is
        what the others are compared with."""
        table = self.table if SLOTS not in self.table else self.table[self.table[SLOTS] == slots]
        columns = table[["variable", "choice", score]].itertuples(index=False)
        return {(variable, choice): float(value) for variable, choice, value in columns}

    def correlations(self) -> pd.DataFrame:
        """Spearman's rank correlation of each score with the measured loss, and its 95 % interval over the
        variables.

        NaN if one of the two is constant or there are fewer than four variables.
        """
        rows = []
        for score in SCORES:
            rho, low, high = spearman_ci95(self.table[score].to_numpy(), self.table[self.measured].to_numpy())
            rows.append(
                {
                    "score": score,
                    "spearman": rho,
                    "ci95_low": low,
                    "ci95_high": high,
                    "rows": self.rows[score],
                    "seconds": self.seconds[score],
                }
            )
        return pd.DataFrame(rows)


def score_sites(
    model: PreTrainedModel,
    space: Space,
    table: ActivationTable,
    batches: Sequence[Batch],
    labels: np.ndarray,
    runner: Runner,
    slots: str = OWN,
    transforms: Transforms = (),
) -> Scores:
    """Scores each variable at each choice but the widest, all other variables at their widest.

    ``noise_db``: minus the SQNR of the site's own tensor, dB; the worst site of the variable.
    ``first_order``: :func:`first_order_of`, summed over the variable's sites. ``kl``: mean divergence of the
    answers, nats (:func:`divergence`).

    ``batches`` and ``labels`` (the model's class numbers) are calibration rows; ``runner`` runs candidates on
    the same rows. The model's weights are quantized already, as the alternative ``slots`` says, whose bases
    are ``transforms``.
    """
    rows, seconds = {}, {}
    combinations = [(v, choice) for choice in space.choices[:-1] for v in space.variables]
    columns: dict[str, list[float]] = {}

    def timed(name: str, answered: int, values: Callable[[], list[float]]) -> None:
        start = time.perf_counter()
        columns[name] = values()
        rows[name], seconds[name] = answered, time.perf_counter() - start

    count, narrower = total_rows(batches), space.choices[:-1]

    def noise() -> list[float]:
        by_choice = {
            choice: noise_of(model, space, table, choice, batches, transforms) for choice in narrower
        }
        return [max(by_choice[choice][site.name] for site in v.sites) for v, choice in combinations]

    def first_order() -> list[float]:
        by_choice = {
            choice: first_order_of(model, space.sites, table, choice, batches, labels, transforms)
            for choice in narrower
        }
        return [sum(by_choice[choice][site.name] for site in v.sites) for v, choice in combinations]

    timed("noise_db", count * len(narrower), noise)
    timed("first_order", 3 * count * len(narrower), first_order)
    candidates, wide = single_narrowings(space, slots), space.with_slots(space.precisions(space.wide), slots)
    timed("kl", count * (len(combinations) + 1), lambda: _divergences(runner, wide, candidates))
    named: dict[str, object] = {SLOTS: slots} if space.decides_slots else {}
    named |= {"variable": [v.name for v, _ in combinations], "choice": [choice for _, choice in combinations]}
    return Scores(table=pd.DataFrame({**named, **columns}), rows=rows, seconds=seconds)


def joined(scores: Sequence[Scores]) -> Scores:
    """The scores of several alternatives as one table, and the sums of what they cost."""
    first = scores[0]
    return Scores(
        table=pd.concat([one.table for one in scores], ignore_index=True),
        rows={name: sum(one.rows[name] for one in scores) for name in first.rows},
        seconds={name: sum(one.seconds[name] for one in scores) for name in first.seconds},
    )


def single_narrowings(space: Space, slots: str = OWN) -> list[Choices]:
    """For each narrower choice and each variable: the candidate with this variable at this choice and all
    others at their widest, of the alternative ``slots``. Variables vary fastest."""
    wide = space.precisions(space.wide)
    return [
        space.with_slots((*wide[:index], choice, *wide[index + 1 :]), slots)
        for choice in space.choices[:-1]
        for index in range(len(space.variables))
    ]


def with_measured_loss(
    scores: Scores, space: Space, runner: Runner, columns: Sequence[int], judge: Judge
) -> Scores:
    """Adds the measured loss of each narrowing against everything at its widest, on all of the runner's
    rows."""
    start, name = time.perf_counter(), f"{judge.score.name}_{judge.score.loss_names.value}"
    wide = evaluate_candidate(runner, space.wide, columns, None)
    runner.keep(space.wide)
    base = judge.drop(wide)
    narrowed = [evaluate_candidate(runner, chosen, columns, None) for chosen in single_narrowings(space)]
    drops = [judge.drop(outcomes) - base for outcomes in narrowed]
    right = judge.right(wide)
    errors = [
        100 * accuracy_drop_error(right, judge.right(outcomes)) if judge.counts_right else np.nan
        for outcomes in narrowed
    ]
    measured = replace(
        scores,
        measured=name,
        rows={**scores.rows, name: wide.rows * (len(drops) + 1)},
        seconds={**scores.seconds, name: time.perf_counter() - start},
    )
    return replace(measured, table=scores.table.assign(**{name: drops, measured.measured_error: errors}))


def noise_of(
    model: PreTrainedModel,
    space: Space,
    table: ActivationTable,
    choice: Precision,
    batches: Sequence[Batch],
    transforms: Transforms = (),
) -> dict[str, float]:
    """Minus the SQNR of each site's tensor at this choice, dB."""
    activations = tuple(table[site.name, choice] for site in space.sites)
    plan = QuantPlan(activations=activations, transforms=transforms)
    return {name: -value for name, value in site_sqnr_db(model, plan, space.sites, batches).items()}


def _divergences(runner: Runner, wide: Choices, candidates: Sequence[Choices]) -> list[float]:
    """Mean over rows of each candidate's divergence from ``wide``, everything at its widest."""
    order, predicted = range(len(runner.batches)), runner.batches[0].predicted is not None
    base = dict(runner.run(wide, order))
    runner.keep(wide)
    return [
        float(
            np.concatenate(
                [divergence(base[number], logits, predicted) for number, logits in runner.run(chosen, order)]
            ).mean()
        )
        for chosen in candidates
    ]


def divergence(base: np.ndarray, logits: np.ndarray, predicted: bool = False) -> np.ndarray:
    """KL(base || candidate) of each row's softmax, nats, (rows,); for a regression the squared difference.

    Where tokens are ``predicted``, the magnitude of the change of a row's negative log-likelihood, nats a
    token of a window: the distributions over a vocabulary are not kept.
    """
    if predicted:
        counts = base[:, 1] if base.shape[1] > 2 else 1.0
        return np.asarray(np.abs(np.nan_to_num((logits - base)[:, 0] / counts, nan=DIVERGED)))
    if base.shape[1] == 1:
        return np.asarray((base - logits)[:, 0].astype(np.float64) ** 2)
    p, q = (torch.from_numpy(x).double().log_softmax(-1) for x in (base, logits))
    return np.asarray((p.exp() * (p - q)).sum(-1).nan_to_num(nan=DIVERGED).numpy())
