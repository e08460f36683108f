"""Encoders to and from files. Our format is one safetensors file with weights, configuration and preprocessing;
`official` and `adapters` read those of others."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from simdino.config import EncoderConfig, PositionRule
from simdino.contracts import InputError, Preprocess
from simdino.device import keep_freed_memory, present_device
from simdino.feedback import Log, to_stderr
from simdino.files import written
from simdino.models.adapters import TIMM, load_timm
from simdino.models.bag import BAG, bag_of
from simdino.models.catalogue import kind_of, make_encoder, register_module
from simdino.models.encoder import Encoder
from simdino.models.official import is_hf, listed, read_hf, read_official, read_tensors
from simdino.models.resize import POSITIONS, Weights, fitted, prepared_for
from simdino.settings import from_json, problems, shown

FILE = "encoder.safetensors"  # in a run folder
HF = "hf:"  # before the name of a model on the Hugging Face hub, or of a folder
KEY = "simdino_encoder"  # key of the file's metadata with everything but the weights, as JSON
CLASSIFIER = "simdino_classifier"  # key of a classifier file's metadata with classes and layers, as JSON
HEAD = "head."  # prefix of a classifier's own tensors, beside its encoder's in one file


def save_encoder(encoder: Encoder, path: Path) -> None:
    """Write the encoder in one step, so that `load_encoder` needs nothing else. The same weights give the same
    bytes."""
    write(encoder.state_dict(), {KEY: described(encoder)}, path)


def described(encoder: Encoder) -> dict[str, Any]:
    """Return everything but the weights, in values that JSON holds."""
    return {"encoder": dataclasses.asdict(encoder.config), "preprocess": dataclasses.asdict(encoder.preprocess)}


def fingerprint(encoder: Encoder) -> str:
    """Return the sha256 of an encoder's weights, configuration and preprocessing."""
    known = hashlib.sha256(json.dumps(described(encoder), sort_keys=True).encode())
    for name, tensor in encoder.state_dict().items():
        known.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        known.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return known.hexdigest()


def write(tensors: Mapping[str, Tensor], about: dict[str, Any], path: Path, *, option: str | None = None) -> None:
    """Write a safetensors file with JSON values as metadata, as `files.written` writes."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {name: json.dumps(value, sort_keys=True) for name, value in about.items()}
    with written(path, option=option) as aside:
        save_file(contiguous, aside, metadata=metadata)


def load_encoder(
    where: str | Path,
    *,
    image_size: int | None = None,
    patch_size: int | None = None,
    channels: int | None = None,
    positions: PositionRule | None = None,
    module: nn.Module | None = None,
    log: Log = to_stderr,
) -> Encoder:
    """Load a trained encoder, in eval mode on the CPU. Call it with images [N, C, H, W], prepared as its `preprocess`
    says, to get Tokens.

    Args:
        where: one of
            - a run folder, or an `.safetensors` file of simdino, which may be a classifier's;
            - an official `.pth`: checkpoints and backbones of DINO, SimDINO, DINOv2, SimDINOv2, iBOT, MAE and CRATE;
            - `timm:NAME`: a model of timm with its published weights, fetched unless they are in the local cache;
            - `hf:NAME`, `hf:FOLDER` or the folder: DINOv2 as transformers writes it;
            - `bag:` and one of these: each channel alone through it, brought to one channel, see `models.bag`.
        image_size, patch_size, channels: what to adapt the weights to, see `resize.fitted`; None keeps each.
        positions: the rule for an official file's positions on other grids, see `layers.resize_positions`; None takes
            that of the file's family. Other encoders tell their own rule, and a different one is refused.
        module: for a run whose encoder was a module of a program, such a module, which gets the run's weights.
        log: called with a line for everything that was changed or chosen on the way.

    Raises:
        InputError: nothing known is there, or keys do not fit, all of which are named.
    """
    name = str(where)
    if module is not None:
        register_module(module)
    for option, value in (("image_size", image_size), ("patch_size", patch_size), ("channels", channels)):
        if value is not None and value < 1:
            raise InputError(f"{option} {value} must be 1 or more ({name})")
    if name.startswith(BAG):
        plain = name.removeprefix(BAG)
        one = load_encoder(
            plain, image_size=image_size, patch_size=patch_size, channels=1, positions=positions, log=log
        )
        about = one.preprocess
        return bag_of(one, prepared_for(about, crop=about.crop, channels=channels or 1)).eval()
    if name.startswith(TIMM):
        encoder = load_timm(name.removeprefix(TIMM), image_size=image_size, channels=channels, log=log)
        if patch_size not in (None, encoder.patch_size):
            raise InputError(f"{name} has patches of {encoder.patch_size} pixels: give no patch_size")
        if positions is not None:
            raise InputError(f"{name} brings its positions to other grids by timm's rule: give no positions")
        return encoder.eval()
    weights = read(name, log, positions)
    if positions not in (None, weights.config.positions):
        raise InputError(f"{name} says its own rule for positions, {weights.config.positions}: give no other positions")
    any_size = bool(kind_of(weights.config.name).patch_sizes) and not any(POSITIONS in key for key in weights.tensors)
    fit = partial(fitted, image_size=image_size, patch_size=patch_size, any_size=any_size, log=log)
    if not weights.config.name.startswith(BAG):
        return built(fit(weights, channels=channels))
    about = weights.preprocess
    about = prepared_for(about, crop=image_size or about.crop, channels=channels or about.channels)
    return bag_of(built(fit(out_of_bag(weights), channels=None)), about).eval()


def out_of_bag(weights: Weights) -> Weights:
    """Return the encoder of one channel in the weights of a bag of channels."""
    return replace(
        weights,
        config=replace(weights.config, name=weights.config.name.removeprefix(BAG)),
        preprocess=prepared_for(weights.preprocess, crop=weights.preprocess.crop, channels=1),
        tensors={name.removeprefix("encoder."): tensor for name, tensor in weights.tensors.items()},
    )


def on_device(
    encoder: Encoder | str | Path, *, device: str = "auto", positions: PositionRule | None = None, log: Log = to_stderr
) -> Encoder:
    """Return an encoder by its name, on a device. One that is loaded already stays where it is with "auto"."""
    if isinstance(encoder, str | Path):
        encoder = load_encoder(encoder, positions=positions, log=log).to(present_device(device))
    elif device != "auto":
        encoder = encoder.to(present_device(device))
    if encoder.device.type == "cpu":
        keep_freed_memory()
    return encoder


def built(weights: Weights) -> Encoder:
    """Return the encoder of a configuration with its weights, in eval mode. Raises InputError where they do not fit."""
    try:
        encoder = make_encoder(weights.config, weights.preprocess)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the configuration in {weights.origin} does not fit this version of simdino: {error}"
        ) from None
    load_strictly(encoder, weights)
    return encoder.eval()


def read(where: str, log: Log, positions: PositionRule | None = None) -> Weights:
    """Return the weights in a folder, in a file, or by a name on the hub. positions: see `official.read_official`.
    Raises InputError for anything else."""
    if where.startswith(HF):
        return read_hf(where.removeprefix(HF))
    path = Path(where)
    if path.is_dir() and not (path / FILE).is_file() and is_hf(path):
        return read_hf(where)
    if path.is_dir():
        path = path / FILE
    if not path.is_file():
        raise InputError(
            f"no encoder at {where}: expected a run folder with {FILE}, such a file, an official .pth, a folder of "
            f"transformers, timm:NAME or hf:NAME"
        )
    return read_own(path) if path.suffix == ".safetensors" else read_official(path, log, positions)


def read_own(path: Path) -> Weights:
    """Return the encoder in a file that `save_encoder` wrote, or in a classifier's. Raises InputError for any other
    file, and where the configuration that `described` gave is invalid: every such field is named."""
    metadata, tensors = read_tensors(path)
    if KEY not in metadata:
        raise InputError(
            f"{path} was not written by simdino: its metadata has no {KEY!r}; give a model of transformers by folder"
        )
    if CLASSIFIER in metadata:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(HEAD)}
    try:
        about = json.loads(metadata[KEY])
        if not isinstance(about, dict) or not {"encoder", "preprocess"} <= about.keys():
            raise InputError(f"{shown(metadata[KEY])} is no configuration with encoder and preprocess")
        config = from_json(EncoderConfig, about["encoder"], where="encoder")
        preprocess = from_json(Preprocess, about["preprocess"], where="preprocess")
        found = problems(config, named=lambda field: f"encoder.{field.name}")
        found += problems(preprocess, named=lambda field: f"preprocess.{field.name}")
        if not found and {len(preprocess.mean), len(preprocess.std)} != {preprocess.channels}:
            found = [f"preprocess.mean and .std must be one number for each of {preprocess.channels} channels"]
        if found:
            raise InputError("; ".join(found))
    except (ValueError, RecursionError) as error:
        raise InputError(f"the metadata {KEY!r} of {path} cannot be used: {error}") from None
    return Weights(origin=str(path), config=config, preprocess=preprocess, tensors=tensors)


def load_strictly(encoder: Encoder, weights: Weights) -> None:
    """Load the weights. Raises one InputError that lists every missing, surplus and misshapen key."""
    own, tensors = encoder.state_dict(), weights.tensors
    problems = [f"missing {name}" for name in own.keys() - tensors.keys()]
    problems += [f"surplus {name}" for name in tensors.keys() - own.keys()]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own.keys() & tensors.keys()
        if tensors[name].shape != own[name].shape
    ]
    if problems:
        config = weights.config
        raise InputError(
            f"{weights.origin} does not fit {config.name} ({encoder.depth} blocks of width {encoder.embed_dim}, "
            f"patches of {config.patch_size}, images of {config.image_size}): {listed(sorted(problems))}"
        )
    encoder.load_state_dict(tensors)
