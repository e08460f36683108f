"""Everything that a run changes as it goes, which is what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from simdino.config import OptimConfig
from simdino.contracts import Embeddings, Views
from simdino.models.encoder import Encoder
from simdino.models.projector import Embedder, make_teacher
from simdino.train.optim import make_optimizer
from simdino.train.parallel import gathered, is_divided, stored_like

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
    spare: Encoder | None = None  # on the first process of a divided state: it takes the teacher's weights, whole

    @staticmethod
    def create(
        student: Embedder, *, optim: OptimConfig, device: torch.device, precision: str,
        buffers: dict[str, Tensor] | None = None, prepare: Callable[[Embedder, Embedder], None] = lambda *_: None,
    ) -> State:  # fmt: skip
        """Return the state before step 1, on the device. `buffers` is the loss's own: its tensors change in place.
        `prepare` is called with student and teacher before the optimizer takes their parameters."""
        student = student.to(device)
        scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
        teacher = make_teacher(student, batch_norm=student.encoder.batch_norm)
        prepare(student, teacher)
        return State(student, teacher, make_optimizer(student, optim), scaler, buffers or {})

    @property
    def encoder(self) -> Encoder:
        """The teacher's encoder, which is the result of a run."""
        return self.teacher.encoder

    @property
    def divided(self) -> bool:
        """Whether each process holds only a part of it, see `Processes.divide`."""
        return is_divided(self.student)

    @contextmanager
    def whole_encoder(self) -> Iterator[Encoder]:
        """Give the body the teacher's encoder, where the state is divided a copy that is whole, on the first process
        alone: the others must not use what they get. All processes call this."""
        if not self.divided:
            yield self.encoder
            return
        weights = gathered(self.encoder.state_dict(), keep=self.spare is not None)
        if self.spare is None:
            yield self.encoder
            return
        self.spare.load_state_dict(weights)
        try:
            yield self.spare.to(self.encoder.device)
        finally:
            self.spare.to("cpu")  # the device's memory is for training

    def teaches_itself(self, views: Views, optim: OptimConfig) -> bool:
        """Return whether the student's own features are the teacher's, so that one pass gives both: a quarter of the
        work of two global views is saved."""
        return optim.teacher == "none" and views.masks is None and self.student.encoder.same_in_training

    def embeddings(
        self, pieces: Sequence[Views], *, students: bool
    ) -> tuple[list[Embeddings], list[Embeddings] | None]:
        """Return what the teacher makes of each micro-batch, and the student where it is asked for. Both see one while
        it is there."""
        teachers: list[Embeddings] = []
        own: list[Embeddings] = []
        for piece in pieces:
            teachers.append(self.teacher(piece, student=False).with_prototypes_of(teachers))
            if students:
                own.append(self.student(piece).with_prototypes_of(own))
        return teachers, own if students else None

    def tensors(self, *, own: bool = False) -> dict[str, Any]:
        """Return the whole state as plain containers of tensors and numbers. Of a divided one the first process gets
        everything, on the CPU, and the others nothing in place of tensors; all processes call this. own: each gets its
        own part, for itself."""
        parts = {name: getattr(self, name).state_dict() for name in PARTS}
        parts = parts if own else gathered(parts, keep=self.spare is not None)
        return {**parts, "buffers": dict(self.buffers), "step": self.step}

    def load(self, tensors: dict[str, Any]) -> None:
        """Load what `tensors()` of any state returned, divided or not. Raises where a key is missing, surplus or
        misshapen."""
        for name in ("student", "teacher"):
            network = getattr(self, name)
            own = network.state_dict()
            network.load_state_dict({key: stored_like(x, own.get(key)) for key, x in tensors[name].items()})
        self.optimizer.load_state_dict(self._moments(tensors["optimizer"]))
        self.scaler.load_state_dict(tensors["scaler"])
        buffers = tensors["buffers"]
        if buffers.keys() != self.buffers.keys():
            raise KeyError(f"buffers hold {sorted(buffers)}, expected {sorted(self.buffers)}")
        for name, value in buffers.items():
            self.buffers[name].copy_(value)
        self.step = int(tensors["step"])

    def _moments(self, saved: dict[str, Any]) -> dict[str, Any]:
        """Return the saved state of the optimizer with its moments stored as the parameters here are."""
        parameters = dict(enumerate(p for group in self.optimizer.param_groups for p in group["params"]))
        kept = {
            i: {name: stored_like(x, parameters.get(i)) for name, x in moments.items()}
            for i, moments in saved["state"].items()
        }
        return {**saved, "state": kept}
