"""torch: a folder with a program that `torch.export.load` reads, without simdino."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING
from warnings import catch_warnings, simplefilter

from simdino.errors import InputError
from simdino.exports.format import Format

if TYPE_CHECKING:
    from torch import Tensor

    from simdino.models.encoder import Encoder

PROGRAM, PREPROCESS = "encoder.pt2", "preprocess.json"


def write(encoder: Encoder, folder: Path) -> None:
    """Write the program, of any number of images of the encoder's own size, and how images are prepared."""
    import torch

    from simdino.models.encoder import NamedTokens, evaluating

    size = encoder.preprocess.crop
    images = torch.zeros(2, encoder.in_chans, size, size, device=encoder.device)
    batch = torch.export.Dim("batch", min=1)
    with evaluating(encoder), torch.no_grad():
        if encoder(images).patches is None:
            raise InputError(f"--to torch holds no {encoder.config.name}, which gives no patch tokens")
        program = torch.export.export(NamedTokens(encoder), (images,), dynamic_shapes=({0: batch},))
    with catch_warnings():
        simplefilter("ignore", UserWarning)  # of channels last, taken for views of others; all is read back
        torch.export.save(program, folder / PROGRAM)
    (folder / PREPROCESS).write_text(json.dumps(asdict(encoder.preprocess), indent=2) + "\n")


def read(encoder: Encoder, folder: Path) -> Callable[[Tensor], Tensor]:
    """Return what the program computes."""
    import torch

    program = torch.export.load(folder / PROGRAM).module()

    def tokens(images: Tensor) -> Tensor:
        named = program(images)
        return torch.cat(
            [named["cls"][:, None], *(named[name] for name in ("registers", "patches") if name in named)], 1
        )

    return tokens


FORMAT = Format(text="a program of torch.export", write=write, read=read)
