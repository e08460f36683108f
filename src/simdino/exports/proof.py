"""The proof of an export: what was written is read back and gives the encoder's tokens."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from simdino.exports.format import TRAINING, Format, ReadBack, every_token

if TYPE_CHECKING:
    from torch import Tensor

    from simdino.models.encoder import Encoder

CLOSE = 1e-4
"""The largest difference of a token's number that rounding may make, for tokens of a standard deviation of 1 or less;
that many times it for others."""

PREPARED = 1e-2
"""The same of the class token where the program prepares photographs by itself: libraries round resized pixels, and a
level of 255 in a few of them is some 1e-3; another mean or crop is far more."""

RANDOM = 2  # images of random numbers at each size


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was compared. by: the program that read the files. tensors, all_tensors: how many of the encoder's tensors
    they hold, and how many the encoder has but for those of training. images, sizes: how many were compared, and their
    sides. difference: the largest of a token's number. photograph: the largest of the class token's where the program
    prepared photographs by itself; None where it leaves that to people."""

    by: str
    tensors: int
    all_tensors: int
    images: int
    sizes: tuple[int, ...]
    difference: float
    photograph: float | None = None

    def __str__(self) -> str:
        sides = " and ".join(map(str, self.sizes))
        line = (
            f"{self.tensors} of {self.all_tensors} tensors; largest difference {self.difference:.1e} on {self.images} "
            f"images of {sides} px, by {self.by}"
        )
        if self.photograph is None:
            return line
        return f"{line}; {self.photograph:.1e} of the class token of photographs that it prepares by itself"


def prove(encoder: Encoder, folder: Path, format: Format, *, image_size: int | None = None) -> Proof:
    """Read the files of a format back and compare its tokens with the encoder's, in float32 on the CPU: of random
    images at two sizes, where it takes several, and of photographs that scikit-learn brings along, where the encoder
    takes grey or colours. Raises RuntimeError where they differ, or a tensor is missing."""
    import torch

    from simdino.models.encoder import evaluating

    own = copy.deepcopy(encoder).float().cpu()
    with TemporaryDirectory() as place, evaluating(own), torch.inference_mode():
        pictures = photographs(Path(place)) if own.in_chans in (1, 3) else []
        prepared = [own.transform(picture)[None] for picture in pictures]
        read = format.read(own, folder)
        images = [random_images(own, side) for side in sides(own, read, image_size)]
        images += prepared if image_size in (None, own.preprocess.crop) else []
        tokens = every_token(own)
        differences = [differing(read.tokens(some), tokens(some)) for some in images]
        photograph = None
        if pictures and read.prepare is not None:
            theirs = [read.tokens(read.prepare(picture))[:, 0] for picture in pictures]
            photograph = max(
                differing(cls, own(image).cls) for cls, image in zip(theirs, prepared, strict=True)
            )  # fmt: skip
    every = {name for name in own.state_dict() if not name.endswith(TRAINING)}
    proof = Proof(
        by=read.by, tensors=len(every & set(read.names)), all_tensors=len(every), images=sum(map(len, images)),
        sizes=tuple(dict.fromkeys(some.shape[-1] for some in images)), difference=max(differences),
        photograph=photograph,
    )  # fmt: skip
    if not (proof.difference <= CLOSE and (photograph or 0) <= PREPARED and proof.tensors == proof.all_tensors):
        raise RuntimeError(f"what was written is not the encoder ({proof}): nothing was exported")
    return proof


def sides(encoder: Encoder, read: ReadBack, image_size: int | None) -> list[int]:
    """Return the sides of the images that are compared: the encoder's own or the one that is fixed, and a larger
    one where any will do."""
    first = image_size or encoder.preprocess.crop
    if image_size is not None or not read.any_size:
        return [first]
    return [first, first + 2 * (encoder.patch_size or 16)]


def random_images(encoder: Encoder, side: int) -> Tensor:
    """Return RANDOM images of random numbers."""
    import torch

    return torch.randn(RANDOM, encoder.in_chans, side, side, generator=torch.Generator().manual_seed(side))


def photographs(folder: Path) -> list[Path]:
    """Write the two photographs in scikit-learn as square JPEG files, and return them. Square, because transformers
    crops an odd rest of pixels one to the left of where torchvision does."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    written: list[Path] = []
    for i, pixels in enumerate(load_sample_images().images):
        side = min(pixels.shape[:2])
        written.append(folder / f"{i}.jpg")
        Image.fromarray(pixels[:side, :side]).save(written[-1], quality=95)
    return written


def differing(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference of tokens, over their standard deviation where that is above 1; infinite where the
    shapes differ or a number is none."""
    if found.shape != expected.shape or not found.isfinite().all():
        return float("inf")
    return float((found.float() - expected).abs().max()) / max(1.0, float(expected.std()))
