"""The device of this machine: which there is, its memory, and its fastest arithmetic for the networks."""

import ctypes
import os
import sys
import timeit
from functools import cache
from pathlib import Path

import torch

from simdino.config import Precision
from simdino.contracts import InputError

WORTH = 1.2
"""The least speed-up over float32 at which bfloat16 products are used, since casts and losses in float32 cost some."""
TRIM, TOP_PAD, MMAP = -1, -2, -3  # mallopt's numbers, malloc.h
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


def present_device(name: str) -> str:
    """Return the device by that name, or the best one for "auto". Raises InputError where there is no such device."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        kind, index = torch.device(name).type, torch.device(name).index or 0
    except RuntimeError:
        raise InputError(f"--device {name!r} is none of auto, cpu, cuda, cuda:1, mps") from None
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if not 0 <= index < counts.get(kind, 0):
        others = f"has no {kind} {index}" if counts.get(kind, 0) else "has none that torch can use"
        raise InputError(f"--device {name}: this machine {others}; give --device cpu or auto")
    return name if kind == "cuda" else kind


@cache
def fastest(device: str) -> Precision:
    """Return bfloat16 where the device computes it faster, float16 on older GPUs, float32 elsewhere.

    A CPU is timed, for some 20 ms: some that have bfloat16 instructions run them at half the speed of float32 (Intel
    with AMX switched off), others at five times its speed (docs/log.md, precision)."""
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if device != "cpu" or not torch.cpu._is_avx512_bf16_supported():
        return "float32"
    gain = product_seconds(torch.float32) / product_seconds(torch.bfloat16)
    return "bfloat16" if gain > WORTH else "float32"


def product_seconds(dtype: torch.dtype, *, size: int = 512, tries: int = 7) -> float:
    """Return the shortest time in seconds of a square matrix product, of several tries, on torch's threads."""
    a = torch.ones(size, size, dtype=dtype)
    return min(timeit.repeat(lambda: torch.mm(a, a), number=1, repeat=tries))


def make_autocast(device: str | torch.device, precision: Precision) -> torch.autocast:
    """Return the autocast context for a precision on a device; float32 switches autocast off."""
    kind = torch.device(device).type
    dtype = None if precision == "float32" else getattr(torch, precision)
    return torch.autocast(kind, dtype, enabled=dtype is not None)


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step or batch instead of returning it to the system, which clears it
    page by page before every use: this saves 5 to 10 % of a step on a CPU, and up to a quarter of what an encoder takes
    to read images (docs/log.md, memory that is given back). Other C libraries are left as they are."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP, 32 * 2**20)  # the largest that glibc takes
        mallopt(TRIM, 2**31 - 1)
        mallopt(TOP_PAD, 64 * 2**20)


def memory_of(device: str | torch.device) -> float:
    """Return the bytes of a GPU, or of this machine or container; infinite where the system does not tell."""
    if torch.device(device).type == "cuda":
        return float(torch.cuda.get_device_properties(torch.device(device)).total_memory)
    found = [float("inf")]
    if hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():
        found.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    for limit in map(Path, LIMITS):
        text = limit.read_text().strip() if limit.is_file() else ""
        found += [float(text)] if text.isdigit() else []
    return min(found)


class BeyondMemory(InputError):
    """More memory is needed than there is."""


def refuse_beyond_memory(
    needed: dict[str, float], *, device: str | torch.device, words: str, instead: str = "give less"
) -> None:
    """Raise BeyondMemory where more memory is needed than there is.

    needed: bytes, by what needs them. words: the options that decide it, as typed. instead: what to do."""
    there, total = memory_of(device), sum(needed.values())
    if total > there:
        largest = max(needed, key=lambda name: needed[name])
        raise BeyondMemory(
            f"{words}: needs {total / 1e9:,.0f} GB of memory or more ({largest} {needed[largest] / 1e9:,.0f}), and "
            f"there are {there / 1e9:.3g} GB; {instead}"
        )
