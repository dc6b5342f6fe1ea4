"""What is analysed: ``outliers.*`` of ``conf/outliers.yaml``."""

from dataclasses import dataclass

from quantlab.config.checks import at_least, folder_name, freeze, one_of, whole
from quantlab.searching.scores import SCORES
from quantlab.searching.search_config import SearchConfig


@dataclass(frozen=True, kw_only=True)
class Outliers:
    """One analysis. ``search.*`` says which sites are looked at, narrow against wide, on how many rows."""

    name: str
    draws: int  # of calibration rows, to see how stable the dominant channels are
    rank_by: str  # the score by which sites are protected
    random_draws: int  # of as many sites, to compare with; 0: none
    clip: tuple[int, ...]  # numbers of weights to clip; none: the trial with clipped weights is not run
    sigmas: float  # a weight is an outlier beyond so many standard deviations of its matrix

    def __post_init__(self) -> None:
        freeze(self)
        folder_name("outliers.name", self.name)
        whole("outliers.draws", self.draws, 1)
        one_of("outliers.rank_by", self.rank_by, SCORES)
        whole("outliers.random_draws", self.random_draws, 0)
        if not isinstance(self.clip, tuple):
            raise ValueError(f"outliers.clip must be a list of numbers of weights, got {self.clip!r}")
        for count in self.clip:
            whole("outliers.clip", count, 1)
        at_least("outliers.sigmas", self.sigmas, 0)


@dataclass(frozen=True, kw_only=True)
class OutliersConfig(SearchConfig):
    """What ``conf/outliers.yaml`` builds."""

    outliers: Outliers
