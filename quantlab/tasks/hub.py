"""Reads data sets from the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantlab.config.checks import nearest
from quantlab.tasks.tables import DataTable

if TYPE_CHECKING:
    from datasets import DatasetDict

PATIENCE_S = 5  # for the hub's first answer; its own client tries five times more, for 25 s or longer


@dataclass(frozen=True, kw_only=True, eq=False)
class HubData:
    """A data set of the hub, in its local cache."""

    source: str  # its name and configuration, for messages
    splits: DatasetDict

    def table(self, split: str) -> DataTable:
        """The rows of a split. Raises OSError that lists the splits where there is no such one."""
        names = list(map(str, self.splits))
        if split not in names:
            raise OSError(f"{self.source} has no split {split!r}{nearest(split, names)}; it has {names}")
        data = self.splits[split]
        classes = {
            name: tuple(kind.names) for name, kind in data.features.items() if hasattr(kind, "int2str")
        }
        frame = data.to_pandas().rename_axis("row")
        return DataTable(source=f"{self.source}/{split}", frame=frame, classes=classes)


def load_hub(name: str, config: str | None, revision: str | None, otherwise: str) -> HubData:
    """All splits of a data set. Without network, what an earlier call has cached.

    Raises OSError that ends with what to do ``otherwise``, within seconds where the hub is out of reach.
    """
    reason = unreachable(name, revision)

    import datasets  # takes a second to import, and only the hub needs it

    source = "/".join(part for part in (name, config) if part)
    try:
        with _only_cached(bool(reason)):
            splits = datasets.load_dataset(name, config, revision=revision)
    except (ValueError, OSError) as error:  # includes the hub's connection errors and unknown names
        raise OSError(
            f"{source} cannot be loaded from the Hugging Face Hub ({reason or error}); check the network, "
            f"or {otherwise}"
        ) from error
    return HubData(source=source, splits=splits)


def unreachable(name: str, revision: str | None) -> str:
    """Why the hub does not answer, or an empty text where it does or is not to be asked."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HfHubHTTPError,
        HTTPError,  # of the HTTP library that this version of the hub uses
        OfflineModeIsEnabled,
    )

    try:
        HfApi().dataset_info(name, revision=revision, timeout=PATIENCE_S)
    except (HfHubHTTPError, OfflineModeIsEnabled):  # datasets finds the same, and says it better
        return ""
    except HTTPError as error:
        return f"{constants.ENDPOINT} does not answer: {error}"
    return ""


@contextmanager
def _only_cached(wanted: bool) -> Iterator[None]:
    """Keeps ``datasets`` from asking the hub again and again where it is known not to answer."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
