"""How good found objects are: CorLoc, IoU with masks, and COCO's average precision by the official evaluator."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from simdino.evaluate.discovery.objects import Boxes, Truth
from simdino.extras import optional

Masks = NDArray[np.bool_]  # [n, H, W]
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
SCORE = 1.0  # of every detection: neither MaskCut nor TokenCut tells how sure it is


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
