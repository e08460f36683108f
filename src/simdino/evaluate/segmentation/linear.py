"""Semantic segmentation by a linear head on frozen patch tokens: DINOv2's protocol for ADE20K, on any images with
masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from simdino.config import Precision
from simdino.contracts import InputError
from simdino.data.annotated import Exif, turned_line
from simdino.data.decode import BrokenImage
from simdino.data.workers import in_order
from simdino.evaluate.segmentation.crops import CropBatches, WholeImages
from simdino.evaluate.segmentation.head import Segmenter, train_head
from simdino.evaluate.segmentation.masks import Mask, MaskSurvey, Pairs, check_broken, look_through, open_segmentation
from simdino.evaluate.segmentation.sliding import Confusion, classes_at, slide
from simdino.features.dense import check_size, inputs, patch_of
from simdino.features.extract import Progress, unwatched
from simdino.files import check_folder, written
from simdino.models.encoder import Encoder
from simdino.models.weights import load_encoder, to_stderr
from simdino.precision import present_device
from simdino.runs.evaluations import keep_scores

SIZE, OF_ENCODER = 512, 224  # pixels of a crop, for an encoder of images of so many
BATCH = 16
EPOCHS, FEWEST, MOST = 10, 300, 2000  # passes over the data, and steps


@dataclass(frozen=True, kw_only=True)
class SegmentResult:
    """Scores in percent, as published tables have them, of all held-out pixels that are not ignored, each counted once.

    Classes are the numbers in the masks."""

    miou: float  # mean over the classes that are there or were predicted
    macc: float  # mean over the classes that are there
    aacc: float  # of all pixels
    iou: dict[int, float | None]  # of each class; None for one that is not there and was not predicted
    loss: float  # of the last batch
    layers: int  # blocks that the head reads
    size: int  # pixels of a crop's side and of a test image's short side
    stride: int  # pixels between windows
    batch: int
    steps: int
    train_images: int
    held_out_images: int
    broken: dict[str, str]  # names of the images or masks left out, and why
    turned: int  # images that EXIF turns

    def __str__(self) -> str:
        return (
            f"mIoU {self.miou:.1f} %  mAcc {self.macc:.1f} %  aAcc {self.aacc:.1f} %, {self.known} classes, "
            f"{self.held_out_images} held-out images; {self.steps} steps of {self.batch} crops of {self.size} px of "
            f"{self.train_images} images"
        )

    @property
    def known(self) -> int:
        """The classes that are there or were predicted."""
        return sum(value is not None for value in self.iou.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """A line for each class."""
        return [f"class {label}: IoU {value:.1f} %" for label, value in self.iou.items() if value is not None]


def segment(
    encoder: Encoder, data: str | Path, *,
    layers: int = 1, steps: int | None = None, batch: int = BATCH, size: int | None = None, seed: int = 0,
    masks: str | Path | None = None, exif: Exif = "turn", precision: Precision | None = None, workers: int = 0,
    progress: Progress = unwatched,
) -> SegmentResult:  # fmt: skip
    """Train a linear head on the patch tokens of a frozen encoder, and score it on all held-out images.

    Random scales of 0.5 to 2, crops, flips and colours; AdamW at 1e-3; windows that slide by two thirds of their side;
    mIoU from one confusion matrix. The cross-entropy is the mean over all pixels, ignored ones included, as mmseg's is.

    data: the folder, see `masks`. layers: last blocks whose patch tokens are read, side by side. steps: as
    many as make 10 passes over the images, but 300 at least and 2,000 at most; the protocol for ADE20K has 40,000.
    size: of crops, windows and test images' short sides in pixels: 512 for an encoder of 224 and in proportion, not
    more than 512 and than half of the images have, in whole patches below 512. masks: where to write what was predicted
    for the held-out images, as indexed PNGs with the data's own numbers. exif: what masks were drawn on, see
    `data.annotated`. precision: the encoder's; the fastest on its
    device unless given. workers: processes that read images. progress: given masks, steps and images.

    The encoder is left in eval mode. The memory for an image's logits is K x h x w numbers at the tested size.

    Raises InputError for data that cannot be used (see `masks`), one class only, and an encoder without
    patches."""
    patch = patch_of(encoder)
    for word, value in (("layers", layers), ("steps", steps), ("batch", batch), ("size", size)):
        if value is not None and value < 1:
            raise InputError(f"--{word} {value} must be above 0")
    both = open_segmentation(data, exif=exif, bits=encoder.preprocess.bits)
    train, held_out = (look(pairs, progress) for pairs in both)
    check_classes(train, held_out)
    check_place(masks, held_out.pairs)
    size = size or usual_size(encoder.preprocess.crop, train.short_side, patch)
    steps = steps or min(MOST, max(FEWEST, round(EPOCHS * len(train.pairs) / batch)))
    classes = 1 + max(*train.classes, *held_out.classes)
    model = Segmenter(encoder, classes=classes, layers=layers, size=size, seed=seed, precision=precision)
    broken = train.broken | held_out.broken
    crops = CropBatches(train.pairs, encoder.preprocess, size=size, batch=batch, steps=steps, seed=seed)
    stream = progress(batches(crops, broken, workers=workers), f"training on {train.pairs.name}", steps)
    loss = train_head(model, stream, steps=steps)
    stride, found, count = max(1, 2 * size // 3), Confusion(classes), 0
    tested = tested_images(model, held_out.pairs, broken, size=size, workers=workers, progress=progress)
    for i, image, truth in tested:
        logits = slide(model, image, window=size, stride=stride)
        predicted = classes_at(logits, truth.shape).numpy()
        found.add(truth, predicted)
        count += 1
        if masks is not None:
            write_mask(predicted, held_out.pairs, i, Path(masks))
    return SegmentResult(
        **scores(found, train.pairs), loss=loss, layers=layers, size=size, stride=stride, batch=batch, steps=steps,
        train_images=len(train.pairs), held_out_images=count, broken=broken,
        turned=train.turned + held_out.turned,
    )  # fmt: skip


def tested_images(
    model: Segmenter, pairs: Pairs, broken: dict[str, str], *, size: int, workers: int, progress: Progress
) -> Iterator[tuple[int, Tensor, Mask]]:
    """(position, image float32 [C, h, w] with its short side at `size`, mask) of all that can be read; the others are
    noted."""
    whole = WholeImages(pairs, model.encoder.channels, size=size)
    stream = in_order(whole, range(len(whole)), workers=workers)
    for i, one in enumerate(progress(stream, f"scores on {pairs.name}", len(whole))):
        if isinstance(one, BrokenImage):
            note(broken, {one.name: one.reason}, pairs)
        else:
            image, mask = one
            yield i, inputs(model.encoder, image[None])[0], mask.numpy()


def look(pairs: Pairs, progress: Progress) -> MaskSurvey:
    """Every mask looked at once."""
    return look_through(pairs, progress(range(len(pairs)), f"masks of {pairs.folder}", len(pairs)))


def check_classes(train: MaskSurvey, held_out: MaskSurvey) -> None:
    """Raise InputError with nothing to tell apart, or nothing to score."""
    where = train.pairs.root / train.pairs.folder
    if len(train.classes) < 2:
        has = f"only the number {train.pairs.number(train.classes[0])}" if train.classes else "none"
        ignored = "0 and 255 are ignored" if train.pairs.reduce_zero else "255 is ignored; number them 0, 1, 2, ..."
        raise InputError(f"segment needs at least two classes: the masks for '{where}' have {has}, and {ignored}")
    if not held_out.classes:
        where = held_out.pairs.root / held_out.pairs.folder
        raise InputError(f"segment: every pixel of the masks for '{where}' is ignored, so there is nothing to score")


def check_place(masks: str | Path | None, pairs: Pairs) -> None:
    """Raise InputError where predictions would lie over the data, or cannot be written."""
    if masks is None:
        return
    if Path(masks).resolve().is_relative_to(pairs.root.resolve()):
        raise InputError(f"--masks {masks} is in the folder of the data, whose masks must stay: give another")
    check_folder(Path(masks), option="--masks")


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
    with written(path, option="--masks") as aside:
        image.save(aside, "PNG")


def palette() -> NDArray[np.uint8]:
    """PASCAL VOC's colours, uint8 [256, 3]: the bits of a number dealt out to red, green and blue in turn, each
    channel's highest first."""
    bits = np.arange(256)[:, None, None] >> (3 * np.arange(8)[:, None] + np.arange(3)) & 1  # [256, 8, 3]
    return (bits << (7 - np.arange(8)[:, None])).sum(1).astype(np.uint8)


def evaluate_segment(
    encoder: str, data: str, *,
    layers: int = 1, steps: int | None = None, batch: int = BATCH, size: int | None = None, seed: int = 0,
    masks: str | Path | None = None, exif: Exif = "turn", workers: int = 0, device: str = "auto",
    log: Callable[[str], None] = to_stderr, progress: Progress = unwatched,
) -> SegmentResult:  # fmt: skip
    """`segment` of an encoder by name, kept in evaluations.jsonl where that is a run folder. log: called with a line
    for each image left out."""
    model = load_encoder(encoder).to(present_device(device))
    check_size(model, size, images=batch)
    result = segment(
        model, data, layers=layers, steps=steps, batch=batch, size=size, seed=seed, masks=masks, exif=exif,
        workers=workers, progress=progress,
    )  # fmt: skip
    keep_scores(
        encoder, protocol="segment", where=data, name=Path(data).resolve().name,
        counted={"train_images": result.train_images, "held_out_images": result.held_out_images},
        settings={"layers": layers, "steps": result.steps, "batch": batch, "size": result.size, "seed": seed}
        | ({"exif": exif} if exif != "turn" else {}),
        results=result.as_dict(), said=str(result), log=log,
    )  # fmt: skip
    if line := turned_line(result.turned, of=result.train_images + result.held_out_images, exif=exif):
        log(line)
    for name, reason in result.broken.items():
        log(f"left out {name}: {reason}")
    return result
