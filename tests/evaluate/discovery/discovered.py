"""Sets of images with planted objects, in the layouts that `evaluate discover` reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from planted import PATCH, enlarged, painted

from simdino.evaluate.discovery.objects import boxes_of

SIDE = 64


def regions_of(i: int, *, height: int = SIDE, width: int = SIDE, objects: int = 2) -> NDArray[np.int64]:
    """Which object, if any, each pixel of image i shows: rectangles on the grid of patches, placed by i."""
    regions = np.zeros((height // PATCH, width // PATCH), np.int64)
    regions[2 + i % 3 : 8 + i % 3, 2:8] = 1
    if objects > 1:
        regions[9 + i % 2 : 14, 10 : 14 - i % 2] = 2
    return enlarged(regions)


def paint(root: Path, *, count: int, first: int = 0, objects: int = 2, **sides: int) -> Path:
    """Images and masks with the numbers of the objects."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        regions = regions_of(i, objects=objects, **sides)
        image = painted(regions[::PATCH, ::PATCH])
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / "images" / f"{i:03}.png")
        Image.fromarray(regions.astype(np.uint8)).save(root / "masks" / f"{i:03}.png")
    return root


def objects_of(mask: Path) -> NDArray[np.bool_]:
    numbers = np.array(Image.open(mask))
    return numbers == np.unique(numbers[numbers > 0])[:, None, None]


def coco_file(data: Path, path: Path, *, categories: tuple[int, int] = (1, 2)) -> Path:
    """The masks of a painted set as polygons in COCO's form; images are numbered from 10 on."""
    images, annotations = [], []
    for number, mask in enumerate(sorted((data / "masks").iterdir()), start=10):
        masks = objects_of(mask)
        height, width = masks.shape[1:]
        images.append({"id": number, "file_name": mask.name, "width": width, "height": height})
        for category, (left, top, right, bottom) in zip(categories, boxes_of(masks).tolist(), strict=False):
            annotations.append({
                "id": len(annotations), "image_id": number, "category_id": category, "iscrowd": 0,
                "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top),
                "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
            })  # fmt: skip
    known = [{"id": category, "name": f"kind {category}"} for category in sorted(categories)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": known}))
    return path


def voc_files(data: Path, root: Path, *, listed: list[int] | None, shift: int = 0) -> Path:
    """The boxes of a painted set in PASCAL VOC's form, moved right and down by `shift` pixels modulo the side."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    for mask in sorted((data / "masks").iterdir()):
        shutil.copy(data / "images" / mask.name, root / "JPEGImages" / f"{mask.stem}.jpg")
        moved = np.roll(objects_of(mask), (shift, shift), (1, 2))
        parts = [
            f"<object><bndbox><xmin>{left + 1:.0f}</xmin><ymin>{top + 1:.0f}</ymin><xmax>{right:.0f}</xmax>"
            f"<ymax>{bottom:.0f}</ymax></bndbox><difficult>1</difficult></object>"
            for left, top, right, bottom in boxes_of(moved).tolist()
        ]
        (root / "Annotations" / f"{mask.stem}.xml").write_text(f"<annotation>{''.join(parts)}</annotation>")
    if listed is not None:
        names = "\n".join(f"{i:03}" for i in listed)
        (root / "ImageSets" / "Main" / "trainval.txt").write_text(names + "\n")
    return root
