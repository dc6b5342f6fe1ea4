"""What MLflow takes: names of few characters, texts of limited length, so many of them at once, filters with
quotes."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from quantlab.storage.files import digest

NAME_LIMIT, RUN_NAME_LIMIT, PARAM_LIMIT, TAG_LIMIT = 250, 250, 6000, 8000  # characters, MLflow's own
METRICS_AT_ONCE, OTHERS_AT_ONCE = 800, 100  # of each kind in one request; 1,000 in all
CUT = " [cut short: the run's files have all of it]"
SHORT_CUT = "..."

T = TypeVar("T")


def valid_names(values: Mapping[str, T]) -> dict[str, T]:
    """The values under names that MLflow takes, no two alike.

    An override's ``+`` is left out, and ``_`` stands for what may not be in a name. Names that become equal
    or are too long end in a digest of what they were.
    """
    plain = {name: _plain(name) for name in values}
    often = Counter(plain.values())
    clear = {
        name: fit
        if often[fit] == 1 and len(fit) <= NAME_LIMIT
        else f"{fit[: NAME_LIMIT - 9]}-{digest([name])[:8]}"
        for name, fit in plain.items()
    }
    return {clear[name]: value for name, value in values.items()}


def _plain(name: str) -> str:
    fit = re.sub(r"[^\w.\-/ :]", "_", name.lstrip("+~"))
    steps = fit.split("/")  # MLflow takes a name for a path, which must not lead elsewhere
    return "/".join("_" + step if step in ("", ".") or step.startswith("..") else step for step in steps)


def cut(text: str, limit: int = TAG_LIMIT, mark: str = CUT) -> str:
    """A text as a value that every database takes; where something had to be cut off, it ends in ``mark``."""
    text = text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")
    return text if len(text) <= limit else f"{text[: limit - len(mark)]}{mark}"


def valid_run_name(name: str) -> str:
    """A run's name; the whole of a longer one belongs in a tag."""
    return cut(name, RUN_NAME_LIMIT, SHORT_CUT)


def equality_filter(field: str, text: str) -> str:
    """A filter for the runs whose ``field`` is this text.

    MLflow has no escape for quotes. A text with both kinds finds others that are like it, too.
    """
    for quote in "'\"":
        if quote not in text:
            return f"{field} = {quote}{text}{quote}"
    pattern = re.sub(r"['\\]", "_", text)
    return f"{field} LIKE '{pattern}'"


def batches(**entities: Sequence[Any]) -> Iterator[dict[str, list[Any]]]:
    """Metrics, params and tags in as few portions as MLflow takes; at least one."""
    sizes = {kind: METRICS_AT_ONCE if kind == "metrics" else OTHERS_AT_ONCE for kind in entities}
    count = max(1, *(-(-len(all_) // sizes[kind]) for kind, all_ in entities.items()))
    for i in range(count):
        yield {kind: list(all_[i * sizes[kind] : (i + 1) * sizes[kind]]) for kind, all_ in entities.items()}
