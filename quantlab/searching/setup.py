"""From a search's config to what its workers need: all checked before anything is loaded."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from quantlab.engines.insert import InsertActivations, insert_weights
from quantlab.methods.method import plan_site
from quantlab.network.sites import Site
from quantlab.plan.plan import ActivationQuant, QuantPlan, WeightQuant
from quantlab.quant.sketch import Sketch
from quantlab.searching.budget import Budget
from quantlab.searching.costs import Cost, cost_of
from quantlab.searching.evaluate import Judge, Runner, evaluate
from quantlab.searching.history import HeldOut
from quantlab.searching.latency import measured_latencies
from quantlab.searching.scores import Scores, Table, score_sites
from quantlab.searching.search_config import SearchConfig
from quantlab.searching.space import Choices, Space, activation_table, space_of
from quantlab.storage.memo import Memo
from quantlab.tasks.batching import Batch, by_length
from quantlab.trial.material import Material, fp32_predictions, fp32_sketches, load_material
from quantlab.trial.planning import weights_and_sketches
from quantlab.trial.trial import check_trial


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Some of the evaluation rows."""

    numbers: np.ndarray  # (n,), their places among all N
    batches: list[Batch]  # their indices are places among these n


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """A model with its weights on their grids, ready for one candidate's activations after another."""

    config: SearchConfig
    space: Space
    sites: tuple[Site, ...]
    material: Material
    weights: tuple[WeightQuant, ...]
    table: Table
    fixed: dict[str, ActivationQuant]  # sites that are not decided, by name
    insert_activations: InsertActivations
    sketches: Mapping[str, Sketch]  # of every site in the FP32 network
    fp32: (
        np.ndarray | None
    )  # the FP32 model's logits where they are the reference; now its weights are others

    def activations(self, chosen: Choices) -> tuple[ActivationQuant, ...]:
        """A candidate's activations, in the order of a trial's plan."""
        precisions = self.space.by_site(chosen)
        found = (
            self.table[s.name, precisions[s.name]] if s.name in precisions else self.fixed.get(s.name)
            for s in self.sites
        )
        return tuple(item for item in found if item is not None)

    def plan(self, chosen: Choices) -> QuantPlan:
        """A candidate's plan: the one that a trial with its method makes."""
        return QuantPlan(activations=self.activations(chosen), weights=self.weights)

    @cached_property
    def all_rows(self) -> Rows:
        """The evaluation rows in the trial's own batches."""
        return Rows(numbers=np.arange(len(self.material.rows)), batches=self.material.batches)

    @cached_property
    def choosing(self) -> Rows:
        """The evaluation rows that candidates are judged on."""
        held_out = self.config.evaluation.held_out(self.material.rows.labels)
        return self.some_rows(~held_out) if held_out.any() else self.all_rows

    @cached_property
    def held_out(self) -> Rows | None:
        """The evaluation rows that measure the answer alone; None where there are too few to divide."""
        held_out = self.config.evaluation.held_out(self.material.rows.labels)
        return self.some_rows(held_out) if held_out.any() else None

    def some_rows(self, mask: np.ndarray) -> Rows:
        """The evaluation rows that ``mask``, bool (N,), picks, in batches of their own."""
        rows, numbers = self.material.rows, np.flatnonzero(mask)
        data = replace(rows, rows=tuple(rows.rows[i] for i in numbers), labels=rows.labels[numbers])
        size = self.config.evaluation.batch_size
        return Rows(numbers=numbers, batches=by_length(data, self.material.loaded.tokenizer, size))

    def runner(self, rows: Rows | None = None) -> Runner:
        """Runs candidates on some evaluation rows, or on all."""
        return self._runner((rows or self.all_rows).batches)

    def _runner(self, batches: list[Batch]) -> Runner:
        return Runner(
            self.material.model,
            self.insert_activations,
            self.activations,
            self.space,
            batches,
            self.config.search.reuse_mb,
        )

    def scored_rows(self) -> tuple[list[Batch], np.ndarray]:
        """The calibration rows that scores are taken on, and their labels in the model's classes."""
        calibration = replace(self.config.calibration, samples=self.config.search.sensitivity_rows)
        labels = calibration.rows(self.material.train).labels
        if not self.material.task.regression:
            labels = np.array(self.material.loaded.label_columns)[labels]
        return self.material.calibration_batches(calibration), labels

    def scores(self) -> Scores:
        """What each variable's narrowing costs, by the scores, on calibration rows."""
        batches, labels = self.scored_rows()
        return score_sites(
            self.material.model, self.space, self.table, batches, labels, self._runner(batches)
        )

    def judge(self, runner: Runner, rows: Rows | None = None) -> tuple[Judge, int]:
        """Compares with the reference on the runner's rows, and how many that took. Its states are kept for
        reuse."""
        material, numbers = self.material, (rows or self.all_rows).numbers
        if self.fp32 is None:
            logits = evaluate(runner, self.space.wide, material.loaded.label_columns, None).logits
            runner.keep(self.space.wide)
        else:
            logits = self.fp32[numbers]
        return Judge(task=material.task, labels=material.rows.labels[numbers], reference=logits), len(numbers)

    def measured(self, chosen: Choices) -> HeldOut | None:
        """A candidate and its reference on the rows that chose nothing; None where there are no such rows."""
        if self.held_out is None:
            return None
        runner = self.runner(self.held_out)
        judge, rows = self.judge(runner, self.held_out)
        outcome = evaluate(runner, chosen, self.material.loaded.label_columns, None)
        low, high, upper95 = judge.interval(outcome)
        return HeldOut(
            rows=rows,
            metric=judge.metric(outcome),
            drop=judge.drop(outcome),
            low=low,
            high=high,
            upper95=upper95,
        )

    @property
    def budget(self) -> Budget:
        """What the search's budget buys."""
        whole, calibrating = len(self.material.rows), len(self.material.train)
        return Budget.of(self.config.search, self.space, whole, len(self.choosing.numbers), calibrating)

    def cost(self) -> Cost:
        """What candidates cost."""
        if self.config.search.cost == "latency":
            return measured_latencies(self.config, self.material, self.space, self.plan)
        return cost_of(self.config.search.cost, self.space)


def checked(config: SearchConfig, memo: Memo) -> tuple[list[Site], Space]:
    """The sites and the space, before anything is loaded. Raises ValueError or OSError on what cannot be
    right."""
    sites = check_trial(config, memo)
    space = space_of(config.search, sites, config.method, config.bits)
    if config.calibration.through == "quantized":
        raise ValueError(
            "a search needs ranges that do not depend on each other: calibration.through=quantized "
            "takes each from the "
            "sites before it; take fp32 or quantized_weights"
        )
    if config.search.decide == "bound" and config.task.metrics[0] != "accuracy":
        raise ValueError(f"search.decide=bound is for accuracy; {config.task.name}'s first metric is another")
    if config.search.mode == "accuracy":
        _check_affordable(config, space)
    return sites, space


@contextmanager
def bench(config: SearchConfig, memo: Memo) -> Iterator[Bench]:
    """Loads the material, and puts the weights in place until the exit."""
    sites, space = checked(config, memo)
    shared = (config.model, config.task, config.evaluation)
    material = load_material(*shared, memo)
    key = (*shared, *config.calibration.data)
    seen = memo.get("sketches", key, lambda: fp32_sketches(material, config.calibration))
    weights, sketches = weights_and_sketches(config, material, sites, seen)
    specs = {site: config.method.site_spec(site, config.bits) for site in space.fixed}
    fixed = {
        s.name: plan_site(s, spec, sketches[s.name], config.calibration) for s, spec in specs.items() if spec
    }
    table = activation_table(space, config.method, config.bits, sketches, config.calibration)
    fp32 = fp32_predictions(material).logits if config.search.reference == "fp32" else None
    with insert_weights(material.model, weights, config.engine) as insert_activations:
        yield Bench(
            config=config,
            space=space,
            sites=tuple(sites),
            material=material,
            weights=weights,
            table=table,
            fixed=fixed,
            insert_activations=insert_activations,
            sketches=seen,
            fp32=fp32,
        )


def _check_affordable(config: SearchConfig, space: Space) -> None:
    if config.search.cost == "latency":
        return
    least, limit = cost_of(config.search.cost, space).of(space, space.narrow), config.search.max_cost
    assert limit is not None
    if least > limit:
        raise ValueError(
            f"search.max_cost is {limit}, and the cheapest candidate costs {least:g}: none is within it"
        )
