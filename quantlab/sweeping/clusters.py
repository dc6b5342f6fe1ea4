"""A Ray cluster that runs already, and whether it lets us in."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

ADVICE = (
    "the cluster wants a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) here as on its "
    "nodes, see docs/sweeps.md"
)


@contextmanager
def admitted() -> Iterator[None]:
    """Says in one line what a Ray cluster lacks that turns us away; Ray itself says it once a second before it fails.

    Raises ConnectionError where it does. Of launchers other than Ray's it notices nothing.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")
    try:
        yield
    except ConnectionError as error:
        if type(error.__cause__).__name__ != "AuthenticationError":
            raise
        raise ConnectionError(f"{error}: {ADVICE}") from error
