"""Searches on tiny models with planted outliers, so that the sites that need 16 bits are known.

Planted: in some layers one channel of ``ffn.mid`` is enormous at one token in a hundred, and the next Linear
ignores it. In FP32 it changes no answer; in 8 bits its range leaves the other channels one or two levels. The
labels are the FP32 model's own answers, half of them of each class.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from tiny import tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from quantlab.cli.conf_dir import CONF
from quantlab.methods.bits import Precision
from quantlab.network.checkpoint import quiet
from quantlab.network.sites import Site
from quantlab.network.taps import ModuleOutput
from quantlab.searching.costs import Cost, cost_of
from quantlab.searching.evaluate import Runner
from quantlab.searching.history import EvaluatedCandidate
from quantlab.searching.judge import Measurement
from quantlab.searching.search_config import Search, SearchConfig
from quantlab.searching.setup import PreparedModel, prepared_model
from quantlab.searching.space import Choices, Space, Variable
from quantlab.storage.memo import Memo
from quantlab.sweeping.run_config import RunConfig
from quantlab.trial.result import TrialResult
from quantlab.trial.trial import run_trial

CHANNEL, ROWS, BATCH = 5, 64, 8
PLANTED = ("0.ffn.mid", "1.ffn.mid")
SETTINGS = {
    "name": "tiny",
    "sites": ("*",),
    "choices": ("int8", "fp16"),
    "group_by": "site",
    "mode": "cost",
    "max_drop": 2.0,
    "max_cost": None,
    "decide": "estimate",
    "reference": "all16",
    "cost": "sites16",
    "budget": 30,
    "trials": None,
    "sampler": "random",
    "seeded": True,
    "sensitivity_rows": 8,
    "prune_p": 0.02,
    "reuse_mb": 64,
    "seed": 0,
    "storage": None,
    "heartbeat_s": 30,
}

MakeLab = Callable[..., "SearchLab"]


def search_of(**settings: object) -> Search:
    """Search settings: those given, and small values for the others."""
    return Search(**{**SETTINGS, **settings})  # type: ignore[arg-type]


def space_named(names: Sequence[str], choices: Sequence[Precision]) -> Space:
    """A space of these sites, one a variable, without a model."""
    sites = [Site(name=name, channels=4, made_at=ModuleOutput(name)) for name in names]
    return Space(
        variables=tuple(Variable(name=s.name, sites=(s,)) for s in sites), choices=tuple(choices), fixed=()
    )


def site_costs(space: Space) -> Cost:
    """The cost ``sites16``."""
    return cost_of("sites16", space)


def evaluated_candidate(
    chosen: Choices,
    cost: float,
    feasible: bool,
    number: int = 0,
    complete: bool = True,
    drop: float = 0.0,
    rows: int = 8,
) -> EvaluatedCandidate:
    """A candidate with invented measurements."""
    return EvaluatedCandidate(
        number=number,
        chosen=chosen,
        cost=cost,
        feasible=feasible,
        complete=complete,
        measured=Measurement(rows=rows, metric=0.5, drop=drop, low=0.0, high=0.0, upper95=0.0),
        right="ff",
        origin="here",
    )


@dataclass(frozen=True)
class SearchLab:
    """Overrides that select a tiny model and its data, and a small search."""

    overrides: tuple[str, ...]

    def config(self, *more: str) -> SearchConfig:
        return self._composed("search", *more)  # type: ignore[return-value]

    def prepared(self, *more: str) -> "Opened":
        return Opened(self.config(*more))

    def trial(self, *more: str) -> TrialResult:
        return run_trial(
            self._composed("config", *(o for o in self.overrides if "search." not in o), *more), Memo()
        )

    def _composed(self, name: str, *more: str) -> RunConfig:
        overrides = self.overrides if name == "search" else ()
        with initialize_config_dir(CONF, version_base="1.3"):
            config: RunConfig = instantiate(compose(name, [*overrides, *more]))
        return config


class Opened(ExitStack):
    """The prepared model while the block lasts."""

    def __init__(self, config: SearchConfig):
        super().__init__()
        self.config = config

    def __enter__(self) -> PreparedModel:  # type: ignore[override]
        super().__enter__()
        return self.enter_context(prepared_model(self.config, Memo()))


def candidates(space: Space, count: int, seed: int = 0) -> list[Choices]:
    """Random candidates: the first has few narrow sites, the last nearly all."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for index in range(count):
        share = (index + 1) / (count + 1)
        narrow = (torch.rand(len(space.variables), generator=generator) < share).tolist()
        drawn.append(tuple(space.choices[0] if is_narrow else space.choices[-1] for is_narrow in narrow))
    return drawn


def answers(runner: Runner, chosen: Choices) -> list[Tensor]:
    """A candidate's logits, batch by batch."""
    return [torch.from_numpy(logits) for _, logits in runner.run(chosen, range(len(runner.batches)))]


def planted_model(
    layers: Iterable[int], texts: tuple[list[str], list[str]], tokenize: Callable
) -> PreTrainedModel:  # type: ignore[type-arg]
    """A tiny model with an outlier channel planted in these layers; half of its answers are of each class."""
    model = tiny_model()
    inputs = tokenize(*texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
    for index in layers:
        layer = model.bert.encoder.layer[index]
        seen: list[Tensor] = []
        handle = layer.intermediate.register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.append(inputs[0])
        )
        model(**inputs)
        handle.remove()
        x = seen[0][inputs["attention_mask"].bool()]
        direction = x[0] / x[0].norm()
        along = (x @ direction).sort().values
        rare, most = along[int(0.99 * len(along))], along[-1]
        layer.intermediate.dense.weight[CHANNEL] = direction * 2000 / (most - rare)
        layer.intermediate.dense.bias[CHANNEL] = -rare * 2000 / (most - rare)
        layer.output.dense.weight *= 3
        layer.output.dense.weight[:, CHANNEL] = 0
    model.classifier.bias.sub_(model(**inputs).logits.median(0).values)
    return model


@pytest.fixture(scope="session")
def make_lab(tmp_path_factory: pytest.TempPathFactory) -> MakeLab:
    """``make_lab(layers=(0, 1))`` returns a lab on a model with outliers planted in these layers."""
    from conftest import qnli_rows, tokenizer

    def make(layers: tuple[int, ...] = (0, 1)) -> SearchLab:
        folder = tmp_path_factory.mktemp("planted")
        frames = {"validation": qnli_rows(ROWS, seed=1), "train": qnli_rows(32, seed=2)}
        texts = {split: (list(frame["question"]), list(frame["sentence"])) for split, frame in frames.items()}
        with torch.inference_mode(), quiet():
            model = planted_model(layers, texts["validation"], tokenizer())
            model.config.id2label = {0: "entailment", 1: "not_entailment"}
            model.config.label2id = {"entailment": 0, "not_entailment": 1}
            for split, frame in frames.items():
                inputs = tokenizer()(
                    *texts[split], padding=True, truncation=True, max_length=32, return_tensors="pt"
                )
                frame["label"] = model(**inputs).logits.argmax(-1).numpy()
                frame.to_parquet(folder / f"{split}.parquet")
            model.save_pretrained(folder)
            tokenizer().save_pretrained(folder)
        return SearchLab(
            (
                "model=hf",
                f"model.path={folder}",
                "task=qnli",
                f"task.data_dir={folder}",
                "task.max_length=32",
                f"evaluation.batch_size={BATCH}",
                "calibration.samples=32",
                "profile=off",
                "tracking=off",
                "bits.weight_granularity=channel",
                "search.name=tiny",
                "search.sensitivity_rows=16",
                "search.max_drop=2",
                "search.sampler=random",
                "search.budget=30",
                "search.reuse_mb=64",
            )
        )

    labs: dict[tuple[int, ...], SearchLab] = {}
    return lambda layers=(0, 1): labs.setdefault(layers, labs.get(layers) or make(layers))


@pytest.fixture
def planted(make_lab: MakeLab) -> SearchLab:
    """A lab with outliers in both layers: two sites must be wide."""
    return make_lab()
