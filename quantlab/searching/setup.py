"""From a search's config to a model that candidates can run on. All settings are checked before anything is
loaded."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from quantlab.network.sites import Site
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import ActivationQuant
from quantlab.quant.sketch import Sketch
from quantlab.searching.budget import Budget
from quantlab.searching.costs import Cost, cost_of
from quantlab.searching.evaluate import Runner, evaluate_candidate
from quantlab.searching.first_order import ActivationTable
from quantlab.searching.judge import Judge, Measurement
from quantlab.searching.latency import measured_latencies
from quantlab.searching.prepared_slots import PreparedSlots, WeightsInTurn, are_plain, check_slots
from quantlab.searching.search_config import SearchConfig
from quantlab.searching.site_scores import Scores, joined, score_sites
from quantlab.searching.space import Choices, Space, space_of
from quantlab.storage.memo import Memo
from quantlab.tasks.batching import Batch, by_length
from quantlab.tasks.scores import SCORES, Kind
from quantlab.trial.config import check_trial
from quantlab.trial.material import Material, fp32_predictions, fp32_sketches, load_material
from quantlab.trial.planning import trial_plan


@dataclass(frozen=True, kw_only=True, eq=False)
class RowSelection:
    """Some of the evaluation rows."""

    numbers: np.ndarray  # (n,), positions among all N rows
    batches: list[Batch]  # their indices are positions among these n


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedModel:
    """A model on which candidates are inserted one after the other: weights of one alternative at a time."""

    config: SearchConfig
    space: Space
    sites: tuple[Site, ...]
    material: Material
    slots: Mapping[str, PreparedSlots]  # by the name of the alternative
    weights: WeightsInTurn
    sketches: Mapping[str, Sketch]  # of every site in the FP32 network
    fp32: np.ndarray | None  # logits of the FP32 model, (N, classes), where it is the reference

    @property
    def table(self) -> ActivationTable:
        """The quantizers that candidates of the first alternative choose from."""
        return self.slots[self.space.alternatives[0]].table

    @property
    def base(self) -> QuantPlan:
        """The plan of the first alternative, without activations."""
        return self.slots[self.space.alternatives[0]].base

    def activations(self, chosen: Choices) -> tuple[ActivationQuant, ...]:
        """A candidate's activation quantizers, in the order of a trial's plan."""
        precisions, slots = self.space.by_site(chosen), self.slots[self.space.slots(chosen)]
        quantizers = (
            slots.table[s.name, precisions[s.name]] if s.name in precisions else slots.fixed.get(s.name)
            for s in self.sites
        )
        return tuple(one for one in quantizers if one is not None)

    def plan(self, chosen: Choices) -> QuantPlan:
        """A candidate's plan. It is that of a trial with the candidate's method and slots, unless these look
        at the grids of activations (:meth:`trial_plan`)."""
        return replace(self.slots[self.space.slots(chosen)].base, activations=self.activations(chosen))

    def trial_plan(self, chosen: Choices) -> QuantPlan:
        """The plan that a trial with the candidate's method and slots makes."""
        config = self.config.of(self.space.slots(chosen))
        if are_plain(config):
            return self.plan(chosen)
        self.weights.release()
        trial = replace(config, method=self.space.method(config.method, chosen))
        return trial_plan(trial, self.material, self.sites, self.sketches)[0]

    def insert(self, chosen: Choices) -> AbstractContextManager[object]:
        """Quantizes the model as a candidate says, until the exit."""
        return self.weights.of(self.slots[self.space.slots(chosen)].base)(self.activations(chosen))

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
        return Runner(self.material.model, self.insert, self.space, batches, self.config.search.reuse_mb)

    def scored_rows(self) -> tuple[list[Batch], np.ndarray]:
        """Batches of the calibration rows for the scores, and their labels as the model's class numbers."""
        calibration = replace(self.config.calibration, samples=self.config.search.sensitivity_rows)
        labels = calibration.rows(self.material.train).labels
        if self.material.task.kind is Kind.CLASSES:
            labels = np.array(self.material.loaded.label_columns)[labels]
        return self.material.calibration_batches(calibration), labels

    def scores(self) -> Scores:
        """Scores every variable on the calibration rows, in each alternative."""
        batches, labels = self.scored_rows()

        def of(name: str, slots: PreparedSlots) -> Scores:
            self.weights.of(slots.base)
            transforms, runner = slots.base.transforms, self._runner(batches)
            shared = (self.material.model, self.space, slots.table, batches, labels, runner)
            return score_sites(*shared, name, transforms)

        return joined([of(name, slots) for name, slots in self.slots.items()])

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
        """Measures a candidate, by the plan of its trial, against the reference on the rows that chose
        nothing; None without such rows."""
        if self.held_out is None:
            return None
        runner = self.runner(self.held_out)
        judge, _ = self.judge(runner, self.held_out)
        plan = self.trial_plan(chosen)
        base = self.slots[self.space.slots(chosen)].base
        if replace(plan, activations=()) != base:

            def insert(_: Choices) -> AbstractContextManager[object]:
                return self.weights.of(plan)(plan.activations)

            runner = Runner(self.material.model, insert, self.space, self.held_out.batches, 0)
        return judge.measure(evaluate_candidate(runner, chosen, self.label_columns, None))

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
    config.evaluation.require_all_rows("what compares quantizations")
    sites = check_trial(config, memo)
    space = space_of(config.search, sites, config.method, config.bits)
    if config.calibration.through == "quantized":
        raise ValueError(
            "a search needs ranges that do not depend on each other, but calibration.through=quantized "
            "calibrates each site behind the quantized sites before it: take fp32 or quantized_weights"
        )
    for name in space.alternatives:
        check_slots(config.of(name), sites, space)
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
    shared = (config.trained, config.task, config.evaluation)
    material = load_material(*shared, memo)
    key = (*shared, *config.calibration.observation_key)
    of_fp32 = memo.get("sketches", key, lambda: fp32_sketches(material, config.calibration))
    slots = {
        name: PreparedSlots.of(config.of(name), material, sites, space, of_fp32)
        for name in space.alternatives
    }
    fp32 = fp32_predictions(material).logits if config.search.reference == "fp32" else None
    with WeightsInTurn(material.model, config.engine) as weights:
        weights.of(slots[space.alternatives[0]].base)
        yield PreparedModel(
            config=config,
            space=space,
            sites=tuple(sites),
            material=material,
            slots=slots,
            weights=weights,
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
