"""One batch, one small network, and the ways to split the batch: in micro-batches, over two gloo processes, in both.

Everything goes through `train.step.step`, as in a run. The gradient is what the optimizer is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from encoders import made
from simdino.config import OptimConfig
from simdino.contracts import AllReduce, Views
from simdino.data.masks import mask_ratios, masks_for
from simdino.losses.dino import DINO
from simdino.losses.dinov2 import DINOv2
from simdino.losses.objective import Objective
from simdino.losses.simdino import SimDINO
from simdino.losses.simdinov2 import SimDINOv2
from simdino.models.projector import Embedder, Projector, Prototypes
from simdino.models.vit import ViT
from simdino.rng import sample_keys
from simdino.train.parallel import Processes, processes
from simdino.train.state import State
from simdino.train.step import step

BATCH, DIM = 512, 16
FEW, K = 48, 24  # images and prototypes of the methods beside SimDINO
UNCLIPPED = OptimConfig(clip=float("inf"), freeze_prototypes=0.0, temperature=(0.05, 0.05))
AUTOCAST = torch.autocast("cpu", enabled=False)


class Case(NamedTuple):
    """An objective and the float type of network and views."""

    dtype: torch.dtype
    gamma: Any
    scope: Any = "global"
    rate_on: Any = "student"
    method: str = "simdino"
    centering: Any = "centering"
    patch_rate: float = 0.0
    separate: bool = False  # heads
    half_masked: bool = False  # images of the second half have no mask

    @property
    def masked(self) -> bool:
        return self.method in ("simdinov2", "dinov2")

    @property
    def prototypes(self) -> bool:
        return self.method in ("dino", "dinov2")

    @property
    def batch(self) -> int:
        return BATCH if self.method == "simdino" else FEW

    def loss(self, batch: int | None = None) -> Any:
        loss = self._loss(batch or self.batch)
        for i, name in enumerate(loss.buffers):  # centres that are felt, in the float type of the case
            start = 0.1 * torch.randn(K, generator=torch.Generator().manual_seed(i))
            loss.buffers[name] = start.to(self.dtype)
        return loss

    def _loss(self, batch: int) -> Objective:
        sizes: dict[str, Any] = {"batch": batch, "dim": DIM, "local_views": 2}
        if not self.prototypes:
            sizes |= {
                "eps": 0.05**0.5, "gamma": self.gamma, "scope": self.scope, "rate_on": self.rate_on,
                "shard_size": 64 if self.method == "simdino" else 8,
            }  # fmt: skip
            return SimDINO(**sizes) if self.method == "simdino" else SimDINOv2(**sizes, patch_rate=self.patch_rate)
        kind = DINO if self.method == "dino" else DINOv2
        return kind(**sizes, prototypes=K, centering=self.centering)

    def __str__(self) -> str:
        if self.method == "simdino":
            return f"{str(self.dtype)[6:]}-{self.gamma}-{self.scope}-{self.rate_on}"
        options = f"{self.centering}" if self.prototypes else f"{self.scope}-{self.rate_on}-{self.patch_rate:g}"
        return (
            f"{str(self.dtype)[6:]}-{self.method}-{options}" + self.separate * "-separate" + self.half_masked * "-half"
        )


def make_state(dtype: torch.dtype) -> State:
    """A ViT of width 32 and depth 2 with drop path 0.3, weights large enough that images look different to it, and a
    teacher that is not the student."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = made(ViT, image_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=2, num_heads=2, drop_path=0.3)
        student = Embedder(encoder, Projector(embed_dim=32, hidden_dim=48, out_dim=DIM)).to(dtype)
        state = State.create(student, optim=UNCLIPPED, device=torch.device("cpu"), precision="float32")
        for parameter in [*state.student.parameters(), *state.teacher.parameters()]:
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.data += scale * torch.randn(parameter.shape)  # drawn in float32 for both float types
    return state


def make_state_of(case: Case) -> State:
    """The same for any method: patches of 2 pixels, so that there are 16 to mask, and the heads it asks for."""
    if case.method == "simdino":
        return make_state(case.dtype)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = made(
            ViT,
            image_size=8,
            patch_size=2,
            in_chans=1,
            embed_dim=32,
            depth=2,
            num_heads=2,
            drop_path=0.3,
            mask_token=case.masked,
        )

        def head() -> Projector:
            last = Prototypes(dim=DIM, count=K, train_lengths=case.masked) if case.prototypes else None
            return Projector(embed_dim=32, hidden_dim=48, out_dim=DIM, prototypes=last)

        student = Embedder(encoder, head(), head() if case.separate else None).to(case.dtype)
        state = State.create(student, optim=UNCLIPPED, device=torch.device("cpu"), precision="float32")
        for parameter in [*state.student.parameters(), *state.teacher.parameters()]:
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.data += scale * torch.randn(parameter.shape)
    return state


@cache
def make_views_of(case: Case, *, seed: int = 0) -> Views:
    """The views of a method's batch, masked as by the loader where it has masks."""
    views = make_views(case.dtype, case.batch, seed=seed)
    if not case.masked:
        return views
    ratios = mask_ratios(0, seed, views=2, batch=case.batch, share=0.5, ratio=(0.1, 0.5))
    masks = torch.from_numpy(masks_for(views.keys.numpy(), ratios, grid=(4, 4)))
    if case.half_masked:
        masks[:, case.batch // 2 :] = False
    return dataclasses.replace(views, masks=masks)


@cache
def make_views(dtype: torch.dtype, batch: int = BATCH, *, seed: int = 0) -> Views:
    """Two global views of 8 x 8 and two local ones of 4 x 4 pixels of each image."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(1, batch, 1, 8, 8, generator=generator, dtype=torch.float64)
    global_views = image + 0.5 * torch.randn(2, batch, 1, 8, 8, generator=generator, dtype=torch.float64)
    local_views = image[..., 2:6, 2:6] + 0.5 * torch.randn(2, batch, 1, 4, 4, generator=generator, dtype=torch.float64)
    ids = torch.arange(batch)
    return Views(
        global_views=global_views.to(dtype), local_views=local_views.to(dtype), ids=ids,
        keys=torch.from_numpy(sample_keys(7, seed, ids.numpy())), indices=ids,
    )  # fmt: skip


def share(views: Views, among: Processes, *, interleaved: bool = False) -> Views:
    """The part of this process: contiguous as the loader deals it, or every second image."""
    if not interleaved:
        return views.split(len(views.ids) // among.world)[among.rank]
    part = slice(among.rank, None, among.world)
    return Views(
        global_views=views.global_views[:, part], local_views=views.local_views[:, part],
        ids=views.ids[part], keys=views.keys[part], indices=views.indices[part],
        masks=None if views.masks is None else views.masks[:, part],
    )  # fmt: skip


class Outcome(NamedTuple):
    """What one step said, the gradient it gave the optimizer, and what the loss remembers after it."""

    metrics: dict[str, float]
    gradient: Tensor
    buffers: dict[str, Tensor]


def one_step(
    case: Case, among: Processes, *, micro_batch: int | None = None, interleaved: bool = False,
    all_reduce: AllReduce | None = None,
) -> Outcome:  # fmt: skip
    """One step on this process's share of the batch, from the same start every time."""
    state, loss = make_state_of(case), case.loss()
    state.model = among.wrap(state.student)
    trained = [p for p in state.student.parameters() if p.requires_grad]
    seen: list[Tensor] = []
    state.optimizer.register_step_pre_hook(lambda *_: seen.append(flat(p.grad for p in trained)))
    metrics = step(
        state, share(make_views_of(case), among, interleaved=interleaved), loss, steps=10, optim=UNCLIPPED,
        all_reduce=all_reduce or among.sum, micro_batch=micro_batch, autocast=AUTOCAST,
    )  # fmt: skip
    return Outcome({name: float(value) for name, value in metrics.items()}, seen[0], loss.buffers)


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def on_two_processes(job: Callable[..., Any], folder: Path, *arguments: Any, world: int = 2) -> list[Any]:
    """What `job(among, *arguments)` returns on each of two gloo processes, or of `world`."""
    torch.multiprocessing.spawn(_process, (folder, job, arguments, world), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _process(rank: int, folder: Path, job: Callable[..., Any], arguments: tuple[Any, ...], world: int) -> None:
    import os

    torch.set_num_threads(1)
    os.environ["WORLD_SIZE"] = str(world)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world)
    with processes("cpu") as among:
        torch.save(job(among, *arguments), folder / f"{rank}.pt")
    dist.destroy_process_group()
