"""The memory of this machine, and the refusal of work that cannot fit in it.

The need is estimated from below: a run that is let through may need more, but one that is refused can never fit."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from simdino.errors import InputError

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


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


def refuse_beyond_memory(
    needed: dict[str, float], *, device: str | torch.device, words: str, instead: str = "give less"
) -> None:
    """Raise InputError where more memory is needed than there is.

    needed: bytes, by what needs them. words: the options that decide it, as typed. instead: what to do."""
    there, total = memory_of(device), sum(needed.values())
    if total > there:
        largest = max(needed, key=lambda name: needed[name])
        raise InputError(
            f"{words}: needs {total / 1e9:,.0f} GB of memory or more ({largest} {needed[largest] / 1e9:,.0f}), and "
            f"there are {there / 1e9:.3g} GB; {instead}"
        )
