"""What is wrong with the input, said in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import CompactHydraException
from omegaconf.errors import MissingMandatoryValue

from quantlab.cli.secrets import without_password


@contextmanager
def compact_errors() -> Iterator[None]:
    """Lets Hydra print the message alone; HYDRA_FULL_ERROR=1 shows where it was found."""
    try:
        yield
    except MissingMandatoryValue as error:
        raise CompactHydraException(
            f"{error.full_key} has no value: give one with {error.full_key}=..."
        ) from None
    except (ValueError, OSError) as error:
        raise CompactHydraException(without_password(str(error))) from error
