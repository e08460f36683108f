"""Semantic segmentation by a linear head on frozen patch tokens: DINOv2's protocol for ADE20K, on any images with
masks.

Random scales of 0.5 to 2, crops, flips and colours; AdamW at 1e-3; windows that slide by two thirds of their side;
mIoU from one confusion matrix. The cross-entropy is the mean over all pixels, ignored ones included, as mmseg's is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from simdino.config import Precision
from simdino.errors import InputError
from simdino.evaluate.layouts import Layout, as_folder
from simdino.evaluate.protocol import as_protocol
from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.files import check_folder
from simdino.keywords import AT_LEAST_1, BATCH, PIXELS, STEPS, Exif, Option, Seed, Workers
from simdino.result import Result

if TYPE_CHECKING:
    from simdino.models.encoder import Encoder

EPOCHS, FEWEST, MOST = 10, 300, 2000  # passes over the data, and steps
MASKS = Layout(text="Folder with images/ and masks/ (docs/evaluation/segmentation.md).", open=as_folder, required=True)


@dataclass(frozen=True, kw_only=True)
class SegmentResult(Result):
    """Scores in percent, as published tables have them, of all validation pixels but the ignored, each counted once.

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
    validation_images: int
    broken: dict[str, str]  # names of the images or masks left out, and why
    turned: int  # images that EXIF turns

    def __str__(self) -> str:
        return (
            f"mIoU {self.miou:.1f} %  mAcc {self.macc:.1f} %  aAcc {self.aacc:.1f} %, {self.known} classes, "
            f"{self.validation_images} validation images; {self.steps} steps of {self.batch} crops of {self.size} px "
            f"of {self.train_images} images"
        )

    @property
    def known(self) -> int:
        """The classes that are there or were predicted."""
        return sum(value is not None for value in self.iou.values())

    def lines(self) -> list[str]:
        """A line for each class, then the scores."""
        return [f"class {i}: IoU {value:.1f} %" for i, value in self.iou.items() if value is not None] + [str(self)]


@as_protocol(MASKS, example="segment runs/photos --data ADEChallengeData2016/ --steps 40000")
def segment(
    encoder: Encoder, data: Path, *,
    layers: Annotated[int, Option("Last blocks whose patch tokens are read.", AT_LEAST_1)] = 1,
    steps: Annotated[int | None, Option("Length in batches.", STEPS, "10 epochs, but 300 to 2,000 steps")] = None,
    batch: Annotated[int, Option("Crops a step.", BATCH)] = 16,
    size: Annotated[int | None, Option(
        "Side of crops and windows in pixels, short side of test images.", PIXELS,
        "512 for an encoder of images of 224, in proportion for others; not more than 512, nor than the images have",
    )] = None,
    out: Annotated[Path | None, Option("Folder for the predicted masks, as indexed PNGs.", result=False)] = None,
    seed: Seed = 0, workers: Workers = 0, exif: Exif = "turn",
    precision: Precision | None = None, log: Log = to_stderr, progress: Progress = no_bar,
) -> SegmentResult:  # fmt: skip
    """A linear head on frozen patch tokens that tells the class of each pixel: mIoU, as DINOv2 measures ADE20K.

    data: the folder, see `masks`. size: of crops, windows and test images' short sides; in whole patches below 512, and
    not more than half of the images have. out: the masks have the data's own numbers. precision: the encoder's; the
    fastest on its device unless given. The encoder is left in eval mode. The memory for an image's logits is K x h x w
    numbers at the tested size.

    Raises InputError for data that cannot be used (see `masks`), one class only, and an encoder without patches."""
    import numpy as np

    from simdino.data.annotated import tell_turned
    from simdino.evaluate.segmentation.crops import CropBatches, WholeImages, crop_stream, usual_size
    from simdino.evaluate.segmentation.head import Segmenter, train_head
    from simdino.evaluate.segmentation.masks import check_classes, look_through, open_segmentation
    from simdino.evaluate.segmentation.sliding import score, stride_of
    from simdino.features.extract import check_size, patch_of

    patch = patch_of(encoder)
    check_size(encoder, size, images=batch)
    both = open_segmentation(data, exif=exif, values=encoder.preprocess.values)
    train, validation = (look_through(pairs, progress) for pairs in both)
    check_classes(train, validation)
    check_place(out, data)
    size = size or usual_size(encoder.preprocess.crop, train.short_side, patch)
    steps = steps or min(MOST, max(FEWEST, round(EPOCHS * len(train.pairs) / batch)))
    classes = 1 + max(*train.classes, *validation.classes)
    model = Segmenter(encoder, classes=classes, layers=layers, size=size, seed=seed, precision=precision)
    broken = train.broken | validation.broken
    crops = CropBatches(train.pairs, encoder.preprocess, size=size, batch=batch, steps=steps, seed=seed)
    stream = progress(crop_stream(crops, broken, workers=workers), f"training on {train.pairs.name}", steps)
    loss = train_head(model, stream, steps=steps)
    tested = WholeImages(validation.pairs, encoder.in_chans, size=size)
    found, count = score(model, tested, broken, out=out, workers=workers, progress=progress)
    turned = train.turned + validation.turned
    tell_turned(turned, of=len(train.pairs) + count, exif=exif, log=log)
    iou = [None if np.isnan(value) else float(value) for value in found.iou()]
    return SegmentResult(
        miou=float(np.nanmean(found.iou())), macc=float(np.nanmean(found.accuracies())), aacc=found.accuracy(),
        iou={train.pairs.number(i): value for i, value in enumerate(iou)}, loss=loss, layers=layers, size=size,
        stride=stride_of(size), batch=batch, steps=steps, train_images=len(train.pairs), validation_images=count,
        broken=broken, turned=turned,
    )  # fmt: skip


def check_place(out: Path | None, data: Path) -> None:
    """Raise InputError where predictions would lie over the data, or cannot be written."""
    if out is None:
        return
    if out.resolve().is_relative_to(data.expanduser().resolve()):
        raise InputError(f"--out {out} is in the folder of the data, whose masks must stay: give another")
    check_folder(out, option="--out")
