"""timm: a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simdino.errors import InputError
from simdino.exports.format import Format, check_vit, every_token
from simdino.extras import optional

if TYPE_CHECKING:
    from torch import Tensor

    from simdino.models.encoder import Encoder

FILES = ("model.safetensors", "config.json")


def write(encoder: Encoder, folder: Path) -> None:
    """Write the two files of timm's VisionTransformer."""
    from safetensors.torch import save_file

    from simdino.models.layouts import to_timm

    check_vit(encoder, name="timm")
    if encoder.config.ffn != "mlp":
        raise InputError(f"--to timm holds no encoder with {encoder.config.ffn}: take --to hf")
    tensors = {key: tensor.cpu().contiguous() for key, tensor in to_timm(encoder.state_dict()).items()}
    save_file(tensors, folder / FILES[0], metadata={"format": "pt"})
    (folder / FILES[1]).write_text(json.dumps(model_config(encoder), indent=2) + "\n")


def model_config(encoder: Encoder) -> dict[str, Any]:
    """Return timm's configuration of a ViT of this shape with this preprocessing."""
    from simdino.models.catalogue import kind_of

    config, about = kind_of(encoder.config.name).complete(encoder.config), encoder.preprocess
    return {
        "architecture": "vit_base_patch16_224", "num_classes": 0, "num_features": config.embed_dim,
        "global_pool": "token",
        "model_args": {
            "img_size": config.image_size, "patch_size": config.patch_size, "embed_dim": config.embed_dim,
            "depth": config.depth, "num_heads": config.num_heads, "in_chans": encoder.in_chans,
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

        from simdino.models.layouts import from_timm
        from simdino.models.resize import Weights
        from simdino.models.weights import built

        tensors, config = from_timm(load_file(folder / FILES[0])), replace(encoder.config, mask_token=False)
        weights = Weights(origin=str(folder), config=config, preprocess=encoder.preprocess, tensors=tensors)
        return every_token(built(weights))
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval().forward_features


FORMAT = Format(text="a folder of timm (VisionTransformer)", write=write, read=read)
