"""Which instruction set oneDNN multiplies integers with."""

import os
from functools import cache

import torch

ISAS = ("sse41", "avx", "avx2", "avx_vnni", "avx512", "avx512_vnni", "amx")  # from narrow to wide
LIMITS = {
    "SSE41": "sse41",
    "AVX": "avx",
    "AVX2": "avx2",
    "AVX2_VNNI": "avx_vnni",
    "AVX2_VNNI_2": "avx_vnni",
    "AVX512_CORE": "avx512",
    "AVX512_CORE_VNNI": "avx512_vnni",
    "AVX512_CORE_BF16": "avx512_vnni",
    "AVX512_CORE_FP16": "avx512_vnni",
    "AVX10_1_512": "avx512_vnni",
}


def isa_limit() -> str:
    """``$ONEDNN_MAX_CPU_ISA`` in capitals, which oneDNN reads before its first operator; empty if not set."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()


@cache
def isa() -> str:
    """The widest instruction set for integer products that the processor has and oneDNN may use."""
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    named = (("amx_int8", "amx"), ("avx512_vnni", "avx512_vnni"), ("avx_vnni", "avx_vnni"))
    widest = next(
        (shown for flag, shown in named if flags.get(flag)), torch.backends.cpu.get_cpu_capability().lower()
    )
    limit = LIMITS.get(isa_limit(), widest)
    return min(widest, limit, key=ISAS.index) if {widest, limit} <= set(ISAS) else widest
