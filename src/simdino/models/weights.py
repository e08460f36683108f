"""Encoders to and from files: one safetensors file holds the weights, the configuration and the preprocessing."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.models.catalogue import make_encoder
from simdino.models.encoder import Encoder

KEY = "simdino_encoder"  # of the file's metadata: everything but the weights, as JSON


def save_encoder(encoder: Encoder, path: Path) -> None:
    """Write the encoder so that `load_encoder` needs nothing else. Written aside, then renamed; the same weights give
    the same bytes."""
    about = {"encoder": dataclasses.asdict(encoder.config), "preprocess": dataclasses.asdict(encoder.preprocess)}
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    save_file(tensors, aside, metadata={KEY: json.dumps(about, sort_keys=True)})
    aside.replace(path)


def load_encoder(where: str | Path) -> Encoder:
    """The encoder of a run folder or an `.safetensors` file of ours, in eval mode on the CPU.

    Call it with images [N, C, H, W], prepared as its `preprocess` says, to get Tokens.
    Raises InputError when there is no such file or it is not one of ours, names every key that does not fit.
    """
    path = Path(where)
    if path.is_dir():
        path = path / "encoder.safetensors"
    if not path.is_file():
        raise InputError(f"no encoder at {where}: expected a run folder with encoder.safetensors, or such a file")
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {}).get(KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from None
    if about is None:
        raise InputError(f"{path} was not written by simdino: its metadata has no {KEY!r}")
    try:
        preprocess = about["preprocess"]
        preprocess |= {name: tuple(preprocess[name]) for name in ("mean", "std")}  # JSON made them lists
        encoder = make_encoder(EncoderConfig(**about["encoder"]), Preprocess(**preprocess))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the configuration in {path} does not fit this version of simdino: {error}") from None
    load_strictly(encoder, tensors, path)
    return encoder.eval()


def load_strictly(encoder: torch.nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Load, or raise one InputError that lists every missing, surplus and misshapen key."""
    own = encoder.state_dict()
    problems = [f"missing {name}" for name in own.keys() - tensors.keys()]
    problems += [f"surplus {name}" for name in tensors.keys() - own.keys()]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own.keys() & tensors.keys()
        if tensors[name].shape != own[name].shape
    ]
    if problems:
        raise InputError(f"{path} does not fit its own configuration: {', '.join(sorted(problems))}")
    encoder.load_state_dict(tensors)
