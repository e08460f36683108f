"""The teacher: an exponential moving average of the student."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def make_teacher(student: M, *, batch_norm: bool = False) -> M:
    """Return a copy of the student that takes no gradient.

    batch_norm: whether it has batch normalisation. The teacher then normalises by its own batch, as DINO's does, and
    its running statistics, which evaluations read, come from what it has seen itself."""
    return copy.deepcopy(student).requires_grad_(False).train(batch_norm)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, *, momentum: float) -> None:
    """Set teacher <- momentum * teacher + (1 - momentum) * student for every parameter (buffers stay, as in DINO)."""
    torch._foreach_lerp_(list(teacher.parameters()), [p.detach() for p in student.parameters()], 1 - momentum)  # pyright: ignore[reportPrivateImportUsage]
