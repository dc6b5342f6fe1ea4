"""Settings of an outlier analysis: ``outliers.*`` of ``conf/outliers.yaml``."""

from dataclasses import dataclass

from quantlab.config.checks import at_least, folder_name, freeze, one_of, whole
from quantlab.searching.search_config import SearchConfig
from quantlab.searching.site_scores import SCORES


@dataclass(frozen=True, kw_only=True)
class Outliers:
    """One analysis. ``search.*`` sets its sites, their narrow and wide choices, and the number of rows."""

    name: str
    draws: int  # draws of calibration rows that the stability of dominant channels is measured over
    rank_by: str  # the score by which sites are ranked and protected
    random_draws: int  # random sets of equally many protected sites, for comparison; 0: none
    clip: tuple[int, ...]  # numbers of largest weights to clip, one trial each; empty: no clipping
    propagation: bool  # predict every site's error at the logits, and compare it with the measured one
    sigmas: float  # a weight is an outlier if it lies beyond this many standard deviations of its matrix

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
        one_of("outliers.propagation", self.propagation, (True, False))
        at_least("outliers.sigmas", self.sigmas, 0)


@dataclass(frozen=True, kw_only=True)
class OutliersConfig(SearchConfig):
    """All settings of ``conf/outliers.yaml``."""

    outliers: Outliers
