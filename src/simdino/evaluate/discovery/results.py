"""What object discovery finds, and the constants that its signature and its mathematics share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simdino.result import Result

Method = Literal["maskcut", "tokencut"]

TAU: dict[Method, float] = {"maskcut": 0.15, "tokencut": 0.2}

COUNT = 3


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
