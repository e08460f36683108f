"""The four objectives written out as the slowest possible loops in float64, and one batch of what they look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from simdino.contracts import Embeddings, Logits, Patches
from simdino.losses.objective import Objective
from simdino.rng import sample_keys

G, M, BATCH, DIM, WIDTH, K, GRID = 2, 2, 8, 5, 6, 9, 6
STUDENT_TEMPERATURE, TEMPERATURE = 0.1, 0.05
SPLITS = [[8], [3, 3, 2], [1, 7], [1] * 8]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
DTYPES = list(TOLERANCE)


@dataclass(frozen=True)
class Side:
    """What one network made of a batch, free to vary: features before they are brought to norm one, logits as such."""

    cls: Tensor  # [V, B, d]
    backbone: Tensor  # [V, B, D]
    logits: Tensor  # [V, B, K]
    patches: Tensor  # [G, B, P, d]
    patch_logits: Tensor  # [G, B, P, K]

    def leaves(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]


class Largest(TorchDispatchMode):
    """The largest number of elements of any tensor that is made."""

    seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.seen = max(self.seen, value.untyped_storage().nbytes() // value.element_size())
        return result


@dataclass(frozen=True)
class FixedTargets:
    """Targets [..., n, K] as they are given."""

    classes: Tensor

    def of(self, rows: slice) -> Tensor:
        return self.classes[..., rows, :]


@dataclass(frozen=True)
class Batch:
    """A student, a teacher that sees global views only, and the masks of the global views."""

    student: Side
    teacher: Side
    masks: Tensor  # bool [G, B, P]
    keys: Tensor  # int64 [B]

    def embeddings(self, side: Side, rows: Tensor | None = None) -> Embeddings:
        """Of the images `rows` (all by default), their masked patches crop by crop with the view first."""
        rows = torch.arange(BATCH) if rows is None else rows
        chosen = self.masks[:, rows].flatten(0, 1)
        crops = chosen.nonzero()[:, 0]
        patches = Patches(
            features=norm_one(side.patches[:, rows].flatten(0, 1)[chosen]),
            weights=(1 / chosen.sum(1).clamp_min(1).to(side.patches.dtype))[crops],
            keys=(self.keys[rows].repeat(G) + torch.arange(G).repeat_interleave(len(rows)))[crops],
            indices=rows.repeat(G)[crops],
            logits=as_logits(side.patch_logits[:, rows].flatten(0, 1)[chosen][None]),
        )
        return Embeddings(
            cls=norm_one(side.cls[:, rows]), backbone=side.backbone[:, rows], indices=rows,
            logits=as_logits(side.logits[:, rows]), patches=patches,
        )  # fmt: skip


def make_batch(dtype: torch.dtype = torch.float64, *, seed: int = 0, local_views: int = M) -> Batch:
    """Numbers that are drawn in float32, so that both float types have the same ones. A third of the crops is whole,
    and one has all of its patches hidden."""
    generator = torch.Generator().manual_seed(seed)

    def side(views: int, *, student: bool) -> Side:
        shapes = (
            (views, BATCH, DIM),
            (views, BATCH, WIDTH),
            (views, BATCH, K),
            (G, BATCH, GRID, DIM),
            (G, BATCH, GRID, K),
        )
        scales = 1.0, 1.0, 0.3, 1.0, 0.3  # logits are cosines: a few tenths
        made = [
            (scale * torch.randn(shape, generator=generator)).to(dtype).requires_grad_(student)
            for shape, scale in zip(shapes, scales, strict=True)
        ]
        return Side(*made)

    masks = torch.rand(G, BATCH, GRID, generator=generator) < 0.4
    masks[torch.rand(G, BATCH, generator=generator) < 0.34] = False
    masks[0, 0], masks[1, 0], masks[1, 3] = True, False, False
    keys = torch.from_numpy(sample_keys(0, seed, torch.arange(BATCH).numpy()))
    student = side(G + local_views, student=True)
    return Batch(student, side(G, student=False), masks, keys)


def as_logits(values: Tensor) -> Logits:
    """Logits that have these values: those of features against prototypes along the axes."""
    return Logits(features=values, weight=torch.eye(values.shape[-1], dtype=values.dtype))


def norm_one(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


# --- the formulas ---------------------------------------------------------------------------------------------------


def slow_softmax(x: Tensor, temperature: float) -> Tensor:
    """exp(x_k/tau) / sum_j exp(x_j/tau) of one vector."""
    powers = [torch.exp(value / temperature) for value in x.double()]
    return torch.stack([power / sum(powers) for power in powers])


def slow_cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    """- sum_k t_k log softmax(l/0.1)_k of one pair of vectors."""
    p = slow_softmax(logits, STUDENT_TEMPERATURE)
    return -sum((target[k] * torch.log(p[k]) for k in range(len(p))), torch.zeros((), dtype=torch.float64))


def slow_centred(logits: Tensor, center: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """softmax((l - c)/tau) of the rows [m, K]."""
    return torch.stack([slow_softmax(row.double() - center.double(), temperature) for row in logits])


def slow_sinkhorn(logits: Tensor, temperature: float = TEMPERATURE, iterations: int = 3) -> Tensor:
    """Rows [m, K] as in DINOv2: Q = exp(l/tau)ᵀ over its sum; three times each row to 1/K, each column to 1/n; nQᵀ."""
    n, prototypes = logits.shape
    q = torch.exp(logits.double() / temperature).T  # K x n
    q = q / q.sum()
    for _ in range(iterations):
        q = torch.stack([row / row.sum() / prototypes for row in q])
        q = torch.stack([column / column.sum() / n for column in q.T]).T
    return n * q.T


def slow_dino(student: Side, targets: Tensor) -> Tensor:
    """Mean over images and over pairs of a teacher's global view with another view. targets: [G, B, K]."""
    total, pairs = torch.zeros((), dtype=torch.float64), 0
    for i, v in product(range(G), range(len(student.logits))):
        if i != v:
            pairs += 1
            for b in range(BATCH):
                total = total + slow_cross_entropy(targets[i, b], student.logits[v, b]) / BATCH
    return total / pairs


def slow_ibot(batch: Batch, targets: Tensor) -> Tensor:
    """1/(2B) sum over crops of 1/|M| sum over masked patches. targets: of all masked patches, crop by crop."""
    total, row = torch.zeros((), dtype=torch.float64), 0
    for g, b in product(range(G), range(BATCH)):
        hidden = batch.masks[g, b].nonzero()[:, 0].tolist()
        for patch in hidden:
            entropy = slow_cross_entropy(targets[row], batch.student.patch_logits[g, b, patch])
            total, row = total + entropy / len(hidden), row + 1
    return total / (G * BATCH)


def slow_koleo(x: Tensor) -> Tensor:
    """- mean of log(distance to the nearest neighbour + 1e-8) of rows [n, D], which are brought to norm one."""
    x = norm_one(x.double())
    logs = []
    for i in range(len(x)):
        cosines = [-2.0 if j == i else (x[i] @ x[j]).item() for j in range(len(x))]
        nearest = cosines.index(max(cosines))
        logs.append(torch.log((x[i] - x[nearest]).square().sum().sqrt() + 1e-8))
    return -torch.stack(logs).mean()


def slow_patch_cosines(batch: Batch) -> Tensor:
    """- 1/(2B) sum over crops of 1/max(1, |M|) sum over masked patches of cos(z_s, z_t)."""
    total = torch.zeros((), dtype=torch.float64)
    for g, b in product(range(G), range(BATCH)):
        hidden = batch.masks[g, b].nonzero()[:, 0].tolist()
        for patch in hidden:
            s, t = batch.student.patches[g, b, patch].double(), batch.teacher.patches[g, b, patch].double()
            total = total - (s @ t) / (s.norm() * t.norm()) / max(1, len(hidden))
    return total / (G * BATCH)


def masked_patches(batch: Batch, values: Tensor) -> Tensor:
    """The rows of [G, B, P, ...] whose patches are masked, crop by crop."""
    rows = [values[g, b, p] for g, b, p in product(range(G), range(BATCH), range(GRID)) if batch.masks[g, b, p]]
    return torch.stack(rows)


# --- comparisons ----------------------------------------------------------------------------------------------------


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def gradients(total: Tensor, batch: Batch) -> list[Tensor]:
    """With respect to all the student's features and logits; zero where there is none."""
    found = torch.autograd.grad(total, batch.student.leaves(), allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(batch.student.leaves(), found, strict=True)]


def check_same(actual: Tensor, expected: Tensor, batch: Batch, *, tolerance: float) -> None:
    """Value and gradient. A gradient that shall be zero is zero."""
    assert relative(actual.detach(), expected.detach()) < tolerance
    for mine, theirs in zip(gradients(actual, batch), gradients(expected, batch), strict=True):
        if theirs.any():
            assert relative(mine, theirs) < tolerance
        else:
            assert not mine.any()


def evaluate(loss: Objective, batch: Batch, sizes: Sequence[int] = (BATCH,), *, order: Tensor | None = None) -> Any:
    """(total, terms) of a batch whose images, in the order given, come in parts of these sizes."""
    rows = (torch.arange(BATCH) if order is None else order).split(list(sizes))
    teachers = [batch.embeddings(batch.teacher, part) for part in rows]
    students = [batch.embeddings(batch.student, part) for part in rows]
    ahead = students if len(rows) > 1 and loss.needs_global_statistics else None
    statistics = loss.global_statistics(teachers, ahead, temperature=TEMPERATURE, all_reduce=lambda x: x)
    results = [loss(*parts) for parts in zip(students, teachers, statistics, strict=True)]
    values = [result.terms | result.health for result in results]
    values.append(loss.health(teachers, statistics))  # of the whole batch
    total = torch.stack([result.total for result in results]).sum()
    return total, {name: sum(float(value.get(name, 0.0)) for value in values) for name in {**values[0], **values[-1]}}


def check_parts(loss: Objective, batch: Batch, sizes: Sequence[int]) -> None:
    """Parts of a shuffled batch add up to the batch: values, terms, health and gradient."""
    whole, numbers = evaluate(loss, batch)
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(1))
    total, added = evaluate(loss, batch, sizes, order=order)
    check_same(total, whole, batch, tolerance=1e-9)
    for name, value in numbers.items():
        if name != "gradient_ratio":  # of which a part knows its own share only
            assert abs(added[name] - value) <= 1e-9 * max(1, abs(value)), name
