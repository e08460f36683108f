"""The steps of `segment`: masks looked at, crops for training, test images, and masks written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from simdino.contracts import InputError
from simdino.data.opening import BrokenImage
from simdino.data.workers import in_order
from simdino.evaluate.segmentation.crops import CropBatches, WholeImages
from simdino.evaluate.segmentation.head import Segmenter
from simdino.evaluate.segmentation.masks import MaskSurvey, Pairs, check_broken, look_through
from simdino.evaluate.segmentation.sliding import Confusion, classes_at, slide
from simdino.features.extract import inputs
from simdino.feedback import Progress
from simdino.files import check_folder, written

SIZE, OF_ENCODER = 512, 224  # pixels of a crop, for an encoder of images of so many


def score(
    model: Segmenter, images: WholeImages, broken: dict[str, str], *,
    out: Path | None, workers: int, progress: Progress,
) -> tuple[Confusion, int]:  # fmt: skip
    """The pixels of all test images by their class and the predicted one, and how many images could be read; the others
    are noted in `broken`. out: where predictions are written."""
    found, count, pairs = Confusion(model.classes), 0, images.pairs
    stream = in_order(images, range(len(images)), workers=workers)
    for i, one in enumerate(progress(stream, f"scores on {pairs.name}", len(images))):
        if isinstance(one, BrokenImage):
            note(broken, {one.name: one.reason}, pairs)
            continue
        image, mask = one
        logits = slide(model, inputs(model.encoder, image[None])[0], window=images.size)
        predicted = classes_at(logits, tuple(mask.shape)).numpy()
        found.add(mask.numpy(), predicted)
        count += 1
        if out is not None:
            write_mask(predicted, pairs, i, out)
    return found, count


def look(pairs: Pairs, progress: Progress) -> MaskSurvey:
    """Every mask looked at once."""
    return look_through(pairs, progress(range(len(pairs)), f"masks of {pairs.folder}", len(pairs)))


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


def check_place(out: Path | None, pairs: Pairs) -> None:
    """Raise InputError where predictions would lie over the data, or cannot be written."""
    if out is None:
        return
    if out.resolve().is_relative_to(pairs.root.resolve()):
        raise InputError(f"--out {out} is in the folder of the data, whose masks must stay: give another")
    check_folder(out, option="--out")


def usual_size(of_encoder: int, short_side: int, patch: int) -> int:
    """Pixels of a crop's side, see `segment`."""
    size = min(SIZE, round(SIZE * of_encoder / OF_ENCODER), short_side)
    return size if size == SIZE else max(patch, size // patch * patch)


def batches(crops: CropBatches, broken: dict[str, str], *, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The crops and masks of all steps; broken images are noted."""
    for images, masks, unreadable in in_order(crops, range(len(crops)), workers=workers):
        note(broken, unreadable, crops.pairs)
        yield images, masks


def note(broken: dict[str, str], more: dict[str, str], pairs: Pairs) -> None:
    """Add to the broken. Raises InputError when they are more than a tenth of these images."""
    broken |= more
    if more:
        own = {name: why for name, why in broken.items() if name in {*pairs.images, *pairs.masks}}
        check_broken(pairs, own, of=len(pairs))


def scores(found: Confusion, pairs: Pairs) -> dict[str, Any]:
    """The fields of a result that are measured."""
    iou, accuracies = found.iou(), found.accuracies()
    return {
        "miou": float(np.nanmean(iou)), "macc": float(np.nanmean(accuracies)), "aacc": found.accuracy(),
        "iou": {pairs.number(i): None if np.isnan(value) else float(value) for i, value in enumerate(iou)},
    }  # fmt: skip


def write_mask(predicted: NDArray[np.uint8], pairs: Pairs, i: int, out: Path) -> None:
    """An indexed PNG with the data's own numbers, in the colours of PASCAL VOC."""
    path = out / Path(pairs.images[i]).relative_to(pairs.folder).with_suffix(".png")
    image = Image.fromarray(predicted + np.uint8(pairs.reduce_zero)).convert("P")
    image.putpalette(palette().flatten().tolist())
    with written(path, option="--out") as aside:
        image.save(aside, "PNG")


def palette() -> NDArray[np.uint8]:
    """PASCAL VOC's colours, uint8 [256, 3]: the bits of a number dealt out to red, green and blue in turn, each
    channel's highest first."""
    bits = np.arange(256)[:, None, None] >> (3 * np.arange(8)[:, None] + np.arange(3)) & 1  # [256, 8, 3]
    return (bits << (7 - np.arange(8)[:, None])).sum(1).astype(np.uint8)
