"""transformers: a folder that `AutoModel.from_pretrained` and `AutoImageProcessor.from_pretrained` read."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simdino.exports.format import Format, every_token, plain_vit, write_files

if TYPE_CHECKING:
    from torch import Tensor

    from simdino.contracts import Preprocess
    from simdino.models.encoder import Encoder
    from simdino.models.vit import ViT


def write(encoder: Encoder, folder: Path) -> None:
    """Write config.json, preprocessor_config.json and model.safetensors of Dinov2Model, or with registers of
    Dinov2WithRegistersModel."""
    from simdino.models.layouts import to_hf

    vit = plain_vit(encoder, name="hf")
    tensors = to_hf(vit.state_dict())
    write_files(folder, tensors, config=model_config(vit), preprocessor_config=processor_config(vit.preprocess))


def model_config(vit: ViT) -> dict[str, Any]:
    """Return the configuration of transformers' model."""
    config = vit.config
    kind = "Dinov2WithRegisters" if config.registers else "Dinov2"
    return {
        "architectures": [f"{kind}Model"],
        "model_type": "dinov2_with_registers" if config.registers else "dinov2",
        "hidden_size": vit.embed_dim, "num_hidden_layers": vit.depth, "num_attention_heads": vit.num_heads,
        "mlp_ratio": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True,
        "use_swiglu_ffn": config.ffn == "swiglu", "image_size": config.image_size, "patch_size": config.patch_size,
        "num_channels": vit.in_chans, "layerscale_value": 1.0, "drop_path_rate": 0.0,
        **({"num_register_tokens": config.registers} if config.registers else {}),
    }  # fmt: skip


def processor_config(about: Preprocess) -> dict[str, Any]:
    """Return the preprocessing of evaluations as transformers has it."""
    return {
        "image_processor_type": "BitImageProcessor", "do_resize": True, "size": {"shortest_edge": about.resize},
        "resample": 3, "do_center_crop": True, "crop_size": {"height": about.crop, "width": about.crop},
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(about.mean),
        "image_std": list(about.std), "do_convert_rgb": about.channels == 3,
    }  # fmt: skip


def read(encoder: Encoder, folder: Path) -> Callable[[Tensor], Tensor]:
    """Return what transformers computes with the files; our own reader where it is not installed."""
    try:
        transformers: Any = import_module("transformers")
    except ImportError:
        from simdino.models.weights import load_encoder

        return every_token(load_encoder(folder))
    model = transformers.AutoModel.from_pretrained(folder).eval()
    return lambda images: model(images).last_hidden_state


FORMAT = Format(text="a folder of transformers (Dinov2Model)", write=write, read=read)
