"""Methods with papers' names choose a transform; what the command line says wins."""

import pytest

from quantlab.api.trials import composed
from quantlab.calibration.learned_clipping import LearnedClipping
from quantlab.methods.dynamic import Dynamic
from quantlab.methods.log2_probs import Log2Probs
from quantlab.methods.uniform import Uniform
from quantlab.transforms.awq import Awq
from quantlab.transforms.equalization import Equalization
from quantlab.transforms.hadamard import Hadamard
from quantlab.transforms.learned import Learned
from quantlab.transforms.os_plus import OsPlus
from quantlab.transforms.outlier_suppression import GammaMigration
from quantlab.transforms.power_of_two import PowerOfTwo
from quantlab.transforms.smoothquant import SmoothQuant
from quantlab.transforms.transform import Transform

PRESETS = {
    "awq": (Awq(), Uniform()),
    "omniquant": (Learned(), Dynamic()),
    "os": (GammaMigration(), Uniform()),
    "os_plus": (OsPlus(), Uniform()),
    "fq_vit": (PowerOfTwo(), Log2Probs()),
    "quarot": (Hadamard(), Dynamic()),
    "repq_vit": (Equalization(norm_outputs=True, shift=True), Log2Probs()),
    "smoothquant": (SmoothQuant(), Uniform()),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_its_slots(preset: str) -> None:
    config = composed(["tracking=off", f"method={preset}"])
    assert (config.transform, config.method) == PRESETS[preset]


def test_omniquant_clips_weights_where_the_command_line_asks_for_it() -> None:
    config = composed(["tracking=off", "method=omniquant", "calibration=learned_clipping"])
    assert (config.calibration, config.transform) == (LearnedClipping(), Learned())


@pytest.mark.parametrize(
    ("overrides", "transform"),
    [
        (["transform=hadamard"], Hadamard()),
        (["transform=none"], Transform()),
        (["transform.alpha=0.8"], SmoothQuant(alpha=0.8)),
        (["transform=smoothquant", "transform.sites=[a]"], SmoothQuant(sites=("a",))),
    ],
)
def test_the_command_line_wins_over_a_preset(overrides: list[str], transform: Transform) -> None:
    assert composed(["tracking=off", "method=smoothquant", *overrides]).transform == transform
    assert composed(["tracking=off", *overrides, "method=smoothquant"]).transform == transform
