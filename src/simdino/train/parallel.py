"""Processes: the only file that imports torch.distributed.

One plain process has no process group at all. Under `torchrun` there is one, the student is wrapped in DDP, and every
sum over samples of a loss passes through `Processes.sum`."""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from simdino.contracts import InputError

LAUNCHER = os.getppid()
PATIENCE = timedelta(hours=2)
"""How long a process waits for the others, of which the first also evaluates and saves. torchrun notices deaths at
once."""

M = TypeVar("M", bound=nn.Module)


class AllReduce(torch.autograd.Function):
    """The sum over processes. Each process's loss depends on every process's x, so the gradient is a sum too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return x summed over processes."""
        return summed(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the gradient of the sum of all processes' losses with respect to this process's x."""
        return summed(gradients[0])


def summed(x: Tensor) -> Tensor:
    """Return a new tensor, x summed over processes."""
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x)
    return x


@dataclass(frozen=True)
class Processes:
    """This process among `world`."""

    rank: int = 0
    world: int = 1
    launcher: int | None = None  # the process that started this one and the others

    @property
    def orphaned(self) -> bool:
        """Whether the launcher has died: nobody would end these processes any more, or start them again."""
        return self.launcher is not None and os.getppid() != self.launcher

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks to the person."""
        return self.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """Return the differentiable sum over processes; `x` itself when there is one process."""
        return x if self.world == 1 else AllReduce.apply(x)  # pyright: ignore[reportReturnType]

    def synchronised(self, model: M) -> M:
        """Return the model with batch normalisation over the whole batch, where it has any and there are several
        processes.

        Raises InputError on a CPU, where torch cannot do that: each process would normalise by its own images."""
        if self.world == 1 or not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
            return model
        if next(model.parameters()).device.type == "cpu":
            raise InputError(
                "an encoder with batch normalisation cannot be trained by several processes on a CPU: start one "
                "process, or take an encoder without it"
            )
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # pyright: ignore[reportReturnType]

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model with gradients averaged over processes, exact for losses that pass every sum through
        `sum`."""
        return model if self.world == 1 else DistributedDataParallel(model)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, on every process."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def total(self, *numbers: float) -> list[float]:
        """Return the sum of each number over processes, in one message."""
        if self.world == 1:
            return list(numbers)
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        sums = torch.tensor(numbers, dtype=torch.float64, device=device)
        dist.all_reduce(sums)
        return sums.tolist()


def accumulating(model: nn.Module, *, last: bool) -> Any:
    """Return a context for a backward pass; gradients cross processes only in the last one of a step."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()


def own_device(name: str) -> torch.device:
    """Return this process's device: under torchrun "cuda" is the GPU with this process's number on its machine."""
    device = torch.device(name)
    if name == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def meeting_place() -> dict[str, Any]:
    """Return where processes that torchrun has started again find each other. It keeps one store for all attempts, in
    which they would find addresses of dead processes and wait for them, so each attempt has keys of its own. Several
    machines do not count attempts alike: there torchrun must make a store for each, see recipes/two_nodes.sh."""
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        return {}
    store, rank, world = next(rendezvous("env://"))
    return {"store": PrefixStore(f"attempt {attempt}", store), "rank": rank, "world_size": world}


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Give the body the processes of this run: those that `torchrun` started, else this one alone.

    The group is made once and lasts as long as the process: planning a run by --minutes needs it already."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    if not dist.is_initialized():
        backend, own = ("nccl", own_device(device)) if device == "cuda" else ("gloo", None)
        dist.init_process_group(backend, timeout=PATIENCE, device_id=own, **meeting_place())
        atexit.register(dist.destroy_process_group)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), LAUNCHER)
    except BaseException:
        atexit.unregister(dist.destroy_process_group)  # it would wait for the others; torchrun ends them
        raise
    dist.barrier()  # leaving while others still save aborts them
