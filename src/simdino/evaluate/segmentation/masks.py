"""Images and masks of what each pixel shows: the layouts, reading a pair, and a look at all of them.

    DIR/images/{training,validation}, DIR/annotations/{training,validation}    as ADE20K: 0 is ignored, k becomes k - 1
    DIR/train/{images,masks}, DIR/val/{images,masks}
    DIR/images/{train,val}, DIR/masks/{train,val}
    DIR/images, DIR/masks    a tenth is held out by a hash of the images' names: those that `open_dataset` of DIR/images
                             holds out

The mask of images/a/b.jpg is masks/a/b.png: one number a pixel, an indexed or a grey PNG of the image's size. 255 is
ignored. A pair is read when it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from simdino.contracts import InputError
from simdino.data.annotated import Exif, by_stem, file_bytes, read_picture, scale_of, sides_of
from simdino.data.decode import as_stored, orientation
from simdino.data.opening import BrokenImage
from simdino.data.scale import Scale
from simdino.data.splits import in_validation
from simdino.data.stores import FolderStore
from simdino.feedback import Progress, no_bar
from simdino.files import written
from simdino.settings import Values

Mask = NDArray[np.uint8]  # [H, W], the number of the class of each pixel from 0, or IGNORED

IGNORED = 255
MAX_BROKEN = 0.1  # share of images that cannot be used above which a set is refused, as when pretraining
SPREAD = {"L;2": 85, "L;4": 17}  # what Pillow multiplies grey numbers of 2 and 4 bits by
ONE_NUMBER = ("1", "L", "P", "I", "I;16")  # Pillow's modes with one number a pixel


ADE20K = (("images/training", "annotations/training"), ("images/validation", "annotations/validation"))
LAYOUTS = (
    ADE20K,
    (("train/images", "train/masks"), ("val/images", "val/masks")),
    (("images/train", "masks/train"), ("images/val", "masks/val")),
    (("images", "masks"),),
)
"""Folders of images and of masks: those for training and those for validation, or one pair that holds both."""
EXPECTED = (
    "images/ and masks/, or train/ and val/ with images/ and masks/ in each, or ADE20K's images/training, "
    "annotations/training, images/validation and annotations/validation"
)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Images and the masks of them, by position.

    root: the folder of the data set. folder: that of these images, below it. images, masks: paths below the root.
    reduce_zero: whether 0 in a mask is ignored and k stands for class k - 1. scale: of all images of the set.
    exif: what the masks were drawn on."""

    root: Path
    folder: str
    images: Sequence[str]
    masks: Sequence[str]
    reduce_zero: bool
    scale: Scale
    exif: Exif = "turn"

    def __len__(self) -> int:
        return len(self.images)

    def read(self, i: int, channels: int) -> tuple[Tensor, Mask]:
        """Image uint8 [C, H, W] and its mask.

        Raises BrokenImage where one of them cannot be decoded, and InputError for a mask that is none of this image."""
        data = file_bytes(self.root, self.images[i])
        image = read_picture(data, self.images[i], channels=channels, exif=self.exif, scale=self.scale)
        return image, self._mask(i, data)

    def mask(self, i: int) -> Mask:
        """The mask alone, with the image's header to compare it with. Raises what `read` does."""
        return self._mask(i, file_bytes(self.root, self.images[i]))

    def turned(self, i: int) -> bool:
        """Whether EXIF turns the image. Raises BrokenImage."""
        return orientation(file_bytes(self.root, self.images[i]), self.images[i]) != 1

    @property
    def name(self) -> str:
        """Of the data set."""
        return self.root.resolve().name

    def number(self, label: int) -> int:
        """The number that stands for a class in the masks."""
        return label + self.reduce_zero

    def select(self, indices: Sequence[int]) -> Pairs:
        """These pairs alone."""
        return replace(self, images=[self.images[i] for i in indices], masks=[self.masks[i] for i in indices])

    def _mask(self, i: int, image: bytes) -> Mask:
        name = self.masks[i]
        sides = sides_of(image, self.images[i], exif=self.exif)
        pixels = numbers(file_bytes(self.root, name), name, of=self.images[i], sides=sides)
        if self.reduce_zero:
            pixels = np.where((pixels == 0) | (pixels == IGNORED), IGNORED, pixels - pixels.dtype.type(1))
        return pixels.astype(np.uint8)


def numbers(data: bytes, name: str, *, of: str, sides: tuple[int, int]) -> NDArray[np.integer]:
    """What a mask holds [H, W]. of: its image, sides: height and width of that."""
    image, raw = as_stored(data, name, formats=("PNG",))
    if image.mode not in ONE_NUMBER:
        raise InputError(
            f"data: mask '{name}' has colours (mode {image.mode}); expected one number a pixel, an indexed PNG"
        )
    if image.size != (sides[1], sides[0]):
        (w, h), (y, x) = image.size, sides
        raise InputError(
            f"data: mask '{name}' has {w} x {h} pixels, but its image '{of}' {x} x {y}; give one of its size"
        )
    pixels = np.array(image) // SPREAD.get(raw, 1)
    if (largest := int(pixels.max(initial=0))) > IGNORED:
        raise InputError(
            f"data: mask '{name}' has the number {largest}; classes are numbers up to 254, and 255 is ignored"
        )
    return pixels


def open_segmentation(
    data: str | Path, *, exif: Exif = "turn", values: Values | None = None
) -> tuple[Pairs, Pairs]:  # fmt: skip
    """Training and validation images with their masks, in the order of their names. An image without a mask is kept:
    reading it tells. exif: see `data.annotated`. values: of an encoder's training images, where these were deep.

    Raises InputError for an unknown layout, without images or masks, and where no image is held out."""
    root = Path(data).expanduser()
    if not root.is_dir():
        raise InputError(f"data: there is no folder '{data}'; give one with {EXPECTED}")
    layout = next((one for one in LAYOUTS if all((root / name).is_dir() for pair in one for name in pair)), None)
    if layout is None:
        found = ", ".join(sorted(f"{path.name}/" for path in root.iterdir() if path.is_dir())) or "no folder"
        raise InputError(f"data: '{data}' is no set of images and masks: it has {found}; expected {EXPECTED}")
    train, *val = [pairs_in(root, pair, reduce_zero=layout == ADE20K, exif=exif, values=values) for pair in layout]
    if val:
        return train, replace(val[0], scale=train.scale)
    out = [in_validation(name.removeprefix(f"{train.folder}/")) for name in train.images]  # as of DIR/images alone
    if len(set(out)) < 2:
        raise InputError(
            f"data: {'all' if all(out) else 'none'} of the {len(out)} images in '{root / train.folder}' would be held "
            f"out, a tenth by their names; give more, or train/ and val/ with images/ and masks/ in each"
        )
    training, kept = ([i for i, is_out in enumerate(out) if is_out == wanted] for wanted in (False, True))
    return train.select(training), train.select(kept)


def pairs_in(
    root: Path, folders: tuple[str, str], *, reduce_zero: bool, exif: Exif, values: Values | None
) -> Pairs:  # fmt: skip
    """All images of a folder, with the masks that they should have."""
    images, masks = folders
    names = FolderStore.walk(root / images, every_name=True).names
    if not names:
        raise InputError(f"data: '{root / images}' has no image file in it or below it")
    by_stem(names, root / images)  # each is the only one of its mask
    there = FolderStore.walk(root / masks, every_name=True).names
    known = by_stem((name for name in there if name.lower().endswith(".png")), root / masks)
    wanted = [known.get(stem, f"{stem}.png") for stem in (str(Path(name).with_suffix("")) for name in names)]
    if set(there).isdisjoint(wanted):
        has = f"its first file is {min(there)}" if there else "it has no image file"
        raise InputError(
            f"data: '{root / masks}' has no mask of any of the {len(names)} images in {images}/: expected {wanted[0]} "
            f"for {names[0]}, but {has}"
        )
    files = [f"{images}/{name}" for name in names]
    return Pairs(
        root=root, folder=images, images=files, masks=[f"{masks}/{name}" for name in wanted], reduce_zero=reduce_zero,
        scale=scale_of(root, files, values), exif=exif,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MaskSurvey:
    """What is known of pairs after a look at every mask and every header."""

    pairs: Pairs  # those that can be used
    pixels: NDArray[np.int64]  # [255], of each class
    short_side: int  # of the images, the median in pixels
    broken: dict[str, str]  # names left out, and why
    turned: int  # images that EXIF turns

    @property
    def classes(self) -> list[int]:
        """The classes that there are."""
        return np.flatnonzero(self.pixels).tolist()


def look_through(pairs: Pairs, progress: Progress = no_bar) -> MaskSurvey:
    """Look at every mask once, one at a time: a mistake is told before anything is trained.

    Raises InputError for masks that are none, and where more than a tenth cannot be read or have no mask."""
    kept, sides, broken, pixels = [], [], dict[str, str](), np.zeros(IGNORED + 1, np.int64)
    turned = 0
    for i in progress(range(len(pairs)), f"masks of {pairs.folder}", len(pairs)):
        try:
            mask = pairs.mask(i)
        except BrokenImage as error:
            broken[error.name] = error.reason
            continue
        kept.append(i)
        turned += pairs.turned(i)
        sides.append(min(mask.shape))
        pixels += np.bincount(mask.ravel(), minlength=IGNORED + 1)
    note({}, broken, pairs)
    return MaskSurvey(
        pairs=pairs.select(kept), pixels=pixels[:IGNORED], short_side=int(np.median(sides)), broken=broken,
        turned=turned,
    )  # fmt: skip


def write_mask(mask: Mask, path: Path, palette: list[int] | None) -> None:
    """Write an indexed PNG. palette: red, green and blue of each number; those without are white, and where there is no
    palette 0 is black."""
    image, known = Image.fromarray(mask).convert("P"), palette or [0] * 3
    image.putpalette(known + [255] * (3 * 256 - len(known)))  # all 256: Pillow takes fewer bits for fewer colours
    with written(path, option="--out") as aside:
        image.save(aside, "PNG")


def note(broken: dict[str, str], more: dict[str, str], pairs: Pairs) -> None:
    """Add to the broken. Raises InputError where those of `pairs` are more than a tenth of them."""
    if not more:
        return
    broken |= more
    own = {name: why for name, why in broken.items() if name in {*pairs.images, *pairs.masks}}
    if len(own) > MAX_BROKEN * len(pairs):
        name, why = next(iter(own.items()))
        raise InputError(
            f"data: {len(own)} of the {len(pairs)} images in '{pairs.root / pairs.folder}' or their masks cannot be "
            f"read, more than {MAX_BROKEN:.0%} (first {name}: {why})"
        )


def check_classes(train: MaskSurvey, validation: MaskSurvey) -> None:
    """Raise InputError with nothing to tell apart, or nothing to score."""
    where = train.pairs.root / train.pairs.folder
    if len(train.classes) < 2:
        has = f"only the number {train.pairs.number(train.classes[0])}" if train.classes else "none"
        ignored = "0 and 255 are ignored" if train.pairs.reduce_zero else "255 is ignored; number them 0, 1, 2, ..."
        raise InputError(f"segment needs at least two classes: the masks for '{where}' have {has}, and {ignored}")
    if not validation.classes:
        where = validation.pairs.root / validation.pairs.folder
        raise InputError(f"segment: every pixel of the masks for '{where}' is ignored, so there is nothing to score")
