"""The steps of `discover`: objects are found in each image, scored by CorLoc, by IoU with masks and by COCO's official
evaluator, and written to a file."""

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from simdino.contracts import InputError
from simdino.data.opening import BrokenImage
from simdino.evaluate.discovery import TAU, Method
from simdino.evaluate.discovery.maskcut import maskcut, tokencut
from simdino.evaluate.discovery.objects import Boxes, Objects, Truth, boxes_of
from simdino.evaluate.segmentation.masks import MAX_BROKEN
from simdino.extras import optional
from simdino.feedback import Progress
from simdino.files import check_file, write_aside
from simdino.models.encoder import Encoder
from simdino.result import Result

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
SCORE = 1.0  # of every detection: neither MaskCut nor TokenCut tells how sure it is

Masks = NDArray[np.bool_]  # [n, H, W]
Look = Callable[[Tensor], tuple[Boxes, Masks | None]]
"""An image [C, H, W] -> the objects in it, the surest first: boxes, and masks where the method makes them."""


@dataclass(frozen=True, kw_only=True)
class DiscoverResult(Result):
    """What was found and how good it is: scores in percent, None where nothing is known to compare with."""

    method: Method
    images: int  # looked at
    found: int  # objects
    corloc: float | None  # images whose surest box has an IoU of 1/2 or more with some object's
    miou: float | None  # mean over objects of the IoU with the mask that fits best
    surest_iou: float | None  # mean over images of the IoU of the surest mask with all objects together
    box_ap: dict[str, float | None] | None  # COCO's twelve numbers, classes left aside
    mask_ap: dict[str, float | None] | None
    broken: dict[str, str]  # names of the images left out, and why
    turned: int  # images with annotations that EXIF turns

    def __str__(self) -> str:
        named = {"CorLoc": self.corloc, "mIoU": self.miou, "IoU of the surest": self.surest_iou}
        for kind, ap in (("box", self.box_ap), ("mask", self.mask_ap)):
            named |= {f"{kind} {name}": ap[name] for name in ("AP", "AP50", "AR100")} if ap else {}
        scores = [f"{name} {value:.1f} %" for name, value in named.items() if value is not None]
        return ", ".join([f"{self.method}: {self.found} objects in {self.images} images", *scores])


def find(
    objects: Objects, look: Look, channels: int, *,
    method: Method, limit: int | None, out: Path | None, progress: Progress,
) -> DiscoverResult:  # fmt: skip
    """Look at the images one at a time; score what is found, and write it to `out`. method: for the result.

    Raises InputError where more than a tenth is broken, and where nothing is known and nothing is written."""
    chosen = range(min(len(objects), limit or len(objects)))
    tally, broken = Tally(), dict[str, str]()
    seen: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    keep = out is not None or objects.coco is not None
    if keep:
        optional("pycocotools.mask")
    if out is not None:
        check_file(out, option="--out")
    for i in progress(chosen, f"objects in {objects.name}", len(chosen)):
        try:
            image, truth = objects.read(i, channels)
        except BrokenImage as error:
            broken[error.name] = error.reason
            check_share(broken, objects, of=len(chosen))
            continue
        if truth.boxes is None and out is None:
            raise InputError(
                f"discover: nothing is known of the objects in '{objects.name}' and there is no place for what is "
                f"found: give --out FILE, or data with masks/, VOC's Annotations/ or --annotations of COCO's form"
            )
        boxes, masks = look(image)
        tally.add(truth, boxes, masks)
        width, height = image.shape[2], image.shape[1]
        seen.append({"id": objects.ids[i], "file_name": objects.names[i], "width": width, "height": height})
        each = masks if keep and masks is not None else [None] * len(boxes)
        first = len(found) + 1
        found += [annotation(first + j, objects.ids[i], *one) for j, one in enumerate(zip(boxes, each, strict=True))]
    if out is not None:
        content = {"images": seen, "annotations": found, "categories": [{"id": 1, "name": "object"}]}  # of COCO's form
        write_aside(out, json.dumps(content).encode(), option="--out")
    return DiscoverResult(
        method=method, images=len(seen), found=len(found), **tally.scores(),
        **precisions(objects, [one["id"] for one in seen], found), broken=broken, turned=objects.turned,
    )  # fmt: skip


def look(
    encoder: Encoder, image: Tensor, *, method: Method, count: int, tau: float | None, size: int | None, crf: bool
) -> tuple[Boxes, Masks | None]:
    """What a method finds in one image. tau: the method's own unless given."""
    tau = TAU[method] if tau is None else tau
    if method == "tokencut":
        return np.array([tokencut(encoder, image, tau=tau)], np.float64), None
    masks = maskcut(encoder, image, count=count, tau=tau, size=size, crf=crf).numpy()
    masks = masks[masks.any((1, 2))]  # a region of patches may fall between the pixels of a small image
    return boxes_of(masks), masks


def precisions(objects: Objects, ids: Sequence[int], found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The fields of a result that COCO's evaluator fills."""
    if objects.coco is None:
        return {"box_ap": None, "mask_ap": None}
    outlined = all(one.get("segmentation") for one in objects.coco.dataset["annotations"])
    with_masks = outlined and all("segmentation" in one for one in found)
    return {
        "box_ap": average_precision(objects.coco, ids, found, "bbox"),
        "mask_ap": average_precision(objects.coco, ids, found, "segm") if with_masks else None,
    }


def box_overlaps(box: Sequence[float], boxes: Boxes) -> NDArray[np.float64]:
    """IoU of one box with each of boxes [n, 4]."""
    corner, other = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    both = (other - corner).clip(0).prod(1)
    area = np.prod(np.subtract(box[2:], box[:2]))
    return both / (area + (boxes[:, 2:] - boxes[:, :2]).prod(1) - both)


def mask_overlaps(masks: Masks, others: Masks) -> NDArray[np.float64]:
    """IoU of masks [n, H, W] with each of others [m, H, W]: [n, m]; 0 of two empty ones."""
    pixels = masks.shape[1] * masks.shape[2]
    a, b = (x.reshape(len(x), pixels).astype(np.float32) for x in (masks, others))
    both = (a @ b.T).astype(np.float64)
    either = a.sum(1, dtype=np.float64)[:, None] + b.sum(1, dtype=np.float64) - both
    return both / np.maximum(either, 1)


class Tally:
    """CorLoc and IoU of the images scored so far."""

    def __init__(self) -> None:
        self.located: list[bool] = []  # of images with an object
        self.best: list[float] = []  # of each object, its IoU with the mask that fits it best
        self.surest: list[float] = []  # of each image with an object: IoU of the surest mask with all objects together

    def add(self, truth: Truth, boxes: Boxes, masks: Masks | None) -> None:
        """What was found in an image, the surest first; masks: None where boxes alone were looked for."""
        if truth.boxes is not None and len(truth.boxes):
            self.located.append(bool(len(boxes)) and bool((box_overlaps(boxes[0], truth.boxes) >= 0.5).any()))
        if truth.masks is None or masks is None or not len(truth.masks):
            return
        found = masks if truth.ignored is None else masks & ~truth.ignored
        self.best += mask_overlaps(truth.masks, found).max(1, initial=0).tolist()
        together = np.logical_or.reduce(truth.masks)[None]
        self.surest.append(float(mask_overlaps(together, found[:1]).max(initial=0)))

    def scores(self) -> dict[str, float | None]:
        """In percent; None of what nothing is known about."""
        each = {"corloc": self.located, "miou": self.best, "surest_iou": self.surest}
        return {name: 100 * float(np.mean(values)) if values else None for name, values in each.items()}


def average_precision(
    coco: Any, images: Sequence[int], detections: Sequence[dict[str, Any]], kind: Literal["bbox", "segm"]
) -> dict[str, float | None]:
    """COCO's twelve numbers in percent, classes left aside; None of a size of which there are no objects, 0 everywhere
    where nothing was found.

    coco: pycocotools' index of the truth. images: the numbers of those that were looked at. detections: annotations of
    COCO's form. kind: whether boxes are compared or masks; areas are of the same."""
    if not detections:
        return dict.fromkeys(NAMES, 0.0)
    category = coco.dataset["categories"][0]["id"]
    dropped = "segmentation" if kind == "bbox" else "bbox"
    given = [{k: v for k, v in one.items() if k != dropped} | {"category_id": category} for one in detections]
    with contextlib.redirect_stdout(io.StringIO()):
        judge = optional("pycocotools.cocoeval").COCOeval(coco, coco.loadRes(given), kind)
        judge.params.imgIds, judge.params.useCats = list(images), 0
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {name: None if x < 0 else 100 * float(x) for name, x in zip(NAMES, judge.stats, strict=True)}


def annotation(number: int, image: int, box: Sequence[float], mask: NDArray[np.bool_] | None) -> dict[str, Any]:
    """A found object in COCO's form: its mask run-length encoded, its box as left, top, width, height."""
    left, top, right, bottom = map(float, box)
    found = {
        "id": number, "image_id": image, "category_id": 1, "iscrowd": 0, "score": SCORE,
        "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top),
    }  # fmt: skip
    if mask is None:
        return found
    runs = optional("pycocotools.mask").encode(np.asfortranarray(mask.astype(np.uint8)))
    text = {"size": list(map(int, runs["size"])), "counts": str(runs["counts"], "ascii")}
    return found | {"segmentation": text, "area": int(mask.sum())}


def check_share(broken: dict[str, str], objects: Objects, *, of: int) -> None:
    """Raise InputError where more than a tenth of the images is broken."""
    if len(broken) > max(1, MAX_BROKEN * of) or len(broken) == of:
        name, why = next(iter(broken.items()))
        raise InputError(
            f"data: {len(broken)} of the {of} images of '{objects.name}' or their annotations cannot be read, more "
            f"than {MAX_BROKEN:.0%} (first {name}: {why})"
        )
