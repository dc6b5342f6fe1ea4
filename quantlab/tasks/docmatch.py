"""The embedded task: does this text describe this function? Built from docstrings that are installed anyway.

Question: "What does scipy.linalg.expm do?". Text: the first paragraph of a docstring, of that callable
(match) or of another one in the same top-level package and split (mismatch). Every callable asks one question
with each label, and every paragraph is given once as a match and once as a mismatch: neither half of a pair
tells its label.
"""

import hashlib
import importlib
import inspect
import platform
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from quantlab.storage.files import cache_dir, digest, whole_folder
from quantlab.tasks.docmatch_modules import MODULES
from quantlab.tasks.examples import Texts
from quantlab.tasks.task import Splits, Task

LABELS = ("mismatch", "match")
MISMATCH, MATCH = 0, 1
EVALUATION_SHARE = 0.2  # of the callables
ROLE = re.compile(r":(?:\w+:)*\w+:`~?([^`<]+?)(?:\s*<[^`>]*>)?`")  # :func:`~torch.abs` reads torch.abs
SIGNATURE = re.compile(r"[\w.*]+ ?\(|[^ ]+ ?->|[\w.]+ ?=")
# What is not prose: directives, doctests, underlined headings, fields, tables.
MARKUP = re.compile(r"\.\. |>>>|:\w|@|\W*\n|.*\n\s*[-=~^*]{3,}|[|+]")
# Addresses and absolute paths differ from machine to machine; a mere pointer describes nothing.
UNWANTED = re.compile(r"0x[0-9a-fA-F]{3,}|(?<![\w.])/\w+/\w|^(?:See|Alias)\b|^Deprecated")
SHORTEST = 25  # characters of a description


@dataclass(frozen=True, kw_only=True)
class DocMatch(Task):
    """Pairs from the installed Python, numpy, scipy and torch. The same versions give the same pairs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels != LABELS:
            raise ValueError(f"labels of docmatch are {list(LABELS)}, got {list(self.labels)}")

    def load(self) -> Splits:
        """Reads both splits from the cache folder; the first call builds them there in some seconds."""
        folder = cache_dir() / "docmatch" / _key()
        if not folder.is_dir():
            with whole_folder(folder) as scratch:
                for split, frame in build().items():
                    frame.to_parquet(scratch / f"{split}.parquet")
        return Splits(train=_read(folder / "train.parquet"), evaluation=_read(folder / "evaluation.parquet"))


def build() -> dict[str, pd.DataFrame]:
    """Both splits, with columns question, text and label. The first 2n rows have n of each label."""
    texts = described(MODULES)
    kept_back = {name for name in texts if _fraction(name, "split") < EVALUATION_SHARE}
    return {
        "train": pairs({name: text for name, text in texts.items() if name not in kept_back}),
        "evaluation": pairs({name: text for name, text in texts.items() if name in kept_back}),
    }


def pairs(texts: dict[str, str]) -> pd.DataFrame:
    """Matches and mismatches in turn, each in a random but fixed order. ``texts`` maps callables to
    paragraphs."""
    others = dict(chain.from_iterable(_rotated(group) for group in _by_package(texts)))
    order = [sorted(others, key=lambda name: _fraction(name, salt)) for salt in ("matches", "mismatches")]
    rows = [
        row
        for right, wrong in zip(*order, strict=True)
        for row in ((right, texts[right], MATCH), (wrong, texts[others[wrong]], MISMATCH))
    ]
    frame = pd.DataFrame(rows, columns=["name", "text", "label"])
    return frame.assign(question="What does " + frame["name"] + " do?")[["question", "text", "label"]]


def described(modules: tuple[str, ...]) -> dict[str, str]:
    """Maps callables to their paragraphs. A paragraph of several callables goes to the shortest name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # modules and attributes that are deprecated say so when touched
        # All are imported before any is read: some replace functions of others.
        # Versions differ in modules.
        imported = [importlib.import_module(name) for name in modules if find_spec(name)]
        paragraphs = {name: paragraph(doc) for module in imported for name, doc in _documented(module)}
    owners: dict[str, str] = {}
    for name in sorted(paragraphs, key=lambda name: (name.count("."), len(name), name)):
        if text := paragraphs[name]:
            owners.setdefault(text, name)
    return {name: text for text, name in owners.items()}


def paragraph(doc: str) -> str | None:
    """The first paragraph of prose in one line, or None where there is none that describes anything."""
    for block in re.split(r"\n\s*\n", inspect.cleandoc(doc)):
        if SIGNATURE.match(block) or MARKUP.match(block):
            continue
        text = " ".join(ROLE.sub(r"\1", block).replace("`", "").split())
        wanted = len(text) >= SHORTEST and text[0].isalpha() and not UNWANTED.search(text)
        return text if wanted else None
    return None


def _documented(module: ModuleType) -> Iterator[tuple[str, str]]:
    for name in sorted(getattr(module, "__all__", vars(module))):
        value = getattr(module, name, None)
        path = f"{module.__name__}.{name}".removeprefix("builtins.")
        if name.startswith("_") or name.endswith("hook") or not _at_home(value, module):  # hooks get replaced
            continue
        yield from _doc(path, value)
        for kind in _own(value) if inspect.isclass(value) else ():
            for method, function in vars(kind).items():
                if not method.startswith("_") and _at_home(function, module):
                    yield from _doc(f"{path}.{method}", getattr(function, "__func__", function))


def _doc(name: str, value: Any) -> Iterator[tuple[str, str]]:
    doc = getattr(value, "__doc__", None)
    if callable(value) and isinstance(doc, str):
        yield name, doc


def _at_home(value: Any, module: ModuleType) -> bool:
    """True if a value comes from the module's own package: other packages add methods to its classes."""
    root = module.__name__.partition(".")[0]
    # Some built-in functions have no module.
    home = str(getattr(value, "__module__", None) or root).partition(".")[0]
    return home == root or {home, root} <= sys.stdlib_module_names


def _own(kind: type) -> list[type]:
    """The class and its private bases, such as torch._C.TensorBase. A public base is asked about itself."""
    return [base for base in kind.__mro__ if base is kind or "._" in f".{base.__module__}"]


def _by_package(names: dict[str, str]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: _fraction(name, "partner")):
        groups.setdefault(name.partition(".")[0] if "." in name else "builtins", []).append(name)
    # A lone callable has no mismatching text.
    return [group for group in groups.values() if len(group) > 1]


def _rotated(group: list[str]) -> Iterator[tuple[str, str]]:
    return zip(group, [*group[1:], group[0]], strict=True)


def _fraction(name: str, salt: str) -> float:
    """A pseudo-random number in [0, 1) that depends on name and salt alone."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{name}".encode()).digest()[:8], "big") / 2**64


def _key() -> str:
    packages = (importlib.import_module(name).__version__ for name in ("numpy", "scipy", "torch"))
    code = (Path(__file__).read_bytes(), "\n".join(MODULES))
    return digest([sys.platform, platform.python_version(), *packages, *code])[:16]


def _read(path: Path) -> Texts:
    frame = pd.read_parquet(path)
    texts = tuple(zip(frame["question"].tolist(), frame["text"].tolist(), strict=True))
    return Texts(texts=texts, labels=frame["label"].to_numpy(np.int64))
