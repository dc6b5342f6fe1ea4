"""A Ray cluster that runs already: it is joined before the sweep starts, or says in one line why not."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

OWN = (None, "local")  # addresses of a cluster that is started for the sweep
TOKEN = (
    "it wants a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) here as on its "
    "nodes, see docs/sweeps.md"
)


def join(launcher: Launcher) -> None:
    """Joins the cluster at ``hydra.launcher.ray.init.address``. Does nothing for other launchers, and where
    there is no address: the launcher starts a cluster itself.

    Raises ConnectionError where the cluster does not answer or turns us away.
    """
    settings = getattr(launcher, "ray_cfg", None)
    asked: Any = OmegaConf.to_object(settings.init) if settings is not None else {}
    address = asked.get("address")
    if address in OWN:
        return
    import ray
    from ray.exceptions import AuthenticationError

    try:
        with _quiet():
            ray.init(**asked)
    except (ConnectionError, AuthenticationError) as error:
        refused = isinstance(error, AuthenticationError) or "AuthToken" in str(error.__cause__)
        reason = TOKEN if refused else str(error).splitlines()[0]
        raise ConnectionError(f"the Ray cluster at {address} cannot be joined: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what libraries in C++ write to standard error away: Ray's say once a second that they were
    refused."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
