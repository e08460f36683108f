"""Objects found without labels: MaskCut's masks or TokenCut's boxes, written in COCO's form, and scored where something
is known of the objects."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from simdino.contracts import InputError
from simdino.data.annotated import Exif, turned_line
from simdino.data.decode import BrokenImage
from simdino.evaluate.discovery.maskcut import maskcut, tokencut
from simdino.evaluate.discovery.metrics import Masks, Tally, annotation, average_precision
from simdino.evaluate.discovery.objects import Boxes, Objects, Truth, boxes_of, open_objects
from simdino.evaluate.segmentation.masks import MAX_BROKEN
from simdino.extras import optional
from simdino.features.dense import check_size
from simdino.features.extract import Progress, unwatched
from simdino.files import check_file, write_aside
from simdino.models.encoder import Encoder
from simdino.models.weights import load_encoder, to_stderr
from simdino.precision import present_device
from simdino.runs.evaluations import keep_scores

Method = Literal["maskcut", "tokencut"]
TAU: dict[Method, float] = {"maskcut": 0.15, "tokencut": 0.2}
COUNT = 3


@dataclass(frozen=True, kw_only=True)
class DiscoverResult:
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

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def discover(
    encoder: Encoder, data: str | Path, *,
    annotations: str | Path | None = None, method: Method = "maskcut", count: int = COUNT, tau: float | None = None,
    size: int | None = None, crf: bool = False, limit: int | None = None, out: str | Path | None = None,
    exif: Exif = "turn", progress: Progress = unwatched,
) -> DiscoverResult:  # fmt: skip
    """Find objects in every image, one at a time.

    data, annotations: see `discovery.objects`. method: "maskcut", up to `count` masks at `size` pixels a side, with
    `crf` fitted to edges; or "tokencut", a box at the image's own size. tau: the cosine above which patches are linked,
    .15 and .2 unless given. See `discovery.maskcut`. limit: no more than the first so many images. out: where to write
    what is found, JSON of COCO's form with masks run-length encoded. exif: what masks and boxes were drawn on, see
    `data.annotated`.

    Scores: CorLoc where boxes are known (of masks, the boxes around them); IoU where masks are; average precision for
    COCO's form, where every object found has the score 1, so that among images order decides between equals, and in an
    image the surest come first.

    Raises InputError for data that cannot be used, more than a tenth of it broken, an encoder without readable
    attention, and where there is nothing to compare with and nowhere to write to."""
    tau = TAU[method] if tau is None else tau
    encoder.last_attention()  # refuses at once what has none
    objects = open_objects(data, annotations, exif=exif, bits=encoder.preprocess.bits)
    chosen = range(min(len(objects), limit or len(objects)))
    tally, broken = Tally(), dict[str, str]()
    looked_at: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    keep = out is not None or objects.coco is not None
    if crf:
        optional("pydensecrf.densecrf")
    if keep:
        optional("pycocotools.mask")
        if out is not None:
            check_file(Path(out), option="--out")
    for i in progress(chosen, f"objects in {objects.name}", len(chosen)):
        try:
            image, truth = objects.read(i, encoder.channels)
        except BrokenImage as error:
            broken[error.name] = error.reason
            check_share(broken, objects, of=len(chosen))
            continue
        check_use(truth, out, data)
        boxes, masks = look(encoder, image, method=method, count=count, tau=tau, size=size, crf=crf)
        tally.add(truth, boxes, masks)
        looked_at.append(
            {"id": objects.ids[i], "file_name": objects.names[i], "width": image.shape[2], "height": image.shape[1]}
        )
        each = masks if keep and masks is not None else [None] * len(boxes)
        first = len(found) + 1
        found += [annotation(first + j, objects.ids[i], *one) for j, one in enumerate(zip(boxes, each, strict=True))]
    if out is not None:
        write_coco(Path(out), looked_at, found)
    return DiscoverResult(
        method=method, images=len(looked_at), found=len(found), **tally.scores(),
        **precisions(objects, [one["id"] for one in looked_at], found), broken=broken,
        turned=objects.turned,
    )  # fmt: skip


def check_use(truth: Truth, out: str | Path | None, data: str | Path) -> None:
    """Raise InputError where what is found would be neither compared nor written."""
    if truth.boxes is None and out is None:
        raise InputError(
            f"discover: nothing is known of the objects in '{data}' and there is no place for what is found: give "
            f"--out FILE, or data with masks/, VOC's Annotations/ or --annotations of COCO's form"
        )


def look(
    encoder: Encoder, image: Tensor, *, method: Method, count: int, tau: float, size: int | None, crf: bool
) -> tuple[Boxes, Masks | None]:
    """The objects of one image, the surest first: boxes, and masks where the method makes them."""
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


def evaluate_discover(
    encoder: str, data: str, *,
    annotations: str | Path | None = None, method: Method = "maskcut", count: int | None = None,
    tau: float | None = None, size: int | None = None, crf: bool = False, limit: int | None = None,
    out: str | Path | None = None, exif: Exif = "turn", device: str = "auto",
    log: Callable[[str], None] = to_stderr, progress: Progress = unwatched,
) -> DiscoverResult:  # fmt: skip
    """`discover` by an encoder's name, kept in evaluations.jsonl where that is a run folder. log: called with a line
    for each image left out and each option without effect."""
    if method == "tokencut":
        for word in [word for word, given in (("masks", count), ("size", size), ("crf", crf)) if given]:
            log(f"--{word} has no effect with --method tokencut, which finds one box at the image's own size")
    model = load_encoder(encoder, log=log).to(present_device(device))
    check_size(model, size if method == "maskcut" else None, pairs=True)
    settings = {"method": method, "tau": TAU[method] if tau is None else tau, "limit": limit}
    settings |= {"exif": exif} if exif != "turn" else {}
    settings |= {"count": count or COUNT, "size": size, "crf": crf} if method == "maskcut" else {}
    result = discover(
        model, data, annotations=annotations, method=method, count=count or COUNT, tau=tau, size=size, crf=crf,
        limit=limit, out=out, exif=exif, progress=progress,
    )  # fmt: skip
    keep_scores(
        encoder, protocol="discover", where=data, name=Path(data).resolve().name, counted={}, settings=settings,
        results=result.as_dict(), said=str(result), log=log,
    )  # fmt: skip
    if method == "maskcut" and result.box_ap is not None and result.mask_ap is None:
        log(f"no average precision of masks: not every annotation in {annotations} has a segmentation")
    if line := turned_line(result.turned, of=result.images, exif=exif):
        log(line)
    for name, reason in result.broken.items():
        log(f"left out {name}: {reason}")
    return result
