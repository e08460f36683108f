"""timm: a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simdino.errors import InputError
from simdino.exports.format import WEIGHTS, Format, ReadBack, by, own_reader, plain_vit, write_files
from simdino.extras import optional

if TYPE_CHECKING:
    from torch import Tensor

    from simdino.models.encoder import Encoder
    from simdino.models.vit import ViT


def write(encoder: Encoder, folder: Path, image_size: int | None) -> None:
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


def read(encoder: Encoder, folder: Path) -> ReadBack:
    """Return what timm computes with the files; what our own reader does where it is not installed."""
    from safetensors.torch import load_file

    from simdino.models.layouts import from_timm

    held = from_timm(load_file(folder / WEIGHTS))
    any_size = plain_vit(encoder, name="timm").positions == "antialias"
    try:
        timm = optional("timm")
    except InputError:
        from simdino.models.catalogue import make_encoder

        own = make_encoder(replace(encoder.config, mask_token=False), encoder.preprocess)
        own.load_state_dict(held)
        return own_reader(own.eval(), instead_of="timm", names=held, any_size=any_size)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = optional("timm.data").create_transform(
        **optional("timm.data").resolve_model_data_config(model), is_training=False
    )

    def prepare(picture: Path) -> Tensor:
        from PIL import Image

        with Image.open(picture) as image:
            return transform(image)[None]

    return ReadBack(
        by=by("timm"), tokens=model.forward_features, names=held, any_size=any_size,
        prepare=prepare if encoder.preprocess.channels == 3 else None,
    )  # fmt: skip


USAGE = """
import timm
from PIL import Image

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
tokens = model.forward_features(prepare(Image.open("photo.jpg").convert("RGB"))[None])
cls, patches = tokens[:, 0], tokens[:, model.num_prefix_tokens :]
"""

FORMAT = Format(text="a folder of timm (VisionTransformer)", write=write, read=read, usage=USAGE, library="timm")
