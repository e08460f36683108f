"""onnx: a folder with a model that ONNX Runtime and many others run, without Python or torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings

from simdino.exports.format import Format, ReadBack, by, joined, keeps_size, program_of, write_preprocess
from simdino.extras import optional

if TYPE_CHECKING:
    from torch import Tensor

    from simdino.models.encoder import Encoder

MODEL = "encoder.onnx"
TENSORS = "simdino_tensors"  # key of the model's metadata


def write(encoder: Encoder, folder: Path, image_size: int | None) -> None:
    """Write the model, with the input "images" and the outputs "cls", "patches" and, where there are some,
    "registers"; and how images are prepared."""
    import torch

    optional("onnxscript")
    program, outputs = program_of(encoder, image_size)
    with catch_warnings(action="ignore"), torch.no_grad():  # of its own workings
        made: Any = torch.onnx.export(
            program, dynamo=True, input_names=["images"], output_names=list(outputs), optimize=False, verbose=False
        )
        held = [name.removeprefix("encoder.") for name in made.model.graph.initializers]
        made.model.metadata_props[TENSORS] = json.dumps(held)
        made.optimize()
        made.save(folder / MODEL)
    write_preprocess(encoder, folder)


def read(encoder: Encoder, folder: Path) -> ReadBack:
    """Return what ONNX Runtime computes."""
    import torch

    runtime = optional("onnxruntime")
    session = runtime.InferenceSession(folder / MODEL, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]

    def tokens(images: Tensor) -> Tensor:
        found = session.run(None, {"images": images.numpy()})
        return joined({name: torch.from_numpy(value) for name, value in zip(outputs, found, strict=True)})

    names = json.loads(session.get_modelmeta().custom_metadata_map[TENSORS])
    return ReadBack(by=by("onnxruntime"), tokens=tokens, names=names, any_size=not keeps_size(encoder))


USAGE = """
import json
import numpy as np
import onnxruntime
from PIL import Image

folder = "FOLDER"
about = json.load(open(f"{folder}/preprocess.json"))
image = Image.open("photo.jpg").convert("RGB")
sides = [about["resize"] * side // min(image.size) for side in image.size]
left, top = (round((side - about["crop"]) / 2) for side in sides)
image = image.resize(sides, Image.Resampling.BICUBIC).crop((left, top, left + about["crop"], top + about["crop"]))
pixels = np.asarray(image, np.float32).reshape(about["crop"], about["crop"], about["channels"]) / 255
pixels = (pixels - np.float32(about["mean"])) / np.float32(about["std"])
session = onnxruntime.InferenceSession(f"{folder}/encoder.onnx")
cls, patches = session.run(["cls", "patches"], {"images": pixels.transpose(2, 0, 1)[None]})
"""

FORMAT = Format(
    text="a model of ONNX", write=write, read=read, usage=USAGE, needs=("onnxscript", "onnxruntime"), fixes_size=True,
    library="onnx",
)  # fmt: skip
