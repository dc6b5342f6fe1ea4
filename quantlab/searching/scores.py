"""How much each site's quantization matters: four scores, from nearly free to dear."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from quantlab.engines.insert import quantizer
from quantlab.evaluation.diagnosis import site_sqnr_db
from quantlab.evaluation.significance import accuracy_drop_error, spearman_ci95
from quantlab.methods.bits import Precision
from quantlab.network.attention import Function
from quantlab.network.sites import Site
from quantlab.network.taps import tapped
from quantlab.plan.plan import ActivationQuant, QuantPlan
from quantlab.searching.evaluate import Judge, Runner, evaluate
from quantlab.searching.space import Choices, Space
from quantlab.tasks.batching import Batch, on_device, total_rows

SCORES = ("noise_db", "first_order", "kl")  # the more, the worse
MEASURED = "accuracy_drop_points"
MEASURED_ERROR = "accuracy_drop_error_points"  # its standard error, paired over rows
DIVERGED = 1e3  # stands for the divergence of answers that are NaN

Table = dict[tuple[str, Precision], ActivationQuant]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """One row a variable and choice, and what each score cost."""

    table: pd.DataFrame  # variable, choice, noise_db, first_order, kl, and what was measured
    rows: dict[str, int]  # rows that were answered for each score, a backward pass counting as two
    seconds: dict[str, float]

    def of(self, score: str) -> dict[tuple[str, Precision], float]:
        """One score by variable and choice; the widest choice, which nothing is compared with, is not in
        it."""
        columns = self.table[["variable", "choice", score]].itertuples(index=False)
        return {(variable, choice): float(value) for variable, choice, value in columns}

    def correlations(self) -> pd.DataFrame:
        """Spearman's rank correlation of each score with the measured one, and its 95 % interval over the
        variables.

        NaN where one of the two is constant, or there are fewer than four variables.
        """
        rows = []
        for score in SCORES:
            found, low, high = spearman_ci95(self.table[score].to_numpy(), self.table[MEASURED].to_numpy())
            rows.append(
                {
                    "score": score,
                    "spearman": found,
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
    table: Table,
    batches: Sequence[Batch],
    labels: np.ndarray,
    runner: Runner,
) -> Scores:
    """Noise, first-order effect and divergence of every variable at every choice but the widest, it alone.

    ``batches`` and ``labels`` (in the model's classes) are calibration rows; ``runner`` runs candidates on
    them. The model has its weights on their grids.
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
        by_choice = {choice: noise_of(model, space, table, choice, batches) for choice in narrower}
        return [max(by_choice[choice][site.name] for site in v.sites) for v, choice in combinations]

    def first_order() -> list[float]:
        by_choice = {
            choice: first_order_of(model, space.sites, table, choice, batches, labels) for choice in narrower
        }
        return [sum(by_choice[choice][site.name] for site in v.sites) for v, choice in combinations]

    timed("noise_db", count * len(narrower), noise)
    timed("first_order", 3 * count * len(narrower), first_order)
    timed("kl", count * (len(combinations) + 1), lambda: _divergences(runner, space, combinations_of(space)))
    named = {"variable": [v.name for v, _ in combinations], "choice": [choice for _, choice in combinations]}
    return Scores(table=pd.DataFrame({**named, **columns}), rows=rows, seconds=seconds)


def combinations_of(space: Space) -> list[Choices]:
    """For each narrower choice and each variable, the candidate that has it alone; the rest is at its
    widest."""
    wide = space.wide
    return [
        (*wide[:index], choice, *wide[index + 1 :])
        for choice in space.choices[:-1]
        for index in range(len(space.variables))
    ]


def measured(scores: Scores, space: Space, runner: Runner, columns: Sequence[int], judge: Judge) -> Scores:
    """The same with the measured loss of accuracy, one at a time, on all of the runner's rows."""
    start = time.perf_counter()
    wide = evaluate(runner, space.wide, columns, None)
    runner.keep(space.wide)
    base = judge.drop(wide)
    found = [evaluate(runner, chosen, columns, None) for chosen in combinations_of(space)]
    drops = [judge.drop(outcome) - base for outcome in found]
    right = judge.right(wide)
    errors = [
        100 * accuracy_drop_error(right, judge.right(outcome)) if judge.counts_right else np.nan
        for outcome in found
    ]
    return Scores(
        table=scores.table.assign(**{MEASURED: drops, MEASURED_ERROR: errors}),
        rows={**scores.rows, MEASURED: wide.rows * (len(drops) + 1)},
        seconds={**scores.seconds, MEASURED: time.perf_counter() - start},
    )


def noise_of(
    model: PreTrainedModel, space: Space, table: Table, choice: Precision, batches: Sequence[Batch]
) -> dict[str, float]:
    """Minus the SQNR of each site's tensor in dB."""
    plan = QuantPlan(activations=tuple(table[site.name, choice] for site in space.sites))
    return {name: -value for name, value in site_sqnr_db(model, plan, space.sites, batches).items()}


def first_order_of(
    model: PreTrainedModel,
    sites: Sequence[Site],
    table: Table,
    choice: Precision,
    batches: Sequence[Batch],
    labels: np.ndarray,
) -> dict[str, float]:
    """Mean over rows of ``|sum of gradient x error|``: what a site's error changes of each row's loss, to
    first order.

    One forward and one backward pass a batch, in FP32 arithmetic.
    """
    effect = {site.name: 0.0 for site in sites}
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def look(name: str, snap: Function) -> Function:
        def keep(x: Tensor) -> Tensor:
            if not x.requires_grad:
                x = x.detach().requires_grad_()
            x.retain_grad()
            seen[name] = (x, snap(x.detach()) - x.detach())
            return x

        return keep

    taps = {site.tap: look(site.name, quantizer(table[site.name, choice], model.device)) for site in sites}
    with torch.enable_grad(), tapped(model, taps):
        for batch in batches:
            logits = model(**on_device(batch, model.device)).logits
            torch.autograd.backward(_loss(logits, torch.from_numpy(labels[batch.indices]).to(model.device)))
            for name, (x, error) in seen.items():
                if x.grad is not None:
                    effect[name] += float((x.grad * error).flatten(1).sum(1).abs().sum())
            seen.clear()
    return {name: total / total_rows(batches) for name, total in effect.items()}


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum of the rows' losses: each row's gradient is then its own."""
    if logits.shape[-1] == 1:
        return (logits[:, 0] - labels.to(logits.dtype)).square().sum()
    return torch.nn.functional.cross_entropy(logits, labels.long(), reduction="sum")


def _divergences(runner: Runner, space: Space, candidates: Sequence[Choices]) -> list[float]:
    """Mean KL divergence of the answers' distribution from that of everything at its widest, row by row; of a
    regression, the mean squared difference."""
    order = range(len(runner.batches))
    base = dict(runner.run(space.wide, order))
    runner.keep(space.wide)
    return [
        float(
            np.concatenate(
                [divergence(base[number], logits) for number, logits in runner.run(chosen, order)]
            ).mean()
        )
        for chosen in candidates
    ]


def divergence(base: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """KL divergence of each row's answer from the base's, in nats; the squared difference for a
    regression."""
    if base.shape[1] == 1:
        return np.asarray((base - logits)[:, 0].astype(np.float64) ** 2)
    p, q = (torch.from_numpy(x).double().log_softmax(-1) for x in (base, logits))
    return np.asarray((p.exp() * (p - q)).sum(-1).nan_to_num(nan=DIVERGED).numpy())
