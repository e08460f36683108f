"""The fastest arithmetic of devices: what GPUs are published to reach, and what this machine's processor does.

The share of it that a training step uses is its MFU, the model FLOPs utilisation (Chowdhery et al. 2022, PaLM, arXiv
2204.02311): the operations of the step's matrix products and convolutions a second, over this peak.

torch is imported when something is measured: the command line reads the names alone."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from simdino.config import Precision
from simdino.errors import InputError
from simdino.text import nearest

PUBLISHED: dict[str, tuple[float | None, float, float | None, float]] = {
    "V100": (None, 125, None, 15.7),
    "V100 PCIE": (None, 112, None, 14.0),
    "T4": (None, 65, None, 8.1),
    "A100": (312, 312, 156, 19.5),
    "A30": (165, 165, 82, 10.3),
    "A10": (125, 125, 62.5, 31.2),
    "A40": (149.7, 149.7, 74.8, 37.4),
    "RTX A6000": (154.8, 154.8, 77.4, 38.7),
    "RTX 3090": (71, 71, 35.6, 35.6),
    "RTX 4090": (165.2, 165.2, 82.6, 82.6),
    "RTX 5090": (209.5, 209.5, 104.8, 104.8),
    "L4": (121, 121, 60, 30.3),
    "L40": (181, 181, 90.5, 90.5),
    "L40S": (362, 362, 183, 91.6),
    "H100": (989.4, 989.4, 494.7, 66.9),
    "H100 PCIE": (756, 756, 378, 51.2),
    "H100 NVL": (835.5, 835.5, 417.5, 60),
    "H200": (989.4, 989.4, 494.7, 66.9),
    "H200 NVL": (835.5, 835.5, 417.5, 60),
    "GH200": (989.4, 989.4, 494.7, 66.9),
    "B200": (2250, 2250, 1125, 75),
    "MI300X": (1307.4, 1307.4, 653.7, 163.4),
}
"""Dense TFLOP/s of a GPU in bfloat16, float16 (both summed in float32), TF32 and float32 by its data sheet, without
sparsity; None for what it has no instructions for. A name with nothing after it is the module for servers (SXM) where
there are several."""

OTHERS = {"TI", "SUPER", "LAPTOP", "MOBILE", "MIG", "MAX", "D"}
"""Words of a name that say that a device is another than the one with the rest of its name, or a slice of it."""

SECONDS, TIMES, SIDE = 0.1, 3, 1024  # of a measurement: it takes so long, and so many products at least


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The operations that a device does a second at most, and how that is known."""

    flops: float
    source: str


def peak_of(device: str, precision: Precision) -> Peak | None:
    """Return the peak of a device in a precision: of a GPU by its data sheet, None for one that is not listed; of this
    machine's processor by a matrix product on torch's threads, which takes a tenth of a second the first time."""
    import torch

    kind = torch.device(device).type
    if kind == "cpu":
        return measured(precision, torch.get_num_threads())
    name = named(torch.cuda.get_device_name(device)) if kind == "cuda" else None
    return None if name is None else published(name, precision, tf32=torch.backends.cuda.matmul.allow_tf32 is True)


def published(name: str, precision: Precision, *, tf32: bool = False) -> Peak | None:
    """Return the peak of a GPU of the table. tf32: whether products of float32 numbers may be rounded to TF32."""
    bfloat16, float16, rounded, float32 = PUBLISHED[name]
    kind = "TF32" if precision == "float32" and tf32 and rounded is not None else precision
    found = {"bfloat16": bfloat16, "float16": float16, "TF32": rounded, "float32": float32}[kind]
    return None if found is None else Peak(flops=1e12 * found, source=f"published for {name}, dense {kind}")


def named(device: str) -> str | None:
    """Return the name in the table of a device that its driver calls so, such as "NVIDIA A100-SXM4-80GB"; None for one
    that it does not have, and for a part of one."""
    words = set(re.split(r"[^A-Z0-9]+", device.upper()))
    fitting = [name for name in PUBLISHED if words >= set(name.split())]
    return None if words & OTHERS else max(fitting, key=lambda name: len(name.split()), default=None)


def gpu_named(name: str) -> str:
    """Return a name of the table, whatever its case. Raises InputError for any other."""
    if name.upper() not in PUBLISHED:
        raise InputError(f"--gpu {name!r} must be {', '.join(PUBLISHED)}{nearest(name.upper(), PUBLISHED)}")
    return name.upper()


@cache
def measured(precision: Precision, threads: int) -> Peak:
    """Return what a square matrix product reaches here, the fastest of several."""
    import torch

    a = torch.ones(SIDE, SIDE, dtype=getattr(torch, precision))
    moments, ended = [time.perf_counter()], 0.0
    while ended < SECONDS or len(moments) <= TIMES:
        torch.mm(a, a)
        moments.append(time.perf_counter())
        ended = moments[-1] - moments[0]
    fastest = min(after - before for before, after in pairwise(moments))
    number = "1 thread" if threads == 1 else f"{threads} threads"
    told = f"measured here, a product of {SIDE} x {SIDE} matrices in {precision} on {number}"
    return Peak(flops=2 * SIDE**3 / fastest, source=told)
