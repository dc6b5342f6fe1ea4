"""What searching costs and survives: ``python tests/benchmarks/search.py <measurement> [--shared <folder>]``.

``compare``  quantlab's search beside plain TPE, random search and greedy one at a time, on one budget and
             several seeds: the best cost against evaluations spent, as a table and a picture
``reuse``    rows a second with hidden states reused, with pruning, with both and with neither: thinning by
             single sites
``kills``    4 workers on one study of 60 candidates, one SIGKILLed at a random moment 20 times, then ended

``compare`` and ``reuse`` take minilm-qnli from ``--shared``; ``kills`` tiny random models, through the
command line.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import optuna
import pandas as pd
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState
from servers import postgres
from sqlalchemy.exc import SQLAlchemyError

from quantlab.cli.catalogue import register
from quantlab.cli.conf_dir import CONF
from quantlab.machine.allocator import keep_freed_memory
from quantlab.results.plots import COLOURS
from quantlab.searching.evaluate import Runner, evaluate_candidate
from quantlab.searching.judge import Judge
from quantlab.searching.proposals import least_loss
from quantlab.searching.search_config import SearchConfig
from quantlab.searching.search_pictures import best_cost_over_time
from quantlab.searching.search_run import make_worker
from quantlab.searching.setup import PreparedModel, prepared_model
from quantlab.searching.study import open_study
from quantlab.storage.memo import Memo
from quantlab.sweeping.sweep import in_hydra
from sweeps import ONE_THREAD, tiny

WORKERS, KILLS, CANDIDATES = 4, 20, 60
BASE = 10
SCORED_AT_LEAST, SCORED = 8, 50  # one of 50 rows is for the scores, as 32 are of 1,600
PLAIN = {"seeded": False, "prune_p": 0.0, "reuse_mb": 0}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measurement", choices=["compare", "reuse", "kills"])
    parser.add_argument("--shared", type=Path)
    parser.add_argument("--rows", type=int, default=1600)
    parser.add_argument(
        "--budget", type=int, default=200, help="evaluations of the whole set, of the plain searches"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--storage", choices=["sqlite", "postgres"], default="sqlite")
    arguments = parser.parse_args()
    keep_freed_memory()
    if arguments.measurement == "kills":
        kills(arguments.storage == "postgres")
        return
    if arguments.shared is None:
        parser.error("it needs --shared, the folder of models/minilm-qnli and data/glue/qnli")
    config = configured(arguments.shared.absolute(), arguments.rows)
    with (
        prepared_model(config, Memo()) as prepared,
        tempfile.TemporaryDirectory(prefix="quantlab-") as folder,
    ):
        if arguments.measurement == "compare":
            compare(prepared, Path(folder), arguments.budget, arguments.seeds)
        else:
            reuse(prepared)


def configured(shared: Path, rows: int) -> SearchConfig:
    register("search")
    with initialize_config_dir(CONF, version_base="1.3"):
        return instantiate(
            compose(
                "search",
                [
                    "+sweeps=mixed_precision",
                    "model=hf",
                    "task=qnli",
                    "tracking=off",
                    "profile=off",
                    f"model.path={shared}/models/minilm-qnli",
                    f"task.data_dir={shared}/data/glue/qnli",
                    f"evaluation.limit={rows}",
                    f"search.sensitivity_rows={max(SCORED_AT_LEAST, rows // SCORED)}",
                ],
            )
        )


def compare(prepared: PreparedModel, folder: Path, budget: int, seeds: int) -> None:
    """Every search on the same budget rules: rows that were answered, of whatever candidate, by the whole
    set's."""
    curves: dict[str, list[tuple[list[float], list[float]]]] = {"quantlab": [], "TPE": [], "random": []}
    for seed in range(seeds):
        for name, changes in {
            "quantlab": {"seed": seed},
            "TPE": {**PLAIN, "sampler": "tpe", "budget": budget + 1, "seed": seed},
            "random": {**PLAIN, "sampler": "random", "budget": budget + 1, "seed": seed},
        }.items():
            curves[name].append(searched(prepared, folder / f"{name}-{seed}", changes))
            spent, best = curves[name][-1]
            print(
                f"{name}, seed {seed}: best {np.nanmin(best):g} after {spent[-1]:.1f} evaluations", flush=True
            )
    curves["greedy one at a time"] = [greedy_by_accuracy(prepared, budget)]
    spent, best = curves["greedy one at a time"][0]
    print(f"greedy one at a time: best {np.nanmin(best):g} after {spent[-1]:.1f} evaluations", flush=True)
    draw(curves).savefig("search_compare.png", dpi=150)
    pd.concat(
        pd.DataFrame({"search": name, "seed": seed, "evaluations": spent, "best": best})
        for name, found in curves.items()
        for seed, (spent, best) in enumerate(found)
    ).to_csv("search_compare.csv", index=False)


def searched(
    prepared: PreparedModel, folder: Path, changes: dict[str, object]
) -> tuple[list[float], list[float]]:
    folder.mkdir()
    search = replace(prepared.config.search, **changes)
    config = replace(prepared.config, search=search)
    seeded = replace(prepared, config=config)
    study = open_study(search, prepared.space, folder, {})
    worker = make_worker(seeded, study, folder)
    worker.work(study, lambda *_: None)
    return best_cost_over_time(worker.history(study), len(worker.judge.labels))


def greedy_by_accuracy(prepared: PreparedModel, budget: int) -> tuple[list[float], list[float]]:
    """From everything at 16 bits: each site's own measured loss first, then narrowed one after another, least
    first, each kept if the answers are."""
    runner, space = replace_reuse(prepared, 0).runner(), prepared.space
    judge, _ = prepared.judge(runner)
    columns, limit = prepared.label_columns, prepared.config.search.max_drop
    spent, best, count = [1.0], [float(len(space.variables))], 1

    def drop(chosen: tuple) -> float:
        nonlocal count
        count += 1
        return judge.drop(evaluate_candidate(runner, chosen, columns, None))

    alone = {}
    for index in range(len(space.variables)):
        alone[index] = drop((*space.wide[:index], space.choices[0], *space.wide[index + 1 :]))
        spent.append(float(count))
        best.append(best[-1])
    current = space.wide
    for index in sorted(alone, key=alone.__getitem__):
        if count >= budget:
            break
        candidate = (*current[:index], space.choices[0], *current[index + 1 :])
        if drop(candidate) <= limit:
            current = candidate
        spent.append(float(count))
        best.append(float(sum(choice != space.choices[0] for choice in current)))
    return spent, best


def draw(curves: dict[str, list[tuple[list[float], list[float]]]]) -> Figure:
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for (name, found), colour in zip(curves.items(), COLOURS, strict=False):
        for index, (spent, best) in enumerate(found):
            axes.step(spent, best, where="post", color=colour, alpha=0.8, label=name if index == 0 else None)
    axes.set(
        xlabel="evaluations of the whole set", ylabel="best: 16-bit sites within the limit", xscale="log"
    )
    axes.legend(frameon=False)
    return figure


def reuse(prepared: PreparedModel) -> None:
    """One step of thinning: each 16-bit site of the ladder's plan of ``BASE`` sites in 8 bits, alone."""
    space, columns = prepared.space, prepared.label_columns
    base = least_loss(space, prepared.cost(), prepared.scores().of("kl"), BASE)
    assert base is not None
    wide = [index for index, choice in enumerate(base) if choice != space.choices[0]]
    candidates = [(*base[:index], space.choices[0], *base[index + 1 :]) for index in wide]
    for reused in (0, 4096):
        for prunes in (False, True):
            runner = replace_reuse(prepared, reused).runner()
            judge, _ = prepared.judge(runner)
            evaluate_candidate(runner, base, columns, None)
            runner.keep(base)
            taken, answered = decide(runner, judge, candidates, list(columns), prunes)
            whole = len(judge.labels) * len(candidates)
            print(
                f"reuse {'on' if reused else 'off'}, pruning {'on' if prunes else 'off'}: {taken:.1f} s, "
                f"{answered} of {whole} rows answered, {whole / taken:.0f} decided rows a second",
                flush=True,
            )


def decide(
    runner: Runner, judge: Judge, candidates: list, columns: list[int], prunes: bool
) -> tuple[float, int]:
    def hopeless(outcome: object) -> bool:
        return judge.exceeds_p(outcome, 0.5) < 0.02

    start = time.perf_counter()
    rows = sum(
        evaluate_candidate(runner, chosen, columns, hopeless if prunes else None).rows
        for chosen in candidates
    )
    return time.perf_counter() - start, rows


def replace_reuse(prepared: PreparedModel, reuse_mb: float) -> PreparedModel:
    return replace(
        prepared, config=replace(prepared.config, search=replace(prepared.config.search, reuse_mb=reuse_mb))
    )


def kills(server: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="quantlab-") as name:
        folder = Path(name)
        model, place = tiny(folder), folder / "work"
        place.mkdir()
        if not server:
            survive(model, place, f"sqlite:///{place}/study.db")
            return
        cluster = postgres.__wrapped__()  # the fixture's generator
        try:
            survive(model, place, next(cluster).new_database())
        finally:
            next(cluster, None)


def finished(storage: str) -> list[FrozenTrial]:
    """The study's evaluated candidates; none before a worker has made it."""
    with suppress(KeyError, SQLAlchemyError):
        trials = optuna.load_study(study_name="kills", storage=storage).get_trials(deepcopy=False)
        return [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return []


def least(trials: list[FrozenTrial]) -> float | None:
    """The best answer among them."""
    return min((t.value for t in trials if max(t.constraints.values()) <= 0), default=None)


def survive(model: list[str], place: Path, storage: str) -> None:
    chance, bests, moments = random.Random(), [], []
    workers = {number: start(model, place, storage, number) for number in range(WORKERS)}
    for _ in range(KILLS):
        time.sleep(chance.uniform(1, 12))
        number = chance.randrange(WORKERS)
        workers[number].kill()
        workers[number].communicate()
        done = finished(storage)
        moments.append(len(done))
        bests.append(least(done))
        workers[number] = start(model, place, storage, number)
    errors = [process.communicate()[1] for process in workers.values()]
    codes = [process.returncode for process in workers.values()]
    end = start(model, place, storage, 0)
    errors.append(end.communicate()[1])
    trials = optuna.load_study(study_name="kills", storage=storage).get_trials()
    done = finished(storage)
    print(f"evaluated at each kill: {moments}; best then: {bests}")
    print(f"exit codes {[*codes, end.returncode]}; {''.join(errors)[-500:]}")
    print(
        f"{len(done)} completed, {len({tuple(sorted(t.params.items())) for t in done})} distinct; best "
        f"{least(done)}; states {dict(Counter(t.state.name for t in trials))}"
    )


def start(model: list[str], place: Path, storage: str, number: int) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "quantlab.search",
        *model,
        "placement=all",
        "bits.symmetric=true",
        "tracking=off",
        "search.name=kills",
        f"search.storage={in_hydra(storage)}",
        f"search.trials={CANDIDATES}",
        "search.budget=1000",
        "search.seeded=false",
        "search.prune_p=0",
        "search.sampler=random",
        "search.heartbeat_s=2",
        "search.max_drop=5",
        f"search.worker={number}",
    ]
    return subprocess.Popen(
        command, cwd=place, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


if __name__ == "__main__":
    main()
