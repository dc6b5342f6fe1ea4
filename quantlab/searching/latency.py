"""Measures what each variable's choices add to the latency; results are cached."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from quantlab.plan.plan import QuantPlan
from quantlab.profiling.profile import TimedProfile
from quantlab.profiling.timing import RuntimeSubject, Subject
from quantlab.runtimes.runtime import FileRuntime
from quantlab.searching.costs import Cost
from quantlab.searching.search_config import SearchConfig
from quantlab.searching.space import Choices, Space
from quantlab.storage.files import cache_dir, digest, whole_folder
from quantlab.trial.deployed import write_model
from quantlab.trial.key import trial_timing_key
from quantlab.trial.material import Material
from quantlab.trial.trial import torch_subject

FILE = "latencies.json"


def measured_latencies(
    config: SearchConfig, material: Material, space: Space, plan: Callable[[Choices], QuantPlan]
) -> Cost:
    """The cost ``latency``: everything at its narrowest, and what each other choice of a variable adds, ms.

    Each choice is timed in turns with everything at its narrowest, on ``runtime`` (torch: the trial's
    engine). Raises ValueError without a profile.
    """
    profile = config.profile
    if not isinstance(profile, TimedProfile):
        raise ValueError(
            "search.cost=latency needs a profile, which sets what is timed: for example profile=quick"
        )
    narrow = plan(space.narrow)
    setting = (
        repr(profile),
        repr(config.runtime),
        config.engine,
        material.key,
        narrow.fingerprint,
        trial_timing_key(config),
    )
    folder = cache_dir() / "latencies" / digest([*setting, repr(space)])
    if not folder.is_dir():
        latencies = _measure(config, profile, material, space, plan)
        with whole_folder(folder) as scratch:
            (scratch / FILE).write_text(json.dumps(latencies), encoding="utf-8")
    base, added = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return Cost(
        name="latency", base=base, table={(variable, choice): value for variable, choice, value in added}
    )


def _measure(
    config: SearchConfig,
    profile: TimedProfile,
    material: Material,
    space: Space,
    plan: Callable[[Choices], QuantPlan],
) -> tuple[float, list[tuple[str, int | str, float]]]:
    with ExitStack() as stack:

        def subject(chosen: Choices) -> Subject:
            if not isinstance(config.runtime, FileRuntime):
                return torch_subject(config, material, plan(chosen))
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="quantlab-")))
            names = material.batches[0].inputs
            path = write_model(config.runtime, material.loaded, plan(chosen), names, folder, {})
            return RuntimeSubject(path=path, runtime=config.runtime)

        narrow, tokenizer, base = subject(space.narrow), material.loaded.processor, []
        added: list[tuple[str, int | str, float]] = [(v.name, space.choices[0], 0.0) for v in space.variables]
        for index, v in enumerate(space.variables):
            for choice in space.choices[1:]:
                chosen = (*space.narrow[:index], choice, *space.narrow[index + 1 :])
                timed = profile.measure(subject(chosen), narrow, material.rows, tokenizer).metrics
                before = timed["latency_p50_ms"] * timed["speedup_vs_fp32"]
                base.append(before)
                added.append((v.name, choice, timed["latency_p50_ms"] - before))
    return sum(base) / len(base), added
