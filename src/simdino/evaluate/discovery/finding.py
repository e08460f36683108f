"""The steps of `discover`: the objects of one image, checks, COCO's scores, and the file of what was found."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from simdino.contracts import InputError
from simdino.data.opening import BrokenImage
from simdino.evaluate.discovery import TAU, Method
from simdino.evaluate.discovery.maskcut import maskcut, tokencut
from simdino.evaluate.discovery.metrics import Masks, Tally, annotation, average_precision
from simdino.evaluate.discovery.objects import Boxes, Objects, Truth, boxes_of
from simdino.evaluate.segmentation.masks import MAX_BROKEN
from simdino.extras import optional
from simdino.feedback import Progress
from simdino.files import check_file, write_aside
from simdino.models.encoder import Encoder
from simdino.result import Result

Look = Callable[[Tensor], tuple[Boxes, Masks | None]]
"""An image uint8 [C, H, W] -> the objects in it, the surest first: boxes, and masks where the method makes them."""


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
        check_use(truth, out, objects.name)
        boxes, masks = look(image)
        tally.add(truth, boxes, masks)
        seen.append(
            {"id": objects.ids[i], "file_name": objects.names[i], "width": image.shape[2], "height": image.shape[1]}
        )
        each = masks if keep and masks is not None else [None] * len(boxes)
        first = len(found) + 1
        found += [annotation(first + j, objects.ids[i], *one) for j, one in enumerate(zip(boxes, each, strict=True))]
    if out is not None:
        write_coco(out, seen, found)
    return DiscoverResult(
        method=method, images=len(seen), found=len(found), **tally.scores(),
        **precisions(objects, [one["id"] for one in seen], found), broken=broken, turned=objects.turned,
    )  # fmt: skip


def check_use(truth: Truth, out: Path | None, data: str) -> None:
    """Raise InputError where what is found would be neither compared nor written."""
    if truth.boxes is None and out is None:
        raise InputError(
            f"discover: nothing is known of the objects in '{data}' and there is no place for what is found: give "
            f"--out FILE, or data with masks/, VOC's Annotations/ or --annotations of COCO's form"
        )


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


def check_share(broken: dict[str, str], objects: Objects, *, of: int) -> None:
    """Raise InputError where more than a tenth of the images is broken."""
    if len(broken) > max(1, MAX_BROKEN * of) or len(broken) == of:
        name, why = next(iter(broken.items()))
        raise InputError(
            f"data: {len(broken)} of the {of} images of '{objects.name}' or their annotations cannot be read, more "
            f"than {MAX_BROKEN:.0%} (first {name}: {why})"
        )


def write_coco(out: Path, images: list[dict[str, Any]], found: list[dict[str, Any]]) -> None:
    """A data set of COCO's form with one category."""
    content = {"images": images, "annotations": found, "categories": [{"id": 1, "name": "object"}]}
    write_aside(out, json.dumps(content).encode(), option="--out")
