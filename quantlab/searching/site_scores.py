"""Sensitivity scores: how much quantizing one variable's sites changes the answers. Four scores, cheap to
expensive."""

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
from quantlab.network.attention import TensorFunction
from quantlab.network.sites import Site
from quantlab.network.taps import tapped
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import ActivationQuant
from quantlab.searching.evaluate import Runner, evaluate_candidate
from quantlab.searching.judge import Judge
from quantlab.searching.space import Choices, Space
from quantlab.tasks.batching import Batch, on_device, total_rows

SCORES = ("noise_db", "first_order", "kl")  # of each, more is worse
MEASURED = "accuracy_drop_points"
MEASURED_ERROR = "accuracy_drop_error_points"  # its standard error, paired over rows
DIVERGED = 1e3  # nats: the divergence of answers that are NaN

ActivationTable = dict[tuple[str, Precision], ActivationQuant]  # by site and precision


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Scores of each variable at each choice but the widest, and what they cost."""

    table: (
        pd.DataFrame
    )  # columns variable, choice, SCORES, and with_measured_loss adds MEASURED and its error
    rows: dict[str, int]  # answered for each score; a backward pass counts as two
    seconds: dict[str, float]

    def of(self, score: str) -> dict[tuple[str, Precision], float]:
        """One score by variable and choice. The widest choice has none: it is what the others are compared
        with."""
        columns = self.table[["variable", "choice", score]].itertuples(index=False)
        return {(variable, choice): float(value) for variable, choice, value in columns}

    def correlations(self) -> pd.DataFrame:
        """Spearman's rank correlation of each score with the measured loss, and its 95 % interval over the
        variables.

        NaN if one of the two is constant or there are fewer than four variables.
        """
        rows = []
        for score in SCORES:
            rho, low, high = spearman_ci95(self.table[score].to_numpy(), self.table[MEASURED].to_numpy())
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
) -> Scores:
    """Scores each variable at each choice but the widest, all other variables at their widest.

    ``noise_db``: minus the SQNR of the site's own tensor, dB; the worst site of the variable.
    ``first_order``: :func:`first_order_of`, summed over the variable's sites. ``kl``: mean divergence of the
    answers, nats (:func:`divergence`).

    ``batches`` and ``labels`` (the model's class numbers) are calibration rows; ``runner`` runs candidates on
    the same rows. The model's weights are quantized already.
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
    candidates = single_narrowings(space)
    timed("kl", count * (len(combinations) + 1), lambda: _divergences(runner, space, candidates))
    named = {"variable": [v.name for v, _ in combinations], "choice": [choice for _, choice in combinations]}
    return Scores(table=pd.DataFrame({**named, **columns}), rows=rows, seconds=seconds)


def single_narrowings(space: Space) -> list[Choices]:
    """For each narrower choice and each variable: the candidate with this variable at this choice and all
    others at their widest. Variables vary fastest."""
    wide = space.wide
    return [
        (*wide[:index], choice, *wide[index + 1 :])
        for choice in space.choices[:-1]
        for index in range(len(space.variables))
    ]


def with_measured_loss(
    scores: Scores, space: Space, runner: Runner, columns: Sequence[int], judge: Judge
) -> Scores:
    """Adds the measured drop of each narrowing against everything at its widest, on all of the runner's
    rows."""
    start = time.perf_counter()
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
    return Scores(
        table=scores.table.assign(**{MEASURED: drops, MEASURED_ERROR: errors}),
        rows={**scores.rows, MEASURED: wide.rows * (len(drops) + 1)},
        seconds={**scores.seconds, MEASURED: time.perf_counter() - start},
    )


def noise_of(
    model: PreTrainedModel, space: Space, table: ActivationTable, choice: Precision, batches: Sequence[Batch]
) -> dict[str, float]:
    """Minus the SQNR of each site's tensor at this choice, dB."""
    plan = QuantPlan(activations=tuple(table[site.name, choice] for site in space.sites))
    return {name: -value for name, value in site_sqnr_db(model, plan, space.sites, batches).items()}


def first_order_of(
    model: PreTrainedModel,
    sites: Sequence[Site],
    table: ActivationTable,
    choice: Precision,
    batches: Sequence[Batch],
    labels: np.ndarray,
) -> dict[str, float]:
    """What each site's quantization error changes of a row's loss, to first order.

    Mean over rows of ``|sum(dL/dx * (Q(x) - x))|``, with the row's loss L and the site's tensor x. One
    forward and one backward pass a batch, in FP32.
    """
    effect = {site.name: 0.0 for site in sites}
    passed: dict[str, tuple[Tensor, Tensor]] = {}  # this batch's tensor and its error, by site

    def look(name: str, snap: TensorFunction) -> TensorFunction:
        def keep(x: Tensor) -> Tensor:
            if not x.requires_grad:
                x = x.detach().requires_grad_()
            x.retain_grad()
            passed[name] = (x, snap(x.detach()) - x.detach())
            return x

        return keep

    taps = {site.tap: look(site.name, quantizer(table[site.name, choice], model.device)) for site in sites}
    with torch.enable_grad(), tapped(model, taps):
        for batch in batches:
            logits = model(**on_device(batch, model.device)).logits
            torch.autograd.backward(_loss(logits, batch, labels))
            for name, (x, error) in passed.items():
                if x.grad is not None:
                    effect[name] += float((x.grad * error).flatten(1).sum(1).abs().sum())
            passed.clear()
    return {name: total / total_rows(batches) for name, total in effect.items()}


def _loss(logits: Tensor, batch: Batch, labels: np.ndarray) -> Tensor:
    """The sum of the rows' losses: the gradient with respect to a row's tensor is then that row's own."""
    if batch.predicted is not None:
        return _tokens_loss(logits, batch)
    own = torch.from_numpy(labels[batch.indices]).to(logits.device)
    if logits.shape[-1] == 1:
        return (logits[:, 0] - own.to(logits.dtype)).square().sum()
    return torch.nn.functional.cross_entropy(logits, own.long(), reduction="sum")


def _tokens_loss(logits: Tensor, batch: Batch) -> Tensor:
    """The sum over rows of the mean loss of a row's predicted tokens, its last ones, nats."""
    assert batch.predicted is not None
    ids, lengths = batch.inputs["input_ids"].to(logits.device), batch.inputs["attention_mask"].sum(1)
    losses = [
        torch.nn.functional.cross_entropy(row[end - count - 1 : end - 1], own[end - count : end])
        for row, own, end, count in zip(
            logits, ids, lengths.tolist(), batch.predicted[:, 0].astype(int).tolist(), strict=True
        )
    ]
    return torch.stack(losses).sum()


def _divergences(runner: Runner, space: Space, candidates: Sequence[Choices]) -> list[float]:
    """Mean over rows of each candidate's divergence from everything at its widest."""
    order, predicted = range(len(runner.batches)), runner.batches[0].predicted is not None
    base = dict(runner.run(space.wide, order))
    runner.keep(space.wide)
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
