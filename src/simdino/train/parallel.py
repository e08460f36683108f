"""Processes: the only file that imports torch.distributed.

One plain process has no process group at all. Under `torchrun` there is one, and every sum over samples of a loss
passes through `Processes.sum`. The student is wrapped in DDP; or student and teacher are divided, so that each process
holds a part of every parameter, of its gradient and of what the optimizer keeps for it (FSDP2)."""

import atexit
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
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

    def divide(self, model: nn.Module, stages: Sequence[nn.Module]) -> None:
        """Leave each process its part of every parameter, along the first axis, and of the gradients, which are
        averaged over processes as DDP's are. The weights of a stage come together for as long as it computes, those
        outside of `stages` for as long as the model does.

        Precision stays autocast's, as in one process. A MixedPrecisionPolicy would send half the bytes, but round what
        autocast leaves in float32, such as norms, scales and tokens: that is another result. Raises InputError for a
        parameter that is one number, which torch cannot divide."""
        if self.world == 1:
            return
        from torch.distributed.fsdp import fully_shard  # noqa: PLC0415 (it takes a second, which few runs need)

        whole = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
        if whole:
            raise InputError(f"--parallel fsdp cannot divide {whole[0]}, which is one number: give --parallel ddp")
        for parameter in model.parameters():
            parameter.data = parameter.data.contiguous()  # not channels last, which cannot be divided
        # FSDP warns at every step of returned views, which must not be changed in place. Nothing here does that.
        warnings.filterwarnings("ignore", rf"FSDP2-wrapped module \(FSDP{type(model).__name__}\)", UserWarning)
        mesh = init_device_mesh(next(model.parameters()).device.type, (self.world,))
        learns = any(parameter.requires_grad for parameter in model.parameters())
        for stage in stages:
            fully_shard(stage, mesh=mesh, reshard_after_forward=True)
        fully_shard(model, mesh=mesh, reshard_after_forward=not learns)  # a student's backward follows at once

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model with gradients averaged over processes, exact for losses that pass every sum through `sum`;
        one that is divided has them already."""
        return model if self.world == 1 or is_divided(model) else DistributedDataParallel(model)

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


def accumulating(model: Any, *, last: bool) -> Any:
    """Return a context for a backward pass; gradients cross processes only in the last one of a step."""
    if is_divided(model):
        model.set_requires_gradient_sync(last)
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()


def is_divided(x: nn.Module | Tensor) -> bool:
    """Return whether a model, or a tensor, is divided among processes. It is asked of every tensor, also where nothing
    is divided and importing the types would take a second."""
    return hasattr(x, "full_tensor" if isinstance(x, Tensor) else "set_requires_gradient_sync")


@torch.no_grad()
def own_part(x: Any) -> Tensor:
    """Return this process's part of a divided tensor, which shares its memory; another tensor as it is."""
    return x.to_local() if is_divided(x) else x


@torch.no_grad()
def whole(x: Any) -> Tensor:
    """Return a divided tensor as a whole one; another as it is. All processes call this."""
    return x.full_tensor() if is_divided(x) else x


@torch.no_grad()
def part_like(x: Tensor, like: Any) -> Tensor:
    """Return this process's part of a whole tensor, divided as `like` is, of the same shape; it shares the memory of
    x."""
    if not is_divided(like):
        return x
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415 (the same)

    return distribute_tensor(x, like.device_mesh, like.placements, src_data_rank=None).to_local()


@torch.no_grad()
def stored_like(x: Any, like: Any) -> Any:
    """Return what was saved of a parameter (`like`) as that parameter is stored: divided or not, and with its strides,
    as if it had never been elsewhere. Anything that is not of its shape stays as it is."""
    if not isinstance(x, Tensor) or like is None or x.shape != like.shape:
        return x
    if not is_divided(like):
        return x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)
    stored = torch.empty_like(like)
    own_part(stored).copy_(part_like(x, like))
    return stored


def gathered(value: Any, *, keep: bool) -> Any:
    """Return nested containers with every divided tensor whole on the CPU, or None in its place where a process does
    not `keep` it. All processes call this."""
    if isinstance(value, Tensor):
        if not is_divided(value):
            return value
        together = whole(value)  # one at a time, so that no process needs the memory for all
        return together.cpu() if keep else None
    if isinstance(value, dict):
        return {name: gathered(part, keep=keep) for name, part in value.items()}
    return [gathered(part, keep=keep) for part in value] if isinstance(value, list) else value


def norms(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the norm of each tensor, also of divided ones, for which all processes call this."""
    own = torch._foreach_norm([own_part(x) for x in tensors])  # pyright: ignore[reportPrivateImportUsage]
    if not any(map(is_divided, tensors)):
        return own
    squares = torch.stack(own).square()
    dist.all_reduce(squares)
    return squares.sqrt().unbind()


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
