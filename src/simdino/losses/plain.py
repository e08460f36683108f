"""The losses on plain tensors, for a training loop of one's own:

    loss = SimDINO()(student, teacher)
    loss.backward()

student: one embedding per view and image [V, B, d], or a list of V tensors [B, d], global views first; teacher: the
same of the G global views [G, B, d]. Each call computes what a run computes of the same embeddings, in one process or
in several, whose sums over images pass through `all_reduce`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from simdino.contracts import AllReduce, Embeddings, identity, precise, unit
from simdino.errors import InputError
from simdino.losses import simdino
from simdino.losses.cross_entropy import centred, sinkhorn

Views = Tensor | Sequence[Tensor]


class SimDINO(nn.Module):
    """SimDINO's loss: alignment of views, less the coding rate of a batch. Embeddings are normalised here.

    eps: distortion of the coding rate (the released code's `eps` is its square).
    gamma: weight of the rate: "balanced", "theorem", "released" or a number, see `losses.simdino.SimDINO`.
    rho: for "balanced", the largest gradient of the rate over that of alignment.
    lift: for "balanced", how much steeper the rate is near collapse; 0 is the paper's.
    rate_on: whose embeddings the rate is of; "mean" is of student and teacher.
    all_reduce: a differentiable sum over processes."""

    def __init__(
        self, *, eps: float = 0.05**0.5, gamma: float | Literal["balanced", "theorem", "released"] = "balanced",
        rho: float = 1.5, lift: float = 3.0, rate_on: Literal["student", "mean"] = "student",
        all_reduce: AllReduce = identity,
    ) -> None:  # fmt: skip
        super().__init__()
        lift = lift if gamma == "balanced" else 0.0
        self.objective = partial(simdino.SimDINO, eps=eps, gamma=gamma, rho=rho, lift=lift, rate_on=rate_on)
        self.all_reduce = all_reduce

    def forward(self, student: Views, teacher: Views) -> Tensor:
        """Return the loss, a float64 scalar; gradients flow to the student alone."""
        s, t = stacked(student, teacher)
        sizes: dict[str, Any] = {"dim": s.shape[2], "global_views": len(t), "local_views": len(s) - len(t)}
        objective = self.objective(batch=global_batch(s, self.all_reduce), **sizes)
        indices = torch.arange(s.shape[1], device=s.device)
        mine, theirs = (Embeddings(cls=unit(x), backbone=x, indices=indices) for x in (s, t))
        return objective(mine, theirs, all_reduce=self.all_reduce).total


class DINO(nn.Module):
    """DINO's loss on prototype logits [V, B, K]: the student predicts the teacher's distribution from other views.

    prototypes: their number K. student_temperature, teacher_temperature: of the distributions.
    centering: "centering" subtracts a running mean of the teacher's logits, which each call in training mode moves by
        1 - `center_momentum`; "sinkhorn" balances the batch. all_reduce: a differentiable sum over processes."""

    center: Tensor  # [K]

    def __init__(
        self, prototypes: int, *, student_temperature: float = 0.1, teacher_temperature: float = 0.04,
        centering: Literal["centering", "sinkhorn"] = "centering", center_momentum: float = 0.9,
        all_reduce: AllReduce = identity,
    ) -> None:  # fmt: skip
        super().__init__()
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.centering, self.center_momentum, self.all_reduce = centering, center_momentum, all_reduce
        self.register_buffer("center", torch.zeros(prototypes))

    def forward(self, student: Views, teacher: Views) -> Tensor:
        """Return the loss, a scalar in float32 or better; gradients flow to the student alone."""
        s, t = (precise(x) for x in stacked(student, teacher))
        if s.shape[2] != len(self.center):
            raise InputError(f"DINO has {len(self.center)} prototypes, received logits {list(s.shape)}")
        batch = global_batch(s, self.all_reduce)
        with torch.autocast(s.device.type, enabled=False):
            with torch.no_grad():
                targets = self._targets(t)
            scores = (s / self.student_temperature).log_softmax(-1)
            agreement = torch.einsum("gbk,vbk->gv", targets, scores)
            different = ~torch.eye(len(t), len(s), dtype=torch.bool, device=s.device)
            total = -self.all_reduce(agreement[different].sum()) / (len(t) * (len(s) - 1) * batch)
            if self.training:
                mean = self.all_reduce(t.sum((0, 1))) / (len(t) * batch)
                self.center.lerp_(mean, 1 - self.center_momentum)
        return total

    def _targets(self, teacher: Tensor) -> Tensor:
        if self.centering == "centering":
            return centred(teacher, self.center, temperature=self.teacher_temperature)
        rows = sinkhorn(teacher.flatten(0, 1), temperature=self.teacher_temperature, all_reduce=self.all_reduce)
        return rows.view_as(teacher)


def stacked(student: Views, teacher: Views) -> tuple[Tensor, Tensor]:
    """Return both as tensors [V, B, d] and [G, B, d], the teacher's without a graph. Raises InputError for others."""
    s, t = (x if isinstance(x, Tensor) else torch.stack(list(x)) for x in (student, teacher))
    if s.ndim != 3 or t.ndim != 3 or s.shape[1:] != t.shape[1:] or len(t) > len(s) or len(s) < 2:
        raise InputError(
            f"a loss takes the student's embeddings [V, B, d] and the teacher's [G, B, d] of the first G of V views, "
            f"V at least 2: received {list(s.shape)} and {list(t.shape)}"
        )
    return s, t.detach()


def global_batch(student: Tensor, all_reduce: AllReduce) -> int:
    """Return the number of images of all processes."""
    return int(all_reduce(torch.tensor(float(student.shape[1]), device=student.device)))
