"""The authors' own code, imported from clones to run beside ours: their packages as they are, and stand-ins for what
they import and this machine lacks (xformers, omegaconf, wandb, a GPU)."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

CLONES = ("dino", "dinov2", "SimDINO")
ABSENT = ("fvcore", "fvcore.common", "fvcore.common.checkpoint", "omegaconf", "wandb", "submitit", "iopath",
          "iopath.common", "iopath.common.file_io", "torchmetrics", "termcolor", "debugpy", "einops")  # fmt: skip
SHARED_NAMES = ("utils", "vision_transformer", "main_dino", "eval_knn")
"""Modules that both DINO and SimDINO call so."""


class Settings(dict[str, Any]):
    """A configuration as their code reads it: by attribute, by key and as keyword arguments."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    __setattr__ = dict.__setitem__


class Blocks:
    """xformers' block-diagonal mask: sequences side by side that do not see one another."""

    def __init__(self, lengths: list[int], batches: list[int]) -> None:
        self.lengths, self._batch_sizes = lengths, batches

    @classmethod
    def from_seqlens(cls, lengths: list[int]) -> Blocks:
        """Of single sequences; who calls sets `_batch_sizes`."""
        return cls(lengths, [1] * len(lengths))

    @classmethod
    def from_tensor_list(cls, tensors: list[Tensor]) -> tuple[Blocks, Tensor]:
        """The mask of tensors [B, n, D] and their rows in one sequence."""
        lengths = [x.shape[1] for x in tensors for _ in range(x.shape[0])]
        return cls(lengths, [len(x) for x in tensors]), torch.cat([x.flatten(0, 1)[None] for x in tensors], dim=1)

    def split(self, x: Tensor) -> list[Tensor]:
        """One sequence as the tensors that it was made of."""
        found, place, first = [], 0, 0
        for batch in self._batch_sizes:
            length = self.lengths[first]
            found.append(x[0, place : place + batch * length].unflatten(0, (batch, length)))
            place, first = place + batch * length, first + batch
        return found


def attention(q: Tensor, k: Tensor, v: Tensor, attn_bias: Blocks | None = None, p: float = 0.0) -> Tensor:
    """Attention of [B, n, heads, d], within the blocks of a mask where there is one."""
    assert p == 0.0

    def plain(*parts: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in parts)).transpose(1, 2)

    if attn_bias is None:
        return plain(q, k, v)
    parts = zip(*(x.split(attn_bias.lengths, dim=1) for x in (q, k, v)), strict=True)
    return torch.cat([plain(*part) for part in parts], dim=1)


def stand_in() -> None:
    """Put the stand-ins where their code looks for modules, and let calls for a GPU do nothing."""
    for name in ABSENT:
        sys.modules.setdefault(name, MagicMock(name=name, __path__=[], __spec__=None))
    ops: Any = types.ModuleType("xformers.ops")
    ops.memory_efficient_attention, ops.unbind = attention, torch.unbind
    masks = types.SimpleNamespace(BlockDiagonalMask=Blocks)
    ops.fmha = types.SimpleNamespace(BlockDiagonalMask=Blocks, attn_bias=masks)
    ops.scaled_index_add = ops.index_select_cat = None  # of stochastic depth, not used here
    ops.SwiGLU = torch.nn.Module  # of giants, not used here
    rmsnorm: Any = types.ModuleType("xformers.ops.rmsnorm")
    rmsnorm.rms_norm = None
    root: Any = types.ModuleType("xformers")
    root.ops, root.__path__, ops.__path__ = ops, [], []
    sys.modules |= {"xformers": root, "xformers.ops": ops, "xformers.ops.rmsnorm": rmsnorm}
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def one_process(folder: Path) -> Iterator[None]:
    """A process group of one, which their losses ask for its size."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def first_family(folder: Path) -> types.SimpleNamespace:
    """The modules of DINO's repository, or of SimDINO's first method, which have the same names."""
    for name in SHARED_NAMES:
        sys.modules.pop(name, None)
    sys.path.insert(0, str(folder))
    modules = {name: importlib.import_module(name) for name in SHARED_NAMES}
    sys.path.remove(str(folder))
    return types.SimpleNamespace(**modules)


def second_family(folder: Path, package: str, architecture: str) -> types.SimpleNamespace:
    """The modules of DINOv2's package, or of SimDINOv2's. architecture: the module of its training architecture."""
    sys.path.insert(0, str(folder))
    names = {"architecture": f"train.{architecture}", "train": "train.train", "masking": "data.masking",
             "transforms": "data.transforms"}  # fmt: skip
    modules = {name: importlib.import_module(f"{package}.{path}") for name, path in names.items()}
    sys.path.remove(str(folder))
    return types.SimpleNamespace(**modules)
