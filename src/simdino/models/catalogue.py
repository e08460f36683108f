"""The encoders by name, and an encoder from its configuration."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.models.crate import CRATE
from simdino.models.crate import SIZES as CRATE_SIZES
from simdino.models.encoder import Encoder
from simdino.models.vit import SIZES, ViT


def check_name(name: str) -> None:
    """Raise InputError for an encoder that this version does not know; names the nearest."""
    names = [*SIZES, *CRATE_SIZES]
    if name not in names:
        close = get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"unknown encoder {name!r}: this version knows {', '.join(names)}{hint}")


def make_encoder(config: EncoderConfig, preprocess: Preprocess) -> Encoder:
    """A new encoder with random weights. Raises InputError for an unknown name, and for a part that the encoder does
    not have."""
    check_name(config.name)
    shared: dict[str, Any] = (SIZES | CRATE_SIZES)[config.name] | {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "channels": preprocess.channels,
        "registers": config.registers,
        "drop_path": config.drop_path,
        "drop_path_rule": config.drop_path_rule,
        "mask_token": config.mask_token,
        "positions": config.positions,
    }
    if config.name in CRATE_SIZES:
        if config.layer_scale is not None or config.ffn != "mlp":
            raise InputError(f"{config.name} has neither layer scale nor a feed-forward network: its block is fixed")
        encoder = CRATE(**shared)
    else:
        encoder = ViT(**shared, layer_scale=config.layer_scale, ffn=config.ffn, stem=config.stem)
    encoder.config, encoder.preprocess = config, preprocess
    return encoder
