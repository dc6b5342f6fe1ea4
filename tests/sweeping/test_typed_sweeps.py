"""What users type and name, through the command line: it arrives as it was meant, or one line says why
not."""

import html
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import MakeModel
from hydra.core.plugins import Plugins
from joblib.externals.loky.process_executor import TerminatedWorkerError
from typed import Typed

from quantlab.reporting.sources import from_folders
from quantlab.results.store import locked_folder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def typed(
    tiny_bert: Path,
    tiny_glue: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Typed:
    given = (
        "model=hf",
        f"model.path={tiny_bert}",
        "task=qnli",
        f"task.data_dir={tiny_glue}",
        "task.max_length=32",
        "evaluation.limit=16",
        "calibration.samples=4",
        "profile=off",
        "tracking=off",
    )
    return Typed(tmp_path, given, monkeypatch, capfd)


def test_a_sweep_over_checkpoints_in_a_folder_of_any_letters(
    typed: Typed, tiny_bert: Path, make_model: MakeModel
) -> None:
    here = Typed(typed.cwd / "données, 50%41 {x} what? 资料", typed.given, typed.monkeypatch, typed.capfd)
    here.cwd.mkdir()
    paths = [str(tiny_bert), str(make_model(seed=1))]
    said = here.sweep(f"model.path={','.join(paths)}", "sweep.question='is [/x] right :cat:, [red]?'")
    assert "2 done, 0 reused, 0 failed" in said
    (report,) = here.cwd.rglob("report.html")
    assert "2 studies differ in checkpoint, task or examples" in report.read_text(encoding="utf-8")
    assert "is [/x] right :cat:, [red]?" in said
    assert list(here.table["model.path"]) == paths
    assert [path.name for path in typed.cwd.iterdir() if path.is_dir() and path.name != "glue"] == [
        here.cwd.name
    ]
    for folder in here.cwd.glob("multirun/trials/*"):
        assert {"answers.parquet", "plan.json", "result.json"} <= {path.name for path in folder.iterdir()}


def test_the_commands_of_a_report_run_as_they_stand(typed: Typed, tiny_glue: Path) -> None:
    data = typed.cwd / "a, v=2 (old) #1 'x'"
    data.symlink_to(tiny_glue)
    (typed.cwd / "my conf" / "sweeps").mkdir(parents=True)
    sweep = {
        "name": "mine",
        "trials": [{"over": {"task.data_dir": [str(data)], "method": ["fp32", "uniform"]}}],
    }
    (typed.cwd / "my conf" / "sweeps" / "mine.yaml").write_text(
        f"# @package _global_\n{yaml.safe_dump({'sweep': sweep})}"
    )
    given = tuple(word for word in typed.given if not word.startswith("task.data_dir"))
    here = Typed(typed.cwd, given, typed.monkeypatch, typed.capfd)
    here.run("+sweeps=mine", flags=["-m", f"--config-dir={typed.cwd / 'my conf'}"])
    (folder,) = typed.cwd.glob("multirun/sweeps/*")
    study = from_folders([folder])
    bare = Typed(typed.cwd, (), typed.monkeypatch, typed.capfd)
    assert "2 trials, 2 reused" in bare.run(*shlex.split(study.command)[3:])
    alone = bare.run(*shlex.split(study.trials[1].command)[3:], "hydra.run.dir=again", "tracking=off")
    assert str(Path("again", "result.json")) in alone
    first, again = (
        json.loads((each / "result.json").read_text())
        for each in (study.trials[1].folder, typed.cwd / "again")
    )
    assert first["config"] == again["config"]
    (analysis,) = re.findall(
        "<code>(python -m quantlab.outliers .*?)</code>", (folder / "report.html").read_text()
    )
    assert shlex.split(html.unescape(analysis))[3:] == [
        "model=hf",
        next(word for word in given if word.startswith("model.path")),
        "task=qnli",
        "task.max_length=32",
        "evaluation.limit=16",
        f'task.data_dir="{data}"',
    ]


def test_two_single_trials_never_share_a_folder(typed: Typed) -> None:
    folder = typed.cwd / "same"
    with locked_folder(folder, "another", wait=False):
        said = typed.run("hydra.run.dir=same", status=1)
    assert (
        said
        == f"a trial with hydra.run.dir={folder} is being run by another process ({folder}/.lock is locked)\n"
    )
    assert [path.name for path in folder.iterdir()] == [".lock"]  # not even Hydra wrote there
    typed.run("hydra.run.dir=same", "bits.weights=4")
    before = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    said = typed.run("hydra.run.dir=same", "bits.weights=8", status=1)
    assert said == f"{folder} holds a trial already, which is kept: give another hydra.run.dir, or none\n"
    assert before == {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    typed.run("method=fp32")
    (alone,) = typed.cwd.glob("outputs/*/*")
    assert len(alone.name) == len("23-59-59-999999")


@pytest.mark.parametrize(
    ("flags", "words", "message"),
    [
        (
            ["-m"],
            ["hydra.job.chdir=true", "bits.weights=4,8"],
            "hydra.job.chdir=true would take relative paths",
        ),
        ([], ["hydra.job.chdir=true"], "hydra.job.chdir=true would take relative paths"),
        (["-m"], ["sweep.name=ablation/v2", "bits.weights=4,8"], "(did you mean 'ablation-v2'?)"),
        (["-m"], ["sweep.name=../../x", "bits.weights=4,8"], "sweep.name names a folder"),
        (["-m"], ["~model.path", "+model.path=???", "bits.weights=4,8"], "model.path has no value"),
        ([], ["model.path=???"], "model.path has no value: give one with model.path=..."),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_one_line(
    flags: Sequence[str], words: Sequence[str], message: str, typed: Typed
) -> None:
    said = typed.run(*words, flags=flags, status=1)
    assert message in said and len(said.splitlines()) <= 3  # Hydra names the key, too
    assert not list(typed.cwd.rglob("result.json")) and not list(typed.cwd.rglob("results.csv"))


def test_a_killed_worker_is_one_line(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(*_: object, **__: object) -> None:
        raise TerminatedWorkerError("a worker process managed by the executor was unexpectedly terminated")

    monkeypatch.setattr(Plugins, "instantiate_launcher", lambda *_, **__: SimpleNamespace(launch=launch))
    said = typed.sweep("bits.weights=4,8", status=1)
    assert said.splitlines()[-1] == "a worker was killed (out of memory?); start again to go on"
