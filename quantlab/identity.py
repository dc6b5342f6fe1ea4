"""What names a trial: config, checkpoint, data and code. Equal keys, equal numbers."""

import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from quantlab.cache import code_digest, digest, file_digest


def key_of(described: Mapping[str, Any], checkpoint: str, data: str) -> str:
    """The key of a trial, from its config as plain data and the fingerprints of its checkpoint and rows.

    The code is quantlab's own, and the source file of every component that comes from elsewhere.
    """
    targets = sorted(set(_targets(described)))
    foreign = [_source_digest(target) for target in targets if not target.startswith("quantlab.")]
    return digest([repr(described), checkpoint, data, code_digest(), *foreign])


def _targets(tree: Any) -> Iterator[str]:
    if isinstance(tree, Mapping):
        yield from (str(value) for name, value in tree.items() if name == "_target_")
        yield from (target for value in tree.values() for target in _targets(value))
    elif isinstance(tree, list):
        yield from (target for value in tree for target in _targets(value))


@cache
def _source_digest(target: str) -> str:
    module, _, _ = target.rpartition(".")
    return file_digest(Path(inspect.getfile(import_module(module))))
