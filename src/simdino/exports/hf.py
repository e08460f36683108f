"""transformers: a folder that `AutoModel.from_pretrained` and `AutoImageProcessor.from_pretrained` read."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simdino.exports.format import Format, check_vit, every_token

if TYPE_CHECKING:
    from torch import Tensor

    from simdino.models.encoder import Encoder


def write(encoder: Encoder, folder: Path) -> None:
    """Write config.json, preprocessor_config.json and model.safetensors of Dinov2Model, or with registers of
    Dinov2WithRegistersModel."""
    from safetensors.torch import save_file

    from simdino.models.layouts import to_hf

    check_vit(encoder, name="hf")
    tensors = {key: tensor.cpu().contiguous() for key, tensor in to_hf(encoder.state_dict()).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in (("config", model_config(encoder)), ("preprocessor_config", processor_config(encoder))):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def model_config(encoder: Encoder) -> dict[str, Any]:
    """Return the configuration of transformers' model."""
    from simdino.models.catalogue import kind_of

    config = kind_of(encoder.config.name).complete(encoder.config)
    kind = "Dinov2WithRegisters" if config.registers else "Dinov2"
    return {
        "architectures": [f"{kind}Model"],
        "model_type": "dinov2_with_registers" if config.registers else "dinov2",
        "hidden_size": config.embed_dim, "num_hidden_layers": config.depth, "num_attention_heads": config.num_heads,
        "mlp_ratio": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True,
        "use_swiglu_ffn": config.ffn == "swiglu", "image_size": config.image_size, "patch_size": config.patch_size,
        "num_channels": encoder.in_chans, "layerscale_value": 1.0, "drop_path_rate": 0.0,
        **({"num_register_tokens": config.registers} if config.registers else {}),
    }  # fmt: skip


def processor_config(encoder: Encoder) -> dict[str, Any]:
    """Return the preprocessing of evaluations as transformers has it."""
    about = encoder.preprocess
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
