"""Which quantization keeps a transformer's answers, what does it cost, and why did the others fail?

From Python (each is imported at its first use, so ``import quantlab`` itself costs nothing)::

    quantlab.run_trial("method=peg", "method.k=4", ...)   one trial, from overrides -> TrialResult
    quantlab.run_trial(..., model=model, processor=tokenizer)   the same for a model in memory
    quantlab.insert(model, plan)   a context manager: inside, the model runs as the plan says
    quantlab.load_trial(folder)   a finished trial -> SavedTrial: config, plan, metrics, tags, answers

The command line: ``quantlab --help``.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantlab.api.trials import insert, run_trial
    from quantlab.results.saved import SavedTrial, load_trial
    from quantlab.trial.result import TrialResult

# OpenMP's threads spin while they wait. Beside any other busy process that makes calibration ten times slower
# (LOG.md); asleep they cost up to a fifth where nothing else runs. This has to be set before torch starts
# them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__all__ = ["SavedTrial", "TrialResult", "insert", "load_trial", "run_trial"]

MODULES = {
    "SavedTrial": "quantlab.results.saved",
    "TrialResult": "quantlab.trial.result",
    "insert": "quantlab.api.trials",
    "load_trial": "quantlab.results.saved",
    "run_trial": "quantlab.api.trials",
}


def __getattr__(name: str) -> Any:
    """Imports what :data:`__all__` names at its first use."""
    if name not in MODULES:
        raise AttributeError(f"module 'quantlab' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
