"""Alarms about plans, speeds and sizes that an integer runtime would not have."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence

from quantlab.alarms.alarm import Alarm, Evidence, first_few
from quantlab.kernels import native
from quantlab.network.sites import Site
from quantlab.network.taps import Tap
from quantlab.plan.plan import QuantPlan

BUSY = 1.25  # load for each processor; the trial itself makes at most 1
SMALLER = 0.9  # share of FP32's size that a quantized file must stay below; INT8 weights come near 1/4
NARROW = 16  # bits


def products_in_float(evidence: Evidence) -> Iterator[Alarm]:
    """Inputs of matrix products that stay unquantized while others do not: a runtime multiplies in float."""
    taps = {item.tap for item in evidence.plan.activations}
    operands = _operands(evidence.sites)
    left = [name for name, its_taps in operands if not taps & its_taps]
    if taps and left:
        roles = Counter(name.split(".", 1)[1] for name in left)
        names = first_few([f"{role} ({count})" for role, count in roles.most_common()])
        yield Alarm(
            "products_in_float",
            f"{len(left)} of {len(operands)} inputs of matrix products stay as they are: {names}",
        )


def simulated_latency(evidence: Evidence) -> Iterator[Alarm]:
    """A latency of simulated quantization, which no runtime has."""
    latency, speedup = (evidence.metrics.get(name) for name in ("latency_p50_ms", "speedup_vs_fp32"))
    if evidence.tags.get("engine") == "simulated" and latency is not None:
        also = "" if speedup is None else f"; nor is {speedup:.2f} its speed-up"
        yield Alarm(
            "simulated_latency",
            f"p50 of {latency:.1f} ms is that of FP32 arithmetic on quantized values, "
            f"no integer latency{also}",
        )


def size_not_smaller(evidence: Evidence) -> Iterator[Alarm]:
    """Narrow weights in a file that is about as large as FP32's."""
    narrow = [item for item in evidence.plan.weights if item.grid.bits < NARROW]
    name = "size_onnx_bytes" if evidence.metrics.get("size_onnx_bytes") else "size_bytes"
    size, fp32 = evidence.metrics.get(name), evidence.metrics.get("size_fp32_bytes")
    if narrow and size and fp32 and size >= SMALLER * fp32:
        yield Alarm(
            "size_not_smaller",
            f"{len(narrow)} weights are on grids of under {NARROW} bits, but {name} is {size / 1e6:.1f} MB, "
            f"{size / fp32:.0%} of FP32's",
        )


def kernels_missing(evidence: Evidence) -> Iterator[Alarm]:
    """``kernels.c`` could not be built or loaded, so torch did its work more slowly."""
    on_cpu = evidence.plan != QuantPlan() and evidence.model.device.type == "cpu"
    if on_cpu and (why := native.missing()):
        yield Alarm("kernels_missing", f"torch did the work of kernels.c, more slowly: {why}")


def machine_busy(evidence: Evidence) -> Iterator[Alarm]:
    """A profile on a machine with other work. Its times mean little; a speed-up in turns still holds."""
    processors = os.cpu_count() or 1
    for name in ("load_average_1m", "deployed_load_average_1m"):
        load = float(evidence.tags.get(name, 0))
        if load > BUSY * processors:
            yield Alarm(
                "machine_busy", f"{name} was {load:g} on {processors} processors when the profile began"
            )
            return


def runtime_fell_back(evidence: Evidence) -> Iterator[Alarm]:
    """A runtime runs products in float that the file has in integers."""
    if evidence.tags.get("runtime_fell_back") == "True":
        yield Alarm(
            "runtime_fell_back",
            f"{evidence.tags['runtime']} runs {evidence.tags['deployed_products']}: no INT8 latency",
        )


def runtime_saturates(evidence: Evidence) -> Iterator[Alarm]:
    """A runtime whose integer products saturate on this processor."""
    if evidence.tags.get("runtime_saturates") == "True":
        yield Alarm(
            "runtime_saturates",
            f"{evidence.tags['runtime']} sums products of bytes in 16 bits on this processor "
            "(it has no VNNI), and cuts large sums: a processor with VNNI gives other answers",
        )


def _operands(sites: Sequence[Site]) -> list[tuple[str, set[Tap]]]:
    """The inputs of matrix products, each with the taps that put it on a grid.

    A site without ``made_at`` is the same tensor as the site before it: the input of layer 1's attention is
    layer 0's output.
    """
    operands, before = [], None
    for site in sites:
        if site.read_at:
            operands.append((site.name, {tap for tap in (site.read_at, site.made_at or before) if tap}))
        before = site.made_at or before
    return operands
