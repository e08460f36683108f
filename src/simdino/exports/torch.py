"""torch: a folder with a program that `torch.export.load` reads, without simdino."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from warnings import catch_warnings, simplefilter

from simdino.exports.format import Format, ReadBack, by, joined, keeps_size, program_of, write_preprocess

if TYPE_CHECKING:
    from simdino.models.encoder import Encoder

PROGRAM = "encoder.pt2"


def write(encoder: Encoder, folder: Path, image_size: int | None) -> None:
    """Write the program, and how images are prepared."""
    import torch

    program, _ = program_of(encoder, image_size)
    with catch_warnings():
        simplefilter("ignore", UserWarning)  # of channels last, taken for views of others; all is read back
        torch.export.save(program, folder / PROGRAM)
    write_preprocess(encoder, folder)


def read(encoder: Encoder, folder: Path) -> ReadBack:
    """Return what the program computes."""
    import torch

    program = torch.export.load(folder / PROGRAM)
    run = program.module()
    names = [name.removeprefix("encoder.") for name in program.state_dict]
    return ReadBack(
        by=by("torch"), tokens=lambda images: joined(run(images)), names=names, any_size=not keeps_size(encoder)
    )


USAGE = """
import json
import torch
from PIL import Image
from torchvision.transforms import v2

folder = "FOLDER"
about = json.load(open(f"{folder}/preprocess.json"))
prepare = v2.Compose([
    v2.PILToTensor(), v2.Resize(about["resize"], v2.InterpolationMode.BICUBIC), v2.CenterCrop(about["crop"]),
    v2.ToDtype(torch.float32, scale=True), v2.Normalize(about["mean"], about["std"]),
])
program = torch.export.load(f"{folder}/encoder.pt2").module()
tokens = program(prepare(Image.open("photo.jpg").convert("RGB"))[None])
cls, patches = tokens["cls"], tokens["patches"]
"""

FORMAT = Format(text="a program of torch.export", write=write, read=read, usage=USAGE, fixes_size=True)
