"""transformers: a folder that `AutoModel.from_pretrained` and `AutoImageProcessor.from_pretrained` read."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simdino.exports.format import WEIGHTS, Format, ReadBack, by, own_reader, plain_vit, write_files

if TYPE_CHECKING:
    from torch import Tensor

    from simdino.contracts import Preprocess
    from simdino.models.encoder import Encoder
    from simdino.models.vit import ViT


def write(encoder: Encoder, folder: Path, image_size: int | None) -> None:
    """Write config.json, preprocessor_config.json and model.safetensors."""
    from simdino.models.layouts import to_hf

    vit = plain_vit(encoder, name="hf")
    tensors = to_hf(vit.state_dict())
    if _antialiased(vit) and not vit.config.registers:
        tensors["embeddings.register_tokens"] = tensors["embeddings.cls_token"][:, :0]
    write_files(folder, tensors, config=model_config(vit), preprocessor_config=processor_config(vit.preprocess))


def _antialiased(vit: ViT) -> bool:
    """Return whether a ViT's positions go to other grids as those of Dinov2WithRegistersModel; with or without
    registers it is then one. Dinov2Model has the rule "plain", and neither has "offset"."""
    return bool(vit.config.registers) or vit.positions == "antialias"


def model_config(vit: ViT) -> dict[str, Any]:
    """Return the configuration of transformers' model."""
    config, registers = vit.config, _antialiased(vit)
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    return {
        "architectures": [f"{kind}Model"],
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        "hidden_size": vit.embed_dim, "num_hidden_layers": vit.depth, "num_attention_heads": vit.num_heads,
        "mlp_ratio": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True,
        "use_swiglu_ffn": config.ffn == "swiglu", "image_size": config.image_size, "patch_size": config.patch_size,
        "num_channels": vit.in_chans, "layerscale_value": 1.0, "drop_path_rate": 0.0,
        **({"num_register_tokens": config.registers} if registers else {}),
    }  # fmt: skip


def processor_config(about: Preprocess) -> dict[str, Any]:
    """Return the preprocessing of evaluations as transformers has it."""
    return {
        "image_processor_type": "BitImageProcessor", "do_resize": True, "size": {"shortest_edge": about.resize},
        "resample": 3, "do_center_crop": True, "crop_size": {"height": about.crop, "width": about.crop},
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(about.mean),
        "image_std": list(about.std), "do_convert_rgb": about.channels == 3,
    }  # fmt: skip


def read(encoder: Encoder, folder: Path) -> ReadBack:
    """Return what transformers computes with the files; what our own reader does where it is not installed."""
    from safetensors.torch import load_file

    from simdino.models.layouts import from_hf

    held = from_hf(load_file(folder / WEIGHTS))
    vit = plain_vit(encoder, name="hf")
    any_size = vit.positions == ("antialias" if _antialiased(vit) else "plain")
    try:
        transformers: Any = import_module("transformers")
    except ImportError:
        from simdino.models.weights import load_encoder

        return own_reader(load_encoder(folder), instead_of="transformers", names=held, any_size=any_size)
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModel.from_pretrained(folder).eval()
    transformers.logging.enable_progress_bar()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)

    def prepare(picture: Path) -> Tensor:
        from PIL import Image

        with Image.open(picture) as image:
            return processor(image, return_tensors="pt")["pixel_values"]

    return ReadBack(
        by=by("transformers"), tokens=lambda images: model(images).last_hidden_state, names=held,
        any_size=any_size, prepare=prepare if vit.preprocess.channels == 3 else None,
    )  # fmt: skip


USAGE = """
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

processor, model = AutoImageProcessor.from_pretrained("FOLDER"), AutoModel.from_pretrained("FOLDER")
tokens = model(**processor(Image.open("photo.jpg").convert("RGB"), return_tensors="pt")).last_hidden_state
cls, patches = tokens[:, 0], tokens[:, -PATCHES:]
"""

FORMAT = Format(
    text="a folder of transformers (Dinov2Model)", write=write, read=read, usage=USAGE, library="transformers"
)
