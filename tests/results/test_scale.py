"""Units of scores: points of a share, percent of a perplexity, and the same numbers both ways round."""

import numpy as np
import pandas as pd
import pytest

from quantlab.results.scale import scale_of

SHARE, PERPLEXITY = scale_of("accuracy"), scale_of("perplexity")


def test_effects_are_in_points_or_in_percent_of_a_perplexity() -> None:
    better = np.array([[np.log(2)], [np.log(1.25)], [np.log(4)]])  # halved, at least by 1.25, at most by 4
    np.testing.assert_allclose(PERPLEXITY.effects(better)[:, 0], [-50, -75, -20])
    np.testing.assert_allclose(SHARE.effects(np.array([0.2, 0.1, 0.3])), [20, 10, 30])
    assert PERPLEXITY.level(-np.log(34.5)) == pytest.approx(34.5) and SHARE.level(0.5) == 50


@pytest.mark.parametrize("scale, shown, change, after", [(SHARE, 80, -10, 70), (PERPLEXITY, 40, 50, 60)])
def test_a_change_leads_there_and_back(scale, shown: float, change: float, after: float) -> None:
    assert scale.after(shown, change) == after and scale.before(after, change) == shown


def test_what_one_of_two_loses_the_other_gains() -> None:
    assert SHARE.mirrored(0.1) == -0.1
    assert PERPLEXITY.change(PERPLEXITY.mirrored(PERPLEXITY.score.lost(80, 40))) == 0.5


def test_a_limit_is_of_points_or_of_more_perplexity() -> None:
    assert SHARE.tolerance(0.5) == 0.005 and PERPLEXITY.tolerance(50) == pytest.approx(np.log(1.5))


def test_names_of_losses_have_the_units() -> None:
    assert SHARE.score.loss_names == ("drop_points", "drop_ci95_low", "drop_ci95_high", "drop_upper95")
    assert PERPLEXITY.score.loss_names == ("loss_percent", "loss_ci95_low", "loss_ci95_high", "loss_upper95")
    assert (SHARE.loss_title, PERPLEXITY.loss_title) == ("drop (points)", "loss (%)")


def test_names_of_columns_have_the_units() -> None:
    names = ["level", "mean", "effect", "effect_ci95_low", "range", "gain", "reached"]
    table = pd.DataFrame([[0] * 7], columns=names)
    assert list(SHARE.named(table)) == [
        "level",
        "mean_percent",
        "effect_points",
        "effect_points_ci95_low",
        "range_points",
        "gain_points",
        "reached_percent",
    ]
    assert list(PERPLEXITY.named(table)) == [
        "level",
        "mean",
        "effect_percent",
        "effect_percent_ci95_low",
        "range_percent",
        "change_percent",
        "reached",
    ]
