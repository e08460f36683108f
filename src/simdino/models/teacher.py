"""The teacher: an exponential moving average of the student."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def make_teacher(student: M, *, batch_norm: bool = False) -> M:
    """A copy of the student that takes no gradient.

    batch_norm: whether it has batch normalisation; it then normalises by its own batch, as DINO's teacher does, and
    its running statistics, which evaluation reads, are of what it has seen itself."""
    return copy.deepcopy(student).requires_grad_(False).train(batch_norm)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, *, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, for every parameter (DINO: no buffers)."""
    torch._foreach_lerp_(list(teacher.parameters()), [p.detach() for p in student.parameters()], 1 - momentum)  # pyright: ignore[reportPrivateImportUsage]
