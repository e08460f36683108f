"""Weights from others' files: official checkpoints of DINO, SimDINO, DINOv2, SimDINOv2, iBOT, MAE and CRATE (.pth), and
DINOv2 in the layout of transformers. An encoder's configuration is read from keys and shapes."""

import argparse
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from simdino.config import EncoderConfig, PositionRule
from simdino.contracts import InputError, Preprocess
from simdino.data.plain_pickle import BROKEN, NUMBERS
from simdino.extras import optional
from simdino.feedback import Log
from simdino.models.adapters import first_line
from simdino.models.crate import ENCODERS as CRATES
from simdino.models.crate import from_official
from simdino.models.layouts import Tensors, bare, from_hf, from_timm, network_of, told_rule, unwrapped
from simdino.models.resize import KERNEL, POSITIONS, Weights, prepared_for
from simdino.models.vit import ENCODERS as VITS
from simdino.models.vit import UNNAMED

PARTS = ("teacher", "model", "state_dict", "student")
"""Where checkpoints hold an encoder, the preferred part first: the teacher is what evaluations use."""

IMAGENET = Preprocess(resize=256, crop=224, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""The preprocessing in every evaluation of the official encoders."""

REGISTERS = "register_tokens"

HEAD_WIDTH = 64
"""The width of each attention head, in every encoder of the family except ViT-H."""

HUGE, HUGE_HEADS = 1280, 16
"""The width of ViT-H, as in MAE, and the number of its heads, which are 80 wide (Dosovitskiy et al. 2020, table 1)."""

LAYER_SCALE = 1e-5
"""The initial layer scale of the family, for the configuration; a file holds the trained ones."""


def read_official(path: Path, log: Log, positions: PositionRule | None = None) -> Weights:
    """Return the encoder in an official `.pth`: a checkpoint, whose teacher is preferred to its student and whose heads
    are left out, or a backbone, also under timm's keys. positions: the rule for other grids, told by the file unless
    given; where the file does not tell, a line says which rule is taken.

    Raises InputError for a file that is no encoder, or that holds code to run."""
    tensors = pick(load_safely(path), path, log)
    if any("to_patch_embedding." in key for key in tensors):
        return recognised_crate(from_official(unwrapped(tensors)), origin=str(path), rule=positions or "plain")
    rule = positions or told_rule(tensors)
    if rule is None:
        rule = "offset"
        log(
            f"{path} holds an encoder alone, which does not tell its family: its positions go to other grids by the "
            f"rule of DINO and DINOv2 (--positions offset); give antialias for SimDINOv2 and timm, plain for MAE"
        )
    return recognised(from_timm(bare(tensors)), origin=str(path), positions=rule)


def load_safely(path: Path) -> Any:
    """Return the content of a torch.save file, on the CPU: tensors, plain values, numpy numbers as plain ones, and the
    arguments of an official run as an argparse.Namespace. Raises InputError for anything else, since unpickling it
    could run code."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace, *NUMBERS]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (*BROKEN, RuntimeError, OSError) as error:
        foreign = re.search(r"\bGLOBAL (\S+)", str(error))
        if foreign is not None:
            raise InputError(
                f"{path} holds {foreign[1]}, and loading it could run code: not loaded; where you trust the file, save "
                f"its weights alone with torch.save(model.state_dict(), ...)"
            ) from None
        reason = re.search(r"WeightsUnpickler error:\s*([^\n]+)", str(error))  # torch's own words, after much advice
        why = first_line(error) if reason is None else reason[1]
        raise InputError(f"{path} is not a readable PyTorch file: {why} ({type(error).__name__})") from None


def read_tensors(path: Path) -> tuple[dict[str, str], Tensors]:
    """Return metadata and tensors of a safetensors file. Raises InputError for one that cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
            return file.metadata() or {}, tensors
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from None


def pick(held: Any, path: Path, log: Log) -> Tensors:
    """Return the state dict in a checkpoint, in float32: its teacher, model or student, or all of it. Raises InputError
    where there are no tensors."""
    if not isinstance(held, Mapping):
        raise InputError(f"{path} holds no weights but a {type(held).__name__}: expected a checkpoint or a state dict")
    found = next((part for part in PARTS if isinstance(held.get(part), Mapping)), None)
    part = held if found is None else held[found]
    tensors = {str(key): value for key, value in part.items() if isinstance(value, Tensor)}
    tensors, network = network_of(tensors)
    if "student" in (found, network):
        log(f"{path} has no teacher: its student is taken")
    if not tensors:
        raise InputError(f"{path} holds no weights: it has {', '.join(map(str, list(held)[:8])) or 'nothing'}")
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}


def recognised(tensors: Tensors, *, origin: str, positions: PositionRule, heads: Any = None) -> Weights:
    """Return weights under our keys with their configuration, read from the patch kernel [D, C, p, p], the position
    embedding [1, 1 + g g, D] and the set of keys. heads: width / 64, and 16 for ViT-H, unless a file gives them.

    Raises InputError without these two tensors or for shapes that no ViT of the family has. Whether every other key
    fits is checked when the weights are loaded."""
    for key, axes in ((KERNEL, 4), (POSITIONS, 3), *((key, 3) for key in tensors if key == REGISTERS)):
        if key not in tensors or tensors[key].ndim != axes:
            got = f"{key} is {tuple(tensors[key].shape)}" if key in tensors else f"missing {key}"
            raise InputError(
                f"{origin} holds no ViT of a layout that we know: {got}; its keys: {listed(list(tensors))}"
            )
    width, channels, patch = tensors[KERNEL].shape[:3]
    grid = isqrt(max(0, tensors[POSITIONS].shape[1] - 1))
    if grid == 0 or grid**2 + 1 != tensors[POSITIONS].shape[1]:
        raise InputError(f"{POSITIONS} in {origin} is {tuple(tensors[POSITIONS].shape)}: expected 1 + a square number")
    if heads is None and width % HEAD_WIDTH:
        raise InputError(f"{origin} has width {width}, no multiple of {HEAD_WIDTH}: the number of its heads is unknown")
    if heads is None:
        heads = HUGE_HEADS if width == HUGE else width // HEAD_WIDTH
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise InputError(
            f"{origin} has width {width}, which does not divide into the {heads!r} heads of its config.json"
        )
    shape = {"embed_dim": width, "depth": depth_of(tensors), "num_heads": heads}
    name = next((name for name, kind in VITS.items() if kind.shape == shape), None)
    size = grid * patch
    config = EncoderConfig(
        name=name or UNNAMED,
        image_size=size,
        patch_size=patch,
        registers=tensors[REGISTERS].shape[1] if REGISTERS in tensors else 0,
        layer_scale=LAYER_SCALE if any(".ls1." in key for key in tensors) else None,
        drop_path=0.0,
        mask_token="mask_token" in tensors,
        ffn="swiglu" if any(".mlp.w12." in key for key in tensors) else "mlp",
        positions=positions,
    )
    if name is None:
        config = replace(config, **shape)
    crop = 224 if size == 518 else size  # DINOv2 trains at 518 for a short time at the end and is evaluated at 224
    return Weights(
        origin=origin, config=config, preprocess=prepared_for(IMAGENET, crop=crop, channels=channels), tensors=tensors
    )


def recognised_crate(tensors: Tensors, *, origin: str, rule: PositionRule) -> Weights:
    """Return a released CRATE of colour images under our keys, with its configuration. Raises InputError for shapes
    that no named CRATE has."""
    stem, positions = tensors.get("patch_embed.proj.weight"), tensors.get(POSITIONS)
    if stem is None or positions is None or stem.ndim != 2 or positions.ndim != 3:
        raise InputError(f"{origin} holds no CRATE: its patch embedding or positions are missing or misshapen")
    width, depth = shape = (stem.shape[0], depth_of(tensors))
    name = next((name for name, kind in CRATES.items() if (kind.embed_dim, kind.depth) == shape), None)
    if name is None:
        raise InputError(f"{origin} holds a CRATE of width {width} and depth {depth}: none of ours")
    patch, grid = isqrt(stem.shape[1] // 3), isqrt(positions.shape[1] - 1)
    config = EncoderConfig(name=name, image_size=grid * patch, patch_size=patch, drop_path=0.0, positions=rule)
    preprocess = prepared_for(IMAGENET, crop=grid * patch, channels=3)
    return Weights(origin=origin, config=config, preprocess=preprocess, tensors=tensors)


def depth_of(tensors: Tensors) -> int:
    """Return the number of blocks in the keys."""
    found = [re.match(r"blocks\.(\d+)\.", key) for key in tensors]
    return 1 + max((int(block[1]) for block in found if block), default=-1)


def listed(names: list[str], most: int = 20) -> str:
    """Return names in a line, at most `most` of them."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def is_hf(folder: Path) -> bool:
    """Return whether a folder is a model as transformers writes it."""
    return (folder / "config.json").is_file() and "model_type" in read_json(folder / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object. Raises InputError for a file that holds none."""
    try:
        held = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(held, dict):
        raise InputError(f"{path} holds no JSON object but a {type(held).__name__}")
    return held


def read_hf(where: str) -> Weights:
    """Return DINOv2, with or without registers, from a folder as transformers writes it or by its name on the hub.

    Its positions follow transformers' rule, which differs from the official one on every grid but its own."""
    folder = Path(where) if Path(where).is_dir() else fetched(where)
    about = read_json(folder / "config.json")
    rules: dict[str, PositionRule] = {"dinov2": "plain", "dinov2_with_registers": "antialias"}
    kind = about.get("model_type")
    if kind not in rules:
        raise InputError(f"{where} is a model of type {kind!r} of transformers: only {' and '.join(rules)} can be read")
    for field, expected in (("layer_norm_eps", 1e-6), ("hidden_act", "gelu")):
        if about.get(field, expected) != expected:
            raise InputError(f"{where} has {field} {about[field]!r} in config.json: our encoders have {expected!r}")
    tensors: Tensors = {}
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise InputError(f"{folder} has no model.safetensors and no pytorch_model.bin beside its config.json")
    for file in files:
        held = read_tensors(file)[1] if file.suffix == ".safetensors" else load_safely(file)
        tensors |= pick(held, file, log=lambda _: None)
    heads = about.get("num_attention_heads")
    return recognised(from_hf(tensors), origin=where, positions=rules[kind], heads=heads)


def fetched(name: str) -> Path:
    """Return the local copy of a model on the Hugging Face hub, fetched if necessary. Raises InputError where that
    fails, which without a connection is at once."""
    hub = optional("huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=["config.json", "model*.safetensors"]))
    except (OSError, ValueError) as error:
        raise InputError(
            f"hf:{name} is no folder and could not be fetched from the Hugging Face hub "
            f"({first_line(error)}): check the name and the connection"
        ) from None
