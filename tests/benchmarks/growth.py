"""How time and memory grow: ``python tests/benchmarks/growth.py [rows] [layers] [length] [groups] [trials]``.

``rows``     a trial of a 3-layer BERT on 100 to 5,463 rows of 32 tokens
``layers``   3 to 24 layers, 100 rows of 64 tokens
``length``   rows of 32 to 512 tokens, 64 of them, 3 layers
``groups``   PEG with K from 1 to 32
``trials``   a sweep of 10, 100 and 1,000 trials: what it takes to start, to record, to start again, to report

Weights are random and narrow (64 channels). Times are the processor's, in one thread, so that other work
on the machine counts little; memory is what the process had at most beyond what it had before. Each exponent
is the slope of a straight line through the logarithms, with its 95 % interval; ``last`` is the slope between
the two largest. Finished trials of a sweep are copies of one, under their own keys: nothing runs.
``--store postgres`` records on a server of its own.

Writes ``growth.csv`` and ``growth.png`` into ``--out``.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pandas as pd
import torch
from random_bert import material
from scipy import stats

import sweeps
from quantlab.machine.allocator import release_freed_memory
from quantlab.storage.memo import Memo

AXES: dict[str, tuple[int, ...]] = {
    "rows": (100, 300, 1000, 2500, 5463),
    "layers": (3, 6, 12, 24),
    "length": (32, 64, 128, 256, 512),
    "groups": (1, 2, 4, 8, 16, 32),
    "trials": (10, 100, 1000),
}
LONG_S = 5.0  # a trial that takes longer is not repeated
MB = 2**20


@dataclass(frozen=True)
class Point:
    """One measurement."""

    axis: str
    what: str
    size: int
    seconds: float  # of processor time
    mb: float  # at most, beyond what was there before


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("axes", nargs="*", metavar="axis", help=f"of {', '.join(AXES)}; all by default")
    parser.add_argument("--least", type=int, default=0, help="leaves out smaller sizes")
    parser.add_argument("--most", type=int, default=10**9, help="leaves out larger sizes")
    parser.add_argument("--store", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--out", type=Path, default=Path("growth"))
    parser.add_argument("--prepare", type=int, help=argparse.SUPPRESS)  # a child: trials of a sweep
    arguments = parser.parse_args()
    if arguments.prepare:
        prepare(arguments.prepare, arguments.out)
        return
    if strange := set(arguments.axes) - AXES.keys():
        parser.error(f"no axis {', '.join(strange)}: there are {', '.join(AXES)}")
    torch.set_num_threads(1)
    points: list[Point] = []
    for axis in arguments.axes or AXES:
        sizes = [size for size in AXES[axis] if arguments.least <= size <= arguments.most]
        with tempfile.TemporaryDirectory(prefix="quantlab-") as name:
            folder = Path(name)
            os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
            found = (
                trials(sizes, folder, arguments.store)
                if axis == "trials"
                else one_by_one(axis, sizes, folder)
            )
            for point in found:
                print(f"{point.axis} {point.what} {point.size:,}: {point.seconds:.2f} s, {point.mb:.0f} MB")
                points.append(point)
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(map(asdict, points))
    table.to_csv(arguments.out / "growth.csv", index=False)
    print(exponents(table).to_markdown(index=False, disable_numparse=True))
    draw(table, arguments.out / "growth.png")


def one_by_one(axis: str, sizes: Sequence[int], folder: Path) -> Iterator[Point]:
    """A whole trial at each size, the shorter of two if it is short, after one that loads what all need."""
    from labs import Lab

    from quantlab.cli.catalogue import register
    from quantlab.trial.trial import run_trial

    register()

    def overrides(size: int) -> list[str]:
        rows, layers = (size if axis == "rows" else 100), (size if axis == "layers" else 3)
        length = size if axis == "length" else 64 if axis == "layers" else 32
        rows = 64 if axis == "length" else rows
        chosen = ["method=peg", f"method.k={size}", "method.permute=range"] if axis == "groups" else []
        return [
            *material(folder, layers, rows),
            f"task.max_length={length}",
            "calibration.samples=16",
            *chosen,
        ]

    Lab(tuple(overrides(sizes[0]))).trial()
    for size in sizes:
        lab, seconds, peaks = Lab(tuple(overrides(size))), [], []
        for _ in range(2):
            shutil.rmtree(folder / "cache" / "quantlab" / "fp32", ignore_errors=True)
            config, before = lab.config(), lowest_memory()
            begun = time.process_time()
            run_trial(config, Memo()).save(folder / "trial")
            seconds.append(time.process_time() - begun)
            peaks.append(highest_memory() - before)
            shutil.rmtree(folder / "trial")
            if seconds[-1] > LONG_S:
                break
        yield Point(axis, "trial", size, min(seconds), max(peaks))


def trials(sizes: Sequence[int], folder: Path, store: str) -> Iterator[Point]:
    """What a sweep takes besides its trials."""
    base = sweeps.tiny(folder)
    (folder / "base.json").write_text(json.dumps(base))
    measured(
        [sys.executable, "-m", "quantlab.run", *base, "tracking=off", f"hydra.run.dir={folder}/one"], folder
    )
    for size in sizes:
        place = folder / str(size)
        place.mkdir()
        _, mb = measured([sys.executable, __file__, "--prepare", str(size), "--out", str(folder)], place)
        told = json.loads((place / "prepared.json").read_text())
        yield Point("trials", "start", size, told["seconds"], mb)
        with sweeps.tracking_uri(store == "postgres", place) as uri:
            own = ["tracking=server", f"tracking.uri={uri}"] if store == "postgres" else []
            sweep = [sys.executable, "-m", "quantlab.run", "-m", *base, axis(size), *own]
            for what in ("record", "again"):
                yield Point("trials", what, size, *measured(sweep, place))
        (made,) = place.glob("multirun/sweeps/*")
        out = f"--out={place}/page.html"
        yield Point(
            "trials",
            "report",
            size,
            *measured([sys.executable, "-m", "quantlab.report", str(made), out], place),
        )


def axis(size: int) -> str:
    return f"calibration.seed={','.join(map(str, range(size)))}"


def prepare(size: int, folder: Path) -> None:
    """In a process of its own: composes and checks the trials of a sweep; then copies one for each."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from quantlab.cli.catalogue import register
    from quantlab.cli.conf_dir import CONF
    from quantlab.sweeping.composing import TrialsLoader
    from quantlab.sweeping.prepare import prepare_sweep

    register()
    torch.set_num_threads(1)
    typed = [*json.loads((folder / "base.json").read_text()), axis(size)]
    with initialize_config_dir(CONF, version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        begun = time.process_time()
        master = hydra.config_loader.load_configuration("config", typed, run_mode=RunMode.MULTIRUN)
        overrides = OmegaConf.to_container(master.hydra.overrides.task)
        assert isinstance(overrides, list)
        sweeping = prepare_sweep(TrialsLoader(hydra.config_loader), master, overrides)
        seconds = time.process_time() - begun
    summary = json.loads((folder / "one" / "result.json").read_text())
    for key in sweeping.unique:
        place = sweeping.store.folder(key)
        shutil.copytree(folder / "one", place, ignore=shutil.ignore_patterns("tracking", ".lock"))
        summary["tags"]["key"] = key
        (place / "result.json").write_text(json.dumps(summary))
    Path("prepared.json").write_text(json.dumps({"seconds": seconds}))


def measured(command: Sequence[str], place: Path) -> tuple[float, float]:
    """Processor time and highest memory of a command. Ends the program with its output where it fails."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, cwd=place, env=environment, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(said.read())
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / MB


def lowest_memory() -> float:
    """Resident memory in MB; what was highest before is forgotten."""
    release_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def highest_memory() -> float:
    """The highest resident memory in MB since :func:`lowest_memory`."""
    return _status("VmHWM")


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024 / MB


def exponents(table: pd.DataFrame) -> pd.DataFrame:
    """For each curve the slope of its logarithms, of time and of memory."""
    rows = []
    for (axis, what), points in table.groupby(["axis", "what"], sort=False):
        told = {name: slope(points["size"], points[name]) for name in ("seconds", "mb")}
        rows.append(
            {
                "axis": axis,
                "what": what,
                "sizes": f"{points['size'].min():,} to {points['size'].max():,}",
                "seconds": f"{points['seconds'].iloc[0]:.2f} to {points['seconds'].iloc[-1]:.2f}",
                "exponent of time": told["seconds"],
                "MB": f"{points['mb'].iloc[0]:.0f} to {points['mb'].iloc[-1]:.0f}",
                "exponent of memory": told["mb"],
            }
        )
    return pd.DataFrame(rows)


def slope(sizes: pd.Series, values: pd.Series) -> str:
    """``0.93 (0.85 to 1.01), last 0.99``."""
    if len(sizes) < 3:
        return ""
    x, y = np.log(sizes.to_numpy(float)), np.log(np.maximum(values.to_numpy(float), 1e-3))
    fit = stats.linregress(x, y)
    margin = stats.t.ppf(0.975, len(x) - 2) * fit.stderr
    last = (y[-1] - y[-2]) / (x[-1] - x[-2])
    return f"{fit.slope:.2f} ({fit.slope - margin:.2f} to {fit.slope + margin:.2f}), last {last:.2f}"


def draw(table: pd.DataFrame, path: Path) -> None:
    """One panel an axis: processor time against size, both in logarithms, with a dotted line of slope 1."""
    from matplotlib.figure import Figure

    axes = list(dict.fromkeys(table["axis"]))
    figure = Figure(figsize=(3 * len(axes), 3), layout="constrained")
    for panel, axis in zip(figure.subplots(1, len(axes), squeeze=False)[0], axes, strict=True):
        own = table[table["axis"] == axis]
        for what, points in own.groupby("what", sort=False):
            panel.loglog(points["size"], points["seconds"], marker="o", markersize=3, label=what)
        ends = np.array([own["size"].min(), own["size"].max()])
        panel.loglog(ends, own["seconds"].max() * ends / ends[1], ":", color="grey", label="linear")
        panel.set_xlabel(axis)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=7)
    figure.axes[0].set_ylabel("processor time (s)")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
