"""The encoders by name, and an encoder from its configuration."""

from __future__ import annotations

from collections import ChainMap
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.models.adapters import TIMM, TimmEncoder, check_timm_name, timm_names
from simdino.models.crate import CRATE
from simdino.models.crate import SIZES as CRATE_SIZES
from simdino.models.encoder import Encoder
from simdino.models.vit import SIZES, ViT

OURS = ChainMap(CRATE_SIZES, SIZES)  # listed from the last map to the first

UNNAMED = "vit"
"""The name of a ViT whose width, depth and heads the configuration gives, as files of other projects may need."""


def check_name(name: str) -> None:
    """Raise InputError for an encoder that neither this version nor timm knows; names the nearest."""
    if name.startswith(TIMM):
        check_timm_name(name.removeprefix(TIMM))
    elif name not in OURS:
        others = timm_names()
        if name.partition(".")[0] in others:
            check_timm_name(name)
            return
        close = get_close_matches(name, [*OURS, *others], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        more = "the models of timm" if others else "with `pip install 'simdino[timm]'` its models"
        raise InputError(f"unknown encoder {name!r}: this version knows {', '.join(OURS)} and {more}{hint}")


def resolve_name(name: str) -> str:
    """The name as configurations hold it: ours as it is, timm's as timm:NAME however a person gave it.

    Raises InputError as `check_name` does."""
    check_name(name)
    return name if name in OURS or name.startswith(TIMM) else TIMM + name


def make_encoder(config: EncoderConfig, preprocess: Preprocess) -> Encoder:
    """A new encoder with random weights. Raises InputError for an unknown name, and for what it cannot have."""
    name = config.name if config.name == UNNAMED else resolve_name(config.name)
    encoder = make_timm(name, config, preprocess) if name.startswith(TIMM) else make_ours(config, preprocess)
    encoder.config, encoder.preprocess = config, preprocess
    return encoder


def make_ours(config: EncoderConfig, preprocess: Preprocess) -> Encoder:
    """A ViT or a CRATE. Raises InputError for a part that CRATE does not have."""
    shared: dict[str, Any] = shape_of(config) | {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "channels": preprocess.channels,
        "registers": config.registers,
        "drop_path": config.drop_path,
        "drop_path_rule": config.drop_path_rule,
        "mask_token": config.mask_token,
        "positions": config.positions,
    }
    if config.name not in CRATE_SIZES:
        return ViT(
            **shared, layer_scale=config.layer_scale, ffn=config.ffn, stem=config.stem, token_std=config.token_std
        )
    if config.layer_scale is not None or config.ffn != "mlp":
        raise InputError(f"{config.name} has neither layer scale nor a feed-forward network: its block is fixed")
    return CRATE(**shared)


def fitted_to(config: EncoderConfig) -> EncoderConfig:
    """The configuration without what an encoder of its name cannot have: a method's settings are for ViTs."""
    if config.name.startswith(TIMM):
        return replace(config, patch_size=1, registers=0, layer_scale=None, mask_token=False, drop_path=0.0, ffn="mlp")
    return replace(config, layer_scale=None, ffn="mlp") if config.name in CRATE_SIZES else config


def shape_of(config: EncoderConfig) -> dict[str, int]:
    """Width, depth and heads: the name's where the configuration gives no others. Raises InputError for none."""
    given = {"width": config.width, "depth": config.depth, "heads": config.heads}
    shape = OURS.get(config.name, {}) | {part: value for part, value in given.items() if value is not None}
    missing = [part for part in given if part not in shape]
    if missing:
        raise InputError(f"encoder {config.name!r} has no {' and no '.join(missing)}: its configuration must give them")
    return shape


def heads_of(config: EncoderConfig) -> int:
    """Heads of attention of one of our encoders; 0 of those of timm, which is not asked."""
    return config.heads or OURS.get(config.name, {}).get("heads", 0)


def make_timm(name: str, config: EncoderConfig, preprocess: Preprocess) -> Encoder:
    """A model of timm. Raises InputError for settings that only our ViTs have."""
    ours = {
        "registers": config.registers > 0, "layer scale": config.layer_scale is not None,
        "a mask token": config.mask_token, "SwiGLU": config.ffn == "swiglu",
    }  # fmt: skip
    asked = [part for part, given in ours.items() if given]
    if asked:
        raise InputError(f"encoder {name} cannot be given {' and '.join(asked)}: take one of our encoders, vit_small")
    return TimmEncoder(name.removeprefix(TIMM), image_size=config.image_size, channels=preprocess.channels)
