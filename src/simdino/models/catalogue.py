"""The encoders by name, and an encoder from its configuration."""

from __future__ import annotations

from difflib import get_close_matches

from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.models.encoder import Encoder
from simdino.models.vit import SIZES, ViT


def check_name(name: str) -> None:
    """Raise InputError for an encoder that this version does not know; names the nearest."""
    if name not in SIZES:
        close = get_close_matches(name, SIZES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"unknown encoder {name!r}: this version knows {', '.join(SIZES)}{hint}")


def make_encoder(config: EncoderConfig, preprocess: Preprocess) -> Encoder:
    """A new encoder with random weights. Raises InputError for an unknown name."""
    check_name(config.name)
    encoder = ViT(
        image_size=config.image_size,
        patch_size=config.patch_size,
        channels=preprocess.channels,
        registers=config.registers,
        layer_scale=config.layer_scale,
        drop_path=config.drop_path,
        drop_path_rule=config.drop_path_rule,
        mask_token=config.mask_token,
        ffn=config.ffn,
        positions=config.positions,
        stem=config.stem,
        **SIZES[config.name],
    )
    encoder.config, encoder.preprocess = config, preprocess
    return encoder
