"""timm: a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simdino.errors import InputError
from simdino.exports.format import WEIGHTS, Format, every_token, plain_vit, write_files
from simdino.extras import optional

if TYPE_CHECKING:
    from torch import Tensor

    from simdino.models.encoder import Encoder
    from simdino.models.vit import ViT


def write(encoder: Encoder, folder: Path) -> None:
    """Write the two files of timm's VisionTransformer."""
    from simdino.models.layouts import to_timm

    vit = plain_vit(encoder, name="timm")
    if vit.config.ffn != "mlp":
        raise InputError(f"--to timm holds no encoder with {vit.config.ffn}: take --to hf")
    write_files(folder, to_timm(vit.state_dict()), config=model_config(vit))


def model_config(vit: ViT) -> dict[str, Any]:
    """Return timm's configuration of a ViT of this shape with this preprocessing."""
    config, about = vit.config, vit.preprocess
    return {
        "architecture": "vit_base_patch16_224", "num_classes": 0, "num_features": vit.embed_dim,
        "global_pool": "token",
        "model_args": {
            "img_size": config.image_size, "patch_size": config.patch_size, "embed_dim": vit.embed_dim,
            "depth": vit.depth, "num_heads": vit.num_heads, "in_chans": vit.in_chans,
            "dynamic_img_size": True,
            "reg_tokens": config.registers, "no_embed_class": config.registers > 0,
            "init_values": config.layer_scale,
        },
        "pretrained_cfg": {
            "input_size": [about.channels, about.crop, about.crop], "interpolation": "bicubic",
            "crop_pct": about.crop / about.resize, "crop_mode": "center", "mean": list(about.mean),
            "std": list(about.std), "num_classes": 0, "first_conv": "patch_embed.proj", "classifier": "head",
            "pool_size": None,
        },
    }  # fmt: skip


def read(encoder: Encoder, folder: Path) -> Callable[[Tensor], Tensor]:
    """Return what timm computes with the files; our own reader where it is not installed."""
    try:
        timm = optional("timm")
    except InputError:
        from safetensors.torch import load_file

        from simdino.models.catalogue import make_encoder
        from simdino.models.layouts import from_timm

        own = make_encoder(replace(encoder.config, mask_token=False), encoder.preprocess)
        own.load_state_dict(from_timm(load_file(folder / WEIGHTS)))
        return every_token(own.eval())
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval().forward_features


FORMAT = Format(text="a folder of timm (VisionTransformer)", write=write, read=read)
