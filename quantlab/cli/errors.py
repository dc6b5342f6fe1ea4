"""What is wrong with the input, said in one line."""

import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import (
    CompactHydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from quantlab.cli.commands import choices
from quantlab.cli.conf_dir import CONF, FOUND_METHODS
from quantlab.cli.secrets import without_password
from quantlab.config.checks import nearest

UNKNOWN_FIELD = re.compile(r"unexpected keyword argument '(?P<name>\w+)'")
NOT_CHOSEN = re.compile(
    r"Could not override '(?P<group>.*)'\. No match in the defaults list\.\s.*use \+(?P<setting>.*)"
)
FULL_KEY = re.compile(r"^full_key: (?P<key>\S+)$", re.MULTILINE)


@contextmanager
def compact_errors() -> Iterator[None]:
    """Marks errors of the input as such: the command prints their message alone."""
    try:
        with import_errors():
            yield
    except MissingMandatoryValue as error:
        raise CompactHydraException(
            f"{error.full_key} has no value: give one with {error.full_key}=..."
        ) from None
    except (ValueError, OSError) as error:
        raise CompactHydraException(without_password(str(error))) from error


def require_values(settings: DictConfig) -> None:
    """Raises CompactHydraException where a mandatory setting (``???``) has no value."""
    if missing := sorted(OmegaConf.missing_keys(settings)):
        raise CompactHydraException(f"{missing[0]} has no value: give one with {missing[0]}=...")


def one_line(error: Exception) -> str:
    """What an error of Hydra or OmegaConf says, in quantlab's words, with the nearest name that exists."""
    if isinstance(error, MissingConfigException):
        return _missing_choice(error)
    if isinstance(error, InstantiationException):
        return _not_built(error)
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override!r} is no setting: write name=value, and quote what the shell would change, "
            f"as in 'bits.rules=[{{match: \"*.ffn.sum\", bits: 16}}]'"
        )
    if unchosen := NOT_CHOSEN.search(str(error)):
        return f"no {unchosen['group']} is chosen so far, so it is added: +{unchosen['setting']}"
    cause = error.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and isinstance(cause.parent_node, Container):
        return _unknown_setting(str(cause.full_key), cause.parent_node)
    told = cause if isinstance(cause, OmegaConfBaseException) else error
    return without_password(" ".join(str(told).split()))


def _missing_choice(error: MissingConfigException) -> str:
    """``method=pge``: there is no such file in the slot's folder."""
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    allowed = [option for option in error.options or () if option != "base"]
    if group == "method/found":
        return (
            f"there is no method=found/{name}: {FOUND_METHODS.absolute()} has no {name}.yaml"
            f"{nearest(name, allowed)}; quantlab search search.name={name} writes it"
        )
    names = f"; {group} is one of {', '.join(allowed)}" if allowed else ""
    return f"there is no {group}={name}{nearest(name, allowed)}{names}"


def _unknown_setting(key: str, parent: Container) -> str:
    """``bits.wieghts=4``: the part of the config that the key starts with has no such setting."""
    root = parent._get_root()
    close = nearest(key, _keys(root) if isinstance(root, DictConfig) else [], most=1)
    group, _, name = key.partition(".")
    having = [
        option
        for option in choices(group)
        if name and name in OmegaConf.load(f"{CONF}/{group}/{option}.yaml")
    ]
    names, verb = [f"{group}={option}" for option in having], "has" if len(having) == 1 else "have"
    hint = f"; {' and '.join(names)} {verb} it" if having else ""
    return f"there is no setting {key}{hint or close}"


def _keys(tree: DictConfig, prefix: str = "") -> list[str]:
    """The full names of all settings, Hydra's own left out: ``bits.weights``."""
    names = []
    for name in map(str, tree):
        if name == "hydra" or name.startswith("_"):
            continue
        names.append(f"{prefix}{name}")
        child = tree._get_node(name)
        if isinstance(child, DictConfig) and not child._is_none():
            names += _keys(child, f"{prefix}{name}.")
    return names


def _not_built(error: InstantiationException) -> str:
    """A component that refuses its settings, or cannot be imported: the slot, and the first cause."""
    place = match["key"] if (match := FULL_KEY.search(str(error))) else ""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = without_password(" ".join(str(cause).split()))
    if isinstance(cause, TypeError) and (unknown := UNKNOWN_FIELD.search(text)):
        return f"there is no setting {f'{place}.' if place else ''}{unknown['name']}"
    if not isinstance(cause, ValueError | OSError | InstantiationException):
        text = f"{type(cause).__name__}: {text} (HYDRA_FULL_ERROR=1 shows where)"
    return text if not place or text.startswith(place) else f"{place}: {text}"


@contextmanager
def import_errors() -> Iterator[None]:
    """Replaces Hydra's "Error locating target" by what went wrong when the component was imported, and where:
    ``method: mine.Mine cannot be imported: No module named 'scipi' (mine.py, line 3)``."""
    try:
        yield
    except InstantiationException as error:
        if not isinstance(error.__cause__, ImportError):  # the component was found, and refused its settings
            raise
        target, _, key = str(error).removeprefix("Error locating target ").partition("full_key: ")
        name = target.split("'")[1]
        place = f"{key.strip()}: " if key else ""
        raise CompactHydraException(
            f"{place}{name} cannot be imported: {_first_cause(error.__cause__, name)}"
        ) from error


def _first_cause(error: BaseException, name: str) -> str:
    """The first error of the chain, with the line of the component's own code that raised it."""
    while error.__cause__ is not None:
        error = error.__cause__
    module, _, attribute = name.rpartition(".")
    if isinstance(error, ModuleNotFoundError) and error.name == name:
        file = getattr(sys.modules.get(module), "__file__", module)
        return f"{file} has no {attribute}"
    if isinstance(error, ModuleNotFoundError) and name.startswith(f"{error.name}."):
        return f"{error}; is the folder that holds it on PYTHONPATH?"
    if isinstance(error, SyntaxError):
        return f"{error.msg} ({error.filename}, line {error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{str(error) or type(error).__name__}{where}"


def _is_users(file: str) -> bool:
    return not file.startswith("<") and "importlib" not in file and "/hydra/" not in file
