"""From a search's config to a model that candidates can run on. All settings are checked before anything is
loaded."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from quantlab.engines.insert import InsertActivations, insert_weights
from quantlab.methods.method import plan_site
from quantlab.network.sites import Site
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import ActivationQuant
from quantlab.quant.sketch import Sketch
from quantlab.searching.budget import Budget
from quantlab.searching.costs import Cost, cost_of
from quantlab.searching.evaluate import Runner, evaluate_candidate
from quantlab.searching.judge import Judge, Measurement
from quantlab.searching.latency import measured_latencies
from quantlab.searching.search_config import SearchConfig
from quantlab.searching.site_scores import ActivationTable, Scores, score_sites
from quantlab.searching.space import Choices, Space, activation_table, space_of
from quantlab.storage.memo import Memo
from quantlab.tasks.batching import Batch, by_length
from quantlab.tasks.scores import SCORES, Kind
from quantlab.transforms.transform import Transform
from quantlab.trial.config import check_trial
from quantlab.trial.material import Material, fp32_predictions, fp32_sketches, load_material
from quantlab.trial.planning import plan_of_weights


@dataclass(frozen=True, kw_only=True, eq=False)
class RowSelection:
    """Some of the evaluation rows."""

    numbers: np.ndarray  # (n,), positions among all N rows
    batches: list[Batch]  # their indices are positions among these n


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedModel:
    """A model with quantized weights, on which candidates' activation quantizers are inserted one after the
    other."""

    config: SearchConfig
    space: Space
    sites: tuple[Site, ...]
    material: Material
    base: QuantPlan  # without activations
    table: ActivationTable
    fixed: dict[str, ActivationQuant]  # of sites that the search does not decide, by name
    insert_activations: InsertActivations
    sketches: Mapping[str, Sketch]  # of every site in the FP32 network
    fp32: np.ndarray | None  # logits of the FP32 model, (N, classes), where it is the reference

    def activations(self, chosen: Choices) -> tuple[ActivationQuant, ...]:
        """A candidate's activation quantizers, in the order of a trial's plan."""
        precisions = self.space.by_site(chosen)
        quantizers = (
            self.table[s.name, precisions[s.name]] if s.name in precisions else self.fixed.get(s.name)
            for s in self.sites
        )
        return tuple(one for one in quantizers if one is not None)

    def plan(self, chosen: Choices) -> QuantPlan:
        """A candidate's plan, equal to that of a trial with the candidate's method."""
        return replace(self.base, activations=self.activations(chosen))

    @property
    def label_columns(self) -> list[int]:
        """The model's classes in the task's order of labels."""
        return list(self.material.loaded.label_columns)

    @cached_property
    def all_rows(self) -> RowSelection:
        """The evaluation rows in the trial's own batches."""
        return RowSelection(numbers=np.arange(len(self.material.rows)), batches=self.material.batches)

    @cached_property
    def choosing(self) -> RowSelection:
        """The evaluation rows that candidates are judged on."""
        held_out = self.config.evaluation.held_out(self.material.rows.labels, self.material.clusters)
        return self.some_rows(~held_out) if held_out.any() else self.all_rows

    @cached_property
    def held_out(self) -> RowSelection | None:
        """The evaluation rows that measure only the answer; None if there are too few rows to divide."""
        held_out = self.config.evaluation.held_out(self.material.rows.labels, self.material.clusters)
        return self.some_rows(held_out) if held_out.any() else None

    def some_rows(self, mask: np.ndarray) -> RowSelection:
        """The evaluation rows where ``mask``, bool (N,), is True, in new batches."""
        numbers = np.flatnonzero(mask)
        data = self.material.rows.take(numbers)
        size = self.config.evaluation.batch_size
        return RowSelection(numbers=numbers, batches=by_length(data, self.material.loaded.processor, size))

    def runner(self, rows: RowSelection | None = None) -> Runner:
        """Runs candidates on these evaluation rows, by default on all."""
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
        """Batches of the calibration rows for the scores, and their labels as the model's class numbers."""
        calibration = replace(self.config.calibration, samples=self.config.search.sensitivity_rows)
        labels = calibration.rows(self.material.train).labels
        if self.material.task.kind is Kind.CLASSES:
            labels = np.array(self.material.loaded.label_columns)[labels]
        return self.material.calibration_batches(calibration), labels

    def scores(self) -> Scores:
        """Scores every variable on the calibration rows."""
        batches, labels = self.scored_rows()
        return score_sites(
            self.material.model, self.space, self.table, batches, labels, self._runner(batches)
        )

    def judge(self, runner: Runner, rows: RowSelection | None = None) -> tuple[Judge, int]:
        """The judge of the runner's rows, and the number of rows that the reference answered for it.

        The runner keeps the reference ``all16``, so that candidates start from it.
        """
        material, numbers = self.material, (rows or self.all_rows).numbers
        if self.fp32 is None:
            logits = evaluate_candidate(runner, self.space.wide, self.label_columns, None).logits
            runner.keep(self.space.wide)
        else:
            logits = self.fp32[numbers]
        return Judge(task=material.task, labels=material.rows.labels[numbers], reference=logits), len(numbers)

    def measure_held_out(self, chosen: Choices) -> Measurement | None:
        """Measures a candidate against the reference on the rows that chose nothing; None without such
        rows."""
        if self.held_out is None:
            return None
        runner = self.runner(self.held_out)
        judge, _ = self.judge(runner, self.held_out)
        columns = self.label_columns
        return judge.measure(evaluate_candidate(runner, chosen, columns, None))

    @property
    def budget(self) -> Budget:
        """How the search spends its budget."""
        whole, calibrating = len(self.material.rows), len(self.material.train)
        return Budget.of(self.config.search, self.space, whole, len(self.choosing.numbers), calibrating)

    def cost(self) -> Cost:
        """The cost of candidates; with ``search.cost=latency`` it is measured or read from the cache."""
        if self.config.search.cost == "latency":
            return measured_latencies(self.config, self.material, self.space, self.plan)
        return cost_of(self.config.search.cost, self.space)


def checked_space(config: SearchConfig, memo: Memo) -> tuple[list[Site], Space]:
    """The sites and the space, without loading anything. Raises ValueError or OSError for settings that
    contradict each other."""
    sites = check_trial(config, memo)
    space = space_of(config.search, sites, config.method, config.bits)
    if config.calibration.through == "quantized":
        raise ValueError(
            "a search needs ranges that do not depend on each other, but calibration.through=quantized "
            "calibrates each site behind the quantized sites before it: take fp32 or quantized_weights"
        )
    if type(config.transform) is not Transform:
        raise ValueError(
            "a search scores and compares sites in the network's own basis, but transform is "
            f"{type(config.transform).__name__}: take transform=none"
        )
    score = SCORES[config.task.metrics[0]]
    if config.search.decide == "bound" and score.right_of is None and not score.relative:
        raise ValueError(f"search.decide=bound is for accuracy; {config.task.name}'s first metric is another")
    if config.search.mode == "accuracy":
        _check_affordable(config, space)
    return sites, space


@contextmanager
def prepared_model(config: SearchConfig, memo: Memo) -> Iterator[PreparedModel]:
    """Loads the model, quantizes its weights until the exit, and prepares all activation quantizers."""
    sites, space = checked_space(config, memo)
    shared = (config.model, config.task, config.evaluation)
    material = load_material(*shared, memo)
    key = (*shared, *config.calibration.observation_key)
    of_fp32 = memo.get("sketches", key, lambda: fp32_sketches(material, config.calibration))
    base, sketches, splits = plan_of_weights(config, material, sites, of_fp32)
    specs = {site: config.method.site_spec(site, config.bits) for site in space.fixed}
    fixed = {
        s.name: plan_site(s, spec, sketches[s.name], config.calibration, splits.get(s.name))
        for s, spec in specs.items()
        if spec
    }
    table = activation_table(space, config.method, config.bits, sketches, config.calibration, splits)
    fp32 = fp32_predictions(material).logits if config.search.reference == "fp32" else None
    with insert_weights(material.model, base, config.engine) as insert_activations:
        yield PreparedModel(
            config=config,
            space=space,
            sites=tuple(sites),
            material=material,
            base=base,
            table=table,
            fixed=fixed,
            insert_activations=insert_activations,
            sketches=of_fp32,
            fp32=fp32,
        )


def _check_affordable(config: SearchConfig, space: Space) -> None:
    if config.search.cost == "latency":
        return
    least, limit = cost_of(config.search.cost, space).of(space, space.narrow), config.search.max_cost
    assert limit is not None
    if least > limit:
        raise ValueError(f"search.max_cost={limit} is less than the cheapest candidate costs, {least:g}")
