"""Trials of a sweep are composed as Hydra composes them, and what they share once."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from quantlab.cli.catalogue import register
from quantlab.cli.conf_dir import CONF
from quantlab.sweeping.composing import TrialsLoader

register()

TRIALS = (
    (),
    ("method=peg", "method.k=3", "+method.extra={a: [1, 2]}"),
    ("method.k=2", "method=peg", "bits=w4a8", "bits.symmetric=false"),
    ("method=smoothquant", "transform.alpha=0.7", "~calibration.samples", "++sweep.name='a, b=c'"),
    ("sweep.member={number: 1, name: 'k=1'}", "hydra.sweep.dir=/tmp/a", "hydra.sweep.subdir=trials/b"),
    ("launcher=joblib", "hydra.launcher.n_jobs=3"),
)


@pytest.fixture
def master() -> Iterator[tuple[ConfigLoaderImpl, DictConfig]]:
    with initialize_config_dir(CONF, version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        loader = hydra.config_loader
        assert isinstance(loader, ConfigLoaderImpl)
        typed = ["+hydra.job.env_set={A: b}", "task=qnli", "method.k=2,4"]
        yield loader, loader.load_configuration("config", typed, run_mode=RunMode.MULTIRUN)


@pytest.mark.parametrize("trial", TRIALS, ids=" ".join)
def test_settings_are_hydras_own(master: tuple[ConfigLoaderImpl, DictConfig], trial: tuple[str, ...]) -> None:
    hydras, settings = master
    ours, given = TrialsLoader(hydras), ["task=qnli", *trial]
    expected = plain(hydras.load_sweep_config(settings, given))
    for loader in (ours, ours, pickle.loads(pickle.dumps(ours))):  # composed, copied, in another process
        found = loader.load_sweep_config(settings, given)
        assert plain(found) == expected and OmegaConf.is_struct(found)


@pytest.mark.parametrize(
    "trial", [("+case=mine", "method.k=2"), ("+case@_global_=mine", "calibration.seed=3")], ids=" ".join
)
def test_groups_of_ones_own_folder_are_found(tmp_path: Path, trial: tuple[str, ...]) -> None:
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "mine.yaml").write_text("# @package _global_\nbits: {symmetric: true}\n")
    with initialize_config_dir(CONF, version_base="1.3"):
        hydras = GlobalHydra.instance().config_loader()
        assert isinstance(hydras, ConfigLoaderImpl)
        typed = [f"hydra.searchpath=[file://{tmp_path}]", "method=peg"]
        settings = hydras.load_configuration("config", typed, run_mode=RunMode.MULTIRUN)
        given = ["method=peg", *trial]
        expected = hydras.load_sweep_config(settings, given)
        found = TrialsLoader(hydras).load_sweep_config(settings, given)
    assert plain(found) == plain(expected) and found.bits.symmetric is True


def plain(settings: DictConfig) -> object:
    return OmegaConf.to_container(settings, resolve=False)


def test_trials_of_two_methods_are_composed_twice_however_many_there_are(
    master: tuple[ConfigLoaderImpl, DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    composed, original = [], ConfigLoaderImpl.load_configuration

    def counted(self: ConfigLoaderImpl, *args: object, **kwargs: object) -> DictConfig:
        composed.append(kwargs["overrides"])
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    loader = TrialsLoader(master[0])
    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    for number in range(10):
        for method in ("peg", "uniform"):
            settings = loader.load_sweep_config(
                master[1], [f"method={method}", f"calibration.seed={number}", f"hydra.sweep.subdir={number}"]
            )
            assert (settings.calibration.seed, settings.hydra.sweep.subdir) == (number, str(number))
    assert len(composed) == 2


def test_a_name_that_does_not_exist_is_hydras_error(master: tuple[ConfigLoaderImpl, DictConfig]) -> None:
    with pytest.raises(ConfigCompositionException, match="method.nothing"):
        TrialsLoader(master[0]).load_sweep_config(master[1], ["method.nothing=1"])
