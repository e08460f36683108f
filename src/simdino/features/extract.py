"""Images -> features: tokens of whole sources, and patch tokens of images of any size."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simdino.config import Precision
from simdino.contracts import InputError, Preprocess, Tokens
from simdino.data.base import Source
from simdino.data.opening import BrokenImage
from simdino.data.photometric import normalise, to_unit_range
from simdino.data.sources import DataPath, open_dataset
from simdino.data.views import centre
from simdino.data.workers import Waiting, in_order, patient
from simdino.device import fastest, make_autocast, refuse_beyond_memory
from simdino.feedback import Progress, no_bar
from simdino.keywords import TokenKind
from simdino.models.catalogue import kind_of
from simdino.models.encoder import Encoder, evaluating

BATCH = 256  # images read at a time
IN_CACHE = 64  # images at once on a CPU: their activations stay in its caches, a third faster than 256
PIXELS = 32  # the largest side at which raw pixels are compared


@dataclass(frozen=True, kw_only=True)
class Features:
    """Feature vectors of the readable images of a source, in its order."""

    vectors: Tensor  # float32 [N, D]; [N, P, D] of all patch tokens
    names: list[str]
    labels: NDArray[np.int64] | None  # [N], positions in `classes`
    classes: tuple[str, ...]
    broken: dict[str, str]  # names of the images left out, and why
    grid: tuple[int, int] | None = None  # (h, w) with h * w = P, of patch tokens

    def __len__(self) -> int:
        return len(self.names)


PreparedBatch = tuple[list[int], Tensor, dict[int, str]]
"""Positions in the source, images [B, C, crop, crop] (uint8, or float32 in [0, 1] of deep images), and the positions of
the broken with the reasons."""


class Prepared:
    """Batches of a source's images without randomness.

    reduced: let large JPEGs come at 1/2, 1/4 or 1/8 of their size, never below twice what is needed. Several times as
    fast for photographs, and up to 2.5 levels of 255 away from what a picture decoded whole gives (docs/parity.md)."""

    def __init__(self, source: Source, preprocess: Preprocess, *, batch: int = BATCH, reduced: bool = False) -> None:
        self.source, self.preprocess = source.with_values(preprocess.values), preprocess
        self.batch, self.reduced = batch, reduced

    def __len__(self) -> int:
        return ceil(len(self.source) / self.batch)

    def __getitem__(self, k: int) -> PreparedBatch:
        ids, images, broken = [], [], {}
        for i in range(k * self.batch, min((k + 1) * self.batch, len(self.source))):
            try:
                images.append(self._image(i))
                ids.append(i)
            except BrokenImage as error:
                broken[i] = error.reason
        size = self.preprocess.crop
        empty = torch.empty(0, self.preprocess.channels, size, size, dtype=torch.uint8)
        if any(image.is_floating_point() for image in images):  # one scale for all of a batch
            images = [to_unit_range(image) for image in images]
        return ids, torch.stack(images) if images else empty, broken

    def _image(self, i: int) -> Tensor:
        at_least = 2 * self.preprocess.resize if self.reduced else None
        image = self.source.read(i, self.preprocess.channels, at_least=at_least)
        return centre(image, self.preprocess, sides=self.source.sides(i) if self.reduced else None)


def prepared(
    source: Source, preprocess: Preprocess, *,
    workers: int = 0, reduced: bool = False, waiting: Waiting = patient, batch: int = BATCH, first: int = 0,
) -> Iterator[PreparedBatch]:  # fmt: skip
    """The batches of `Prepared` from number `first` on, made by worker processes where asked for."""
    made = Prepared(source, preprocess, batch=batch, reduced=reduced)
    return in_order(made, range(first, len(made)), workers=workers, waiting=waiting)


def normalised(images: Tensor, preprocess: Preprocess) -> Tensor:
    """[N, C, H, W] -> float32, with the mean and std of an encoder's training images."""
    return normalise(to_unit_range(images), mean=preprocess.mean, std=preprocess.std)


def inputs(encoder: Encoder, images: Tensor) -> Tensor:
    """[N, C, H, W], uint8 or float32 in [0, 1] -> what the encoder takes, on its device."""
    return normalised(images.to(encoder.device), encoder.preprocess)


@contextmanager
def sizes_explained(encoder: Encoder, images: Tensor) -> Iterator[None]:
    """Raise InputError where a model of timm does not take images [N, C, H, W] of this size, as it asserts."""
    try:
        yield
    except AssertionError:
        height, width = images.shape[-2:]
        raise InputError(
            f"encoder {encoder.config.name} does not take images of {width}x{height} pixels: give --size "
            f"{encoder.preprocess.crop} and square pictures, or take an encoder of ours"
        ) from None


def arithmetic(encoder: Encoder, precision: Precision | None) -> torch.autocast:
    """The autocast of a precision on the encoder's device; of the fastest one where None is given."""
    return make_autocast(encoder.device, precision or fastest(str(encoder.device)))


def in_parts(encoder: Encoder, images: Tensor) -> tuple[Tensor, ...]:
    """Images [N, ...] as many at once as the encoder's device computes fastest: 64 on a CPU, all elsewhere."""
    return images.split(IN_CACHE if encoder.device.type == "cpu" else len(images) or 1)


def blank(encoder: Encoder) -> Tensor:
    """An image of zeros [1, C, crop, crop] on the encoder's device."""
    about = encoder.preprocess
    return torch.zeros(1, about.channels, about.crop, about.crop, device=encoder.device)


def kept_of(tokens: Tokens, kind: TokenKind) -> Tensor:
    """What is kept of an encoder's tokens, float32: [N, D], or [N, P, D] of "patches"."""
    if kind == "cls":
        return tokens.cls.float()
    assert tokens.patches is not None, "an encoder without patch tokens is refused before"
    return tokens.patches.float() if kind == "patches" else tokens.patches.float().mean(1)


def kept_shape(encoder: Encoder, kind: TokenKind) -> tuple[tuple[int, ...], tuple[int, int] | None]:
    """The shape of `kept_of` for one image, and the patches' rows and columns where all are kept, by a blank image.
    Raises InputError for patches of an encoder that has none."""
    if kind not in get_args(TokenKind):
        raise InputError(f"--tokens {kind} must be one of {', '.join(get_args(TokenKind))}")
    found = tokens_of(encoder, blank(encoder), patches=kind != "cls")
    if kind != "cls" and (found.patches is None or found.grid is None):
        raise InputError(
            f"--tokens {kind}: encoder {encoder.config.name} tells no patch tokens apart: take a ViT or a CRATE, or "
            f"--tokens cls"
        )
    return tuple(kept_of(found, kind).shape[1:]), found.grid if kind == "patches" else None


def reader(encoder: Encoder, kind: TokenKind, precision: Precision | None = None) -> Callable[[Tensor], Tensor]:
    """Prepared images [N, C, H, W] -> `kept_of` their tokens after the final norm, on the CPU. precision: see
    `extract`."""
    autocast = arithmetic(encoder, precision)

    def read(images: Tensor) -> Tensor:
        with torch.inference_mode(), evaluating(encoder), autocast:
            given = (inputs(encoder, part) for part in in_parts(encoder, images))
            return torch.cat([kept_of(encoder(part, patches=kind != "cls"), kind).cpu() for part in given])

    return read


def extract(
    encoder: Encoder, source: Source, *,
    precision: Precision | None = None, workers: int = 0, reduced: bool = False, waiting: Waiting = patient,
    progress: Progress = no_bar, tokens: TokenKind = "cls",
) -> Features:  # fmt: skip
    """Tokens after the final norm, float32, of a source's images prepared as the encoder wants them: class tokens
    [N, D], with "mean" the mean of the patch tokens [N, D], with "patches" all of them [N, P, D].

    precision: the encoder's arithmetic; the fastest on its device unless given. reduced: see `Prepared`. workers,
    waiting: see `data.workers.in_order`. progress: given the batches. Raises InputError where no image is readable, and
    for patches of an encoder that has none."""
    grid = None if tokens == "cls" else kept_shape(encoder, tokens)[1]
    batches = prepared(source, encoder.preprocess, workers=workers, reduced=reduced, waiting=waiting)
    stream = progress(batches, f"features of {source.name}", ceil(len(source) / BATCH))
    return replace(collected(source, stream, reader(encoder, tokens, precision)), grid=grid)


def pixels(
    source: Source, preprocess: Preprocess, *,
    size: int, workers: int = 0, reduced: bool = False, waiting: Waiting = patient,
) -> Features:  # fmt: skip
    """The pixels themselves, float32 [N, C*size*size], of images brought to `size` px and normalised as for the
    encoder: what k-NN reaches without any encoder. reduced: see `Prepared`."""
    preprocess = replace(preprocess, resize=size, crop=size)
    batches = prepared(source, preprocess, workers=workers, reduced=reduced, waiting=waiting)
    return collected(source, batches, lambda images: normalised(images, preprocess).flatten(1))


def collected(source: Source, batches: Iterable[PreparedBatch], vectors_of: Callable[[Tensor], Tensor]) -> Features:
    """The vectors of all batches of a source. Raises InputError where no image is readable."""
    vectors, kept, broken = list[Tensor](), list[int](), dict[str, str]()
    for ids, images, unreadable in batches:
        kept += ids
        broken |= {source.names[i]: reason for i, reason in unreadable.items()}
        vectors.append(vectors_of(images))
    if not kept:
        raise InputError(f"no readable image in {source.name}: {len(broken)} tried")
    labels = None if source.labels is None else source.labels[kept]
    return Features(
        vectors=torch.cat(vectors), names=[source.names[i] for i in kept], labels=labels, classes=source.classes,
        broken=broken,
    )  # fmt: skip


def pixel_size(source: Source) -> int:
    """The size at which raw pixels are compared: that of the first readable image, at most 32 px."""
    for i in range(len(source)):
        try:
            return min(PIXELS, *source.read(i).shape[1:])
        except BrokenImage:
            continue
    return PIXELS


def embed(
    encoder: Encoder, data: str | Path | DataPath | Source, *,
    split: str = "all", workers: int = 0, reduced: bool = False, tokens: TokenKind = "cls",
) -> Features:  # fmt: skip
    """Features of every readable image of `data` (whatever `simdino pretrain` takes, or a source), all in memory;
    `simdino embed` writes tables of any length.

    tokens: "cls", the class token [N, D]; "mean", the mean of the patch tokens [N, D]; "patches", all of them
    [N, P, D], with their rows and columns as `grid`. reduced: decode large JPEGs at a half or a quarter of their size.
    Raises InputError where no image is readable, and for patches of an encoder that has none."""
    source = data if isinstance(data, Source) else open_dataset(data, split)  # pyright: ignore[reportArgumentType]
    return extract(encoder, source, workers=workers, reduced=reduced, tokens=tokens)


def patch_of(encoder: Encoder) -> int:
    """The side of the encoder's patches. Raises InputError for an encoder without."""
    if encoder.patch_size is None:
        raise InputError(
            f"encoder {encoder.config.name} has no patches, which this task compares: take a ViT or a CRATE"
        )
    return encoder.patch_size


@torch.no_grad()
def tokens_of(encoder: Encoder, given: Tensor, *, patches: bool = True, precision: Precision | None = None) -> Tokens:
    """Tokens after the final norm of prepared images [N, C, H, W]. precision: see `extract`. Raises InputError for a
    size that the encoder does not take."""
    with evaluating(encoder), arithmetic(encoder, precision), sizes_explained(encoder, given):
        return encoder(given, patches=patches)


def patch_maps(encoder: Encoder, tokens: Tokens) -> Tensor:
    """The patch tokens of an encoder's output, float32 [N, h, w, D]. Raises InputError where there are none."""
    if tokens.patches is None or tokens.grid is None:
        raise InputError(f"encoder {encoder.config.name} tells no patch tokens apart: take a ViT or a CRATE")
    return tokens.patches.float().unflatten(1, tokens.grid)


def patch_features(encoder: Encoder, images: Tensor, *, precision: Precision | None = None) -> Tensor:
    """Patch tokens, float32 [N, h, w, D], of images [N, C, H, W] whose sides the patch size divides. precision:
    see `extract`. Raises InputError for an encoder without patch tokens."""
    patch_of(encoder)
    return patch_maps(encoder, tokens_of(encoder, inputs(encoder, images), precision=precision))


def check_size(encoder: Encoder, size: int | None, *, images: int = 1, pairs: bool = False) -> None:
    """Raise InputError for a --size at which images cannot be looked at in the memory of the encoder's device.

    size: their shorter side in pixels; None where it follows the images. images: how many at once. pairs: whether every
    patch is compared with every other."""
    if size is None:
        return
    device, tokens = encoder.device, (size // encoder.patch_size) ** 2 if encoder.patch_size else 0
    shape = kind_of(encoder.config.name).complete(encoder.config)
    heads = shape.num_heads or 0 if device.type == "cpu" else 0  # GPUs hold no matrix of attention
    needed = {
        "pixels": 5.0 * images * encoder.in_chans * size**2,  # as uint8 and as float32
        "tokens": 4.0 * images * tokens * encoder.embed_dim,
        "attention": 2.0 * images * heads * tokens**2,  # in bfloat16
        "pairs of patches": 4.0 * tokens**2 if pairs else 0.0,
    }
    refuse_beyond_memory(needed, device=device, words=f"--size {size}")
