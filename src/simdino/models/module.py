"""Any torch module that takes images as an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from simdino.contracts import InputError, Tokens
from simdino.models.adapters import draw_nothing, first_line
from simdino.models.encoder import Encoder

CLASS = ("cls", "x_norm_clstoken", "pooler_output", "features")
PATCHES = ("patches", "x_norm_patchtokens")
"""The keys under which a module that returns a dict may have its class token and its patch tokens; the first wins."""


class ModuleEncoder(Encoder):
    """A copy of a module with its weights. It is called with images float [N, C, H, W] and returns one of: features [N,
    D]; feature maps [N, D, h, w], whose mean is the feature; `Tokens`; a tuple of features [N, D] and patch tokens [N,
    P, D]; or a dict with the two under keys of `CLASS` and `PATCHES`.

    Its embedding width is found with two black images. Dropout and drop path are switched off: they would draw from
    torch's global random state, and a run could not be repeated. Masks are refused. Raises InputError where the module
    does not take the images or returns anything else."""

    def __init__(self, module: nn.Module, name: str, *, image_size: int, in_chans: int) -> None:
        super().__init__()
        self.module, self.name = deepcopy(module), name
        self.patch_size, self.in_chans, self.depth = None, in_chans, 1
        draw_nothing(self.module)
        self.embed_dim = 0
        self.embed_dim = self.probe(image_size)

    def probe(self, size: int) -> int:
        """Return the embedding width of the features for images of this size. Raises InputError where it does not take
        them."""
        parameter = next(self.module.parameters(), torch.empty(0))
        images = torch.zeros(2, self.in_chans, size, size, device=parameter.device)
        was_training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                return self(images).cls.shape[1]
        except InputError:
            raise
        except Exception as error:  # a module may fail with anything
            raise InputError(
                f"encoder {self.name} does not take images float32 {list(images.shape)} ({first_line(error)}): give a "
                f"module that does, or other sizes of crops"
            ) from None
        finally:
            self.module.train(was_training)

    def forward(
        self, images: Tensor, *, keys: Tensor | None = None, masks: Tensor | None = None, patches: bool = True
    ) -> Tokens:
        """Encode images as `Encoder.forward` does. Raises InputError for masks, and where the output is not
        features."""
        if masks is not None:
            raise InputError(f"encoder {self.name} takes no masks: a patch objective needs one of our encoders")
        found = read_tokens(self.module(images))
        cls: Any = found.cls
        expected = [len(images), self.embed_dim or "D"]
        if not isinstance(cls, Tensor) or not cls.is_floating_point() or cls.ndim != 2 or len(cls) != len(images):
            got = f"{cls.dtype} {list(cls.shape)}" if isinstance(cls, Tensor) else type(cls).__name__
            raise InputError(f"encoder {self.name} returns {got}, expected features float {expected}")
        if self.embed_dim not in (0, cls.shape[1]):
            raise InputError(
                f"encoder {self.name} returns {list(cls.shape)} for images of {images.shape[-1]} px, expected "
                f"{expected}: its features must not depend on the size of crops"
            )
        return found

    def layer_of(self, name: str) -> int:
        """Return 1: a module does not tell its layers apart."""
        return 1


def read_tokens(output: Any) -> Tokens:
    """Return a module's output as Tokens, which `ModuleEncoder.forward` checks."""
    if isinstance(output, Tokens):
        return output
    patches, grid = None, None
    if isinstance(output, Mapping):
        patches = next((output[key] for key in PATCHES if key in output), None)
        output = next((output[key] for key in CLASS if key in output), output)
    elif isinstance(output, tuple | list):
        output, patches = (*output, None)[:2] if output else (output, None)
    if isinstance(output, Tensor) and output.ndim == 4:
        grid, patches, output = output.shape[2:], output.flatten(2).mT, output.mean((2, 3))
    return Tokens(cls=output, patches=patches, grid=None if grid is None else (grid[0], grid[1]))
