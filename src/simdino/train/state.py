"""Everything that a run changes as it goes, which is what a checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from simdino.config import OptimConfig
from simdino.contracts import Views
from simdino.models.encoder import Encoder
from simdino.models.projector import Embedder, make_teacher
from simdino.train.optim import make_optimizer

PARTS = ("student", "teacher", "optimizer", "scaler")  # with a `state_dict` each


@dataclass
class State:
    """Student, teacher, optimizer, gradient scaler, the loss's buffers, and the number of steps done. The random
    numbers of a run are functions of the step, so there is no random state."""

    student: Embedder
    teacher: Embedder
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    buffers: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    model: nn.Module | None = None  # the student as the processes share it: wrapped in DDP when there are several

    @staticmethod
    def create(
        student: Embedder, *, optim: OptimConfig, device: torch.device, precision: str,
        buffers: dict[str, Tensor] | None = None,
    ) -> State:  # fmt: skip
        """Return the state before step 1, on the device. `buffers` is the loss's own: its tensors change in place."""
        student = student.to(device)
        scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
        teacher = make_teacher(student, batch_norm=student.encoder.batch_norm)
        return State(student, teacher, make_optimizer(student, optim), scaler, buffers or {})

    @property
    def encoder(self) -> Encoder:
        """The teacher's encoder, which is the result of a run."""
        return self.teacher.encoder

    def teaches_itself(self, views: Views, optim: OptimConfig) -> bool:
        """Return whether the student's own features are the teacher's, so that one pass gives both: a quarter of the
        work of two global views is saved."""
        return optim.teacher == "none" and views.masks is None and self.student.encoder.same_in_training

    def tensors(self) -> dict[str, Any]:
        """Return the whole state as plain containers of tensors and numbers."""
        parts = {name: getattr(self, name).state_dict() for name in PARTS}
        return {**parts, "buffers": dict(self.buffers), "step": self.step}

    def load(self, tensors: dict[str, Any]) -> None:
        """Load what `tensors()` returned. Raises where a key is missing, surplus or misshapen."""
        for name in PARTS:
            getattr(self, name).load_state_dict(tensors[name])
        buffers = tensors["buffers"]
        if buffers.keys() != self.buffers.keys():
            raise KeyError(f"buffers hold {sorted(buffers)}, expected {sorted(self.buffers)}")
        for name, value in buffers.items():
            self.buffers[name].copy_(value)
        self.step = int(tensors["step"])
