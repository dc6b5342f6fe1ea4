"""Chooses the integer kernel: the fastest that is exact here and not clearly slower than FP32.

On a CPU each kernel is timed once against FP32 at the same shape. The cache folder keeps the times, so that
all processes of a machine choose alike. Integer sums are exact, so the choice changes no number.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch.nn.functional import gelu, linear

from quantlab.kernels import native, products, wide_product
from quantlab.kernels.isa import isa, isa_limit
from quantlab.kernels.products import (
    BITS,
    INT_MM_ROWS,
    GeluProduct,
    IntegerTensor,
    IntegerWeight,
    IntMm,
    OneDnn,
    OneDnnInHalves,
    Product,
)
from quantlab.kernels.snapper import Snapper
from quantlab.kernels.wide_product import WideProduct
from quantlab.machine.provenance import device_name
from quantlab.quant.grid import AffineGrid
from quantlab.storage.files import cache_dir, digest, file_digest, whole_folder, write_whole

KINDS: tuple[type[Product], ...] = (OneDnn, WideProduct, OneDnnInHalves, IntMm)
SLOW = 3.0  # the largest multiple of FP32's time. Kernels take 0.05 to 2, or over 10: noise does not decide
ROWS, SIZE = 64, 384  # shape of the timed product: MiniLM's hidden size
ROUNDS, PATIENCE_S = 9, 0.2  # at most so many timed rounds, and so many seconds
PRODUCT = "product"
GELU_SYMMETRIC, GELU_ASYMMETRIC = "product and GELU, symmetric", "product and GELU, asymmetric"
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class KernelCheck:
    """Whether a kernel is exact on a device, and its time there."""

    exact: bool
    times: Mapping[str, float]  # multiples of FP32's time, by what is computed; empty if untimed

    def usable(self, what: str = PRODUCT) -> bool:
        """Whether the kernel is exact and fast enough to compute ``what``."""
        return self.exact and self.times.get(what, 0.0) <= SLOW


def product_of(weight: IntegerWeight) -> Product:
    """A weight prepared for the chosen kernel. Raises ValueError that says why if there is none."""
    kind = chosen_kernel(_is_symmetric(weight), weight.scale.device)
    if kind is None:
        raise ValueError(why_no_kernel(weight))
    return kind(weight)


def why_no_kernel(weight: IntegerWeight) -> str:
    """Why no kernel multiplies a weight in integers here; empty if one does."""
    symmetric, device = _is_symmetric(weight), weight.scale.device
    if chosen_kernel(symmetric, device) is not None:
        return ""
    fitting = (kind for kind in KINDS if kind.fits(symmetric, device))
    reasons = (
        f"{kind.kernel(device)} takes {times_fp32(kind, device):.2g} times FP32's time"
        if check_kernel(kind, device).exact
        else f"{kind.kernel(device)} is not exact"
        for kind in fitting
    )
    return f"no integer kernel is exact and fast on this processor ({', '.join(reasons)})"


def chosen_kernel(symmetric: bool, device: torch.device) -> type[Product] | None:
    """The kernel for weights on a device, or None if FP32 has to do it; ``symmetric``: zero points are all
    0."""
    fitting = (kind for kind in KINDS if kind.fits(symmetric, device))
    usable = [kind for kind in fitting if check_kernel(kind, device).usable()]
    return min(usable, key=lambda kind: times_fp32(kind, device) or 0.0, default=None)


def fuses_gelu(multiply: Product, onto: Snapper) -> bool:
    """Whether one kernel for product, GELU and quantization is exact and fast enough here."""
    what = GELU_SYMMETRIC if onto.q_min < 0 else GELU_ASYMMETRIC
    return isinstance(multiply, GeluProduct) and check_kernel(type(multiply), CPU).usable(what)


def times_fp32(kind: type[Product], device: torch.device) -> float | None:
    """A kernel's time as a multiple of FP32's; None if it was not timed."""
    return check_kernel(kind, device).times.get(PRODUCT)


def arithmetic() -> str:
    """One line with the instruction set and the kernels of quantized networks on this CPU.

    If it differs, sums may be rounded differently. So it is part of the key of every result that depends on
    last bits. The first call checks the kernels (under a second, once per cache folder) and compiles
    ``kernels.c``.
    """
    kinds = {what: chosen_kernel(what == "symmetric", CPU) for what in ("symmetric", "asymmetric")}
    weights = [f"{what} weights: {'fp32' if kind is None else kind.name}" for what, kind in kinds.items()]
    fused = [
        what
        for what in (GELU_SYMMETRIC, GELU_ASYMMETRIC)
        if (kind := kinds["symmetric"])
        and issubclass(kind, GeluProduct)
        and check_kernel(kind, CPU).usable(what)
    ]
    return "; ".join([isa(), *weights, f"fused: {' and '.join(fused) or 'none'}", f"rest: {native.name()}"])


@cache
def check_kernel(kind: type[Product], device: torch.device) -> KernelCheck:
    """Checks a kernel on a device. On a GPU it is not timed: a small product's time there is the launch."""
    exact = is_exact(kind, device)
    return KernelCheck(exact=exact, times=_stored_time_ratios(kind) if exact and device.type == "cpu" else {})


def is_exact(kind: type[Product], device: torch.device) -> bool:
    """Whether a kernel sums the largest integers without saturating. It runs them to find out.

    Processors without VNNI add pairs of products in 16 bits; oneDNN's guide calls the overflow undefined.
    """
    count = 64
    for x, w in ((255, 127), (255, -127), (0, 127), (128, -127)):
        weight = IntegerWeight(
            integers=torch.full((16, count), w, dtype=torch.int8, device=device),
            scale=torch.ones(16, device=device),
            zero_point=torch.zeros(16, dtype=torch.int32, device=device),
        )
        same = torch.full((INT_MM_ROWS, count), x, dtype=torch.uint8, device=device)
        try:
            y = kind(weight)(IntegerTensor(integers=same, scale=1.0, zero_point=1), None)
        except (RuntimeError, AttributeError):  # a build of torch without this kernel
            return False
        if not bool((y == (x - 1) * w * count).all()):
            return False
    return True


def time_ratios(kind: type[Product]) -> dict[str, float]:
    """The kernel's times as multiples of FP32's for the same work, on one thread, by what is computed.

    Kernel and FP32 run in turns, and the shortest run of each counts: other work on the machine makes runs
    longer, never shorter.
    """
    integers = torch.arange(ROWS * SIZE) % 255
    x = IntegerTensor(integers=integers.to(torch.uint8).view(ROWS, SIZE), scale=0.01, zero_point=128)
    weight = IntegerWeight(
        integers=(torch.arange(SIZE * SIZE) % 253 - 126).to(torch.int8).view(SIZE, SIZE),
        scale=torch.full((SIZE,), 0.01),
        zero_point=torch.zeros(SIZE, dtype=torch.int32),
    )
    bias, values, weights = (
        torch.ones(SIZE),
        0.01 * (x.integers.float() - 128),
        0.01 * weight.integers.float(),
    )
    multiply = kind(weight)
    runs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        PRODUCT: (lambda: multiply(x, bias), lambda: linear(values, weights, bias))
    }
    if isinstance(multiply, GeluProduct):
        fused = multiply.gelu
        for what, symmetric in ((GELU_SYMMETRIC, True), (GELU_ASYMMETRIC, False)):
            grid = AffineGrid(bits=BITS, symmetric=symmetric)
            onto = grid.snapper(*grid.parameters(torch.tensor([-1.0]), torch.tensor([9.0])))
            runs[what] = (
                partial(fused, x, bias, onto),
                lambda: gelu(linear(values, weights, bias)),
            )
    with _one_thread(), torch.inference_mode():
        return {what: _ratio(*pair) for what, pair in runs.items()}


def _ratio(run: Callable[[], object], base: Callable[[], object]) -> float:
    """The shortest time of ``run`` over the shortest time of ``base``."""
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + PATIENCE_S
    while len(times) <= ROUNDS and (not times or time.perf_counter() < end):
        times.append((_seconds(run), _seconds(base)))
    runs, bases = zip(*(times[1:] or times), strict=True)  # the first round warms up
    ratio: float = min(runs) / min(bases)
    return ratio


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _stored_time_ratios(kind: type[Product]) -> Mapping[str, float]:
    """:func:`time_ratios`, from the cache folder if any process has measured them on this processor.

    The first process to store its times decides for all. If the folder cannot be written, each process uses
    its own times.
    """
    modules = map(Path, (__file__, str(products.__file__), str(wide_product.__file__)))
    sources = [file_digest(path) for path in (*modules, native.SOURCE, *native.INCLUDED)]
    facts = [kind.__name__, torch.__version__, isa(), isa_limit(), device_name(CPU), *sources]
    folder = cache_dir() / "kernels" / digest(facts)
    stored = _read_times(folder / "times.json")
    if stored is not None:
        return stored
    times = time_ratios(kind)
    text = json.dumps({"kernel": kind.name, "isa": isa(), "processor": device_name(CPU), "times": times})
    try:
        if folder.is_dir():  # its file could not be read
            write_whole(folder / "times.json", text)
        else:
            with whole_folder(folder) as scratch:
                (scratch / "times.json").write_text(text)
    except OSError:
        return times
    return _read_times(folder / "times.json") or times


def _read_times(path: Path) -> Mapping[str, float] | None:
    try:
        times = json.loads(path.read_text())["times"]
        read = {str(what): float(value) for what, value in times.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # absent, or cut by a power failure
        return None
    return read if PRODUCT in read and all(math.isfinite(value) for value in read.values()) else None


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limits torch to one thread until the exit, as in trials, which run batches side by side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _is_symmetric(weight: IntegerWeight) -> bool:
    return not bool(weight.zero_point.any())
