"""Files of COCO's form as tools write them: a line names the annotation, or the file is read right."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simdino.data.annotated import read_coco, uncompressed
from simdino.errors import InputError
from simdino.extras import optional

pytestmark = pytest.mark.extra("pycocotools")
SQUARE = [[8, 8, 24, 8, 24, 24, 8, 24]]
RIGHT = {
    "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in (0, 7)],
    "annotations": [
        {"id": 5, "image_id": i, "category_id": 1, "iscrowd": 0, "bbox": [8, 8, 16, 16], "area": 256.0,
         "segmentation": SQUARE}
        for i in (0, 7)
    ],
    "categories": [{"id": 1, "name": "o"}],
}  # fmt: skip
Change = Callable[[dict[str, Any]], object]


def read(tmp_path: Path, change: Change) -> Any:
    content = copy.deepcopy(RIGHT)
    change(content)
    (tmp_path / "c.json").write_text(json.dumps(content))
    return read_coco(tmp_path / "c.json")


def one(**values: Any) -> Change:
    """A change of the second annotation."""
    return lambda content: content["annotations"][1].update(values)


def image(**values: Any) -> Change:
    return lambda content: content["images"][1].update(values)


WRONG: dict[str, tuple[Change, str]] = {
    "image_id as text": (one(image_id="7"), "annotation 1 (id 5): image_id '7' is the id of no image"),
    "image_id of none": (one(image_id=8), "image_id 8"),
    "image_id a truth value": (one(image_id=False), "image_id False"),
    "image ids as names": (image(id="img-7"), "image 1 ('7.png'): id 'img-7' is no whole number"),
    "the same id twice": (image(id=0), "id 0 is that of '0.png' too"),
    "no file_name": (lambda c: c["images"][1].pop("file_name"), "it lacks file_name"),
    "file_name a number": (image(file_name=7), "file_name 7 is no name"),
    "width as text": (image(width="64"), "width '64'"),
    "no height": (image(height=0), "height 0"),
    "empty box": (one(bbox=[]), "bbox [] is not four numbers"),
    "null box": (one(bbox=None), "bbox None"),
    "box as text": (one(bbox=["1", "1", "2", "2"]), "bbox ['1', '1', '2', '2']"),
    "NaN box": (one(bbox=[float("nan")] * 4), "bbox [nan"),
    "endless box": (one(bbox=[0, 0, float("inf"), 1]), "bbox [0, 0, inf"),
    "corners": (one(bbox=[40, 40, 60, 60]), "outside of its image of 64 x 48"),
    "negative side": (one(bbox=[40, 40, -10, 10]), "negative side"),
    "left of the image": (one(bbox=[-9, 0, 10, 10]), "outside"),
    "no area": (lambda c: c["annotations"][1].pop("area"), "it lacks area"),
    "area as text": (one(area="256"), "area '256'"),
    "iscrowd as text": (one(iscrowd="0"), "iscrowd '0' is neither 0 nor 1"),
    "short polygon": (one(segmentation=[[1, 2]]), "the polygon [1, 2]"),
    "odd polygon": (one(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "the polygon [1, 2, 3"),
    "flat polygon": (one(segmentation=[8, 8, 24, 8, 24, 24]), "the polygon 8"),
    "NaN in a polygon": (one(segmentation=[[1, 2, 3, 4, 5, float("nan")]]), "the polygon"),
    "text": (one(segmentation="8 8 24 8"), "neither a list of polygons nor run lengths"),
    "runs of another size": (one(segmentation={"size": [64, 48], "counts": [3072]}), "has [48, 64]"),
    "runs too short": (one(segmentation={"size": [48, 64], "counts": [10, 20]}), "30 pixels in all, its image"),
    "negative runs": (one(segmentation={"size": [48, 64], "counts": [-1, 3073]}), "which are no run lengths"),
    "compressed of another mask": (one(segmentation={"size": [48, 64], "counts": "PPYo0"}), "pixels in all"),
    "no compressed runs": (one(segmentation={"size": [48, 64], "counts": "€"}), "which are no run lengths"),
    "runs without counts": (one(segmentation={"size": [48, 64]}), "counts None"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    change, said = WRONG[name]
    with pytest.raises(InputError) as caught:
        read(tmp_path, change)
    line = str(caught.value)
    assert said in line and line.startswith(f"--annotations {tmp_path / 'c.json'}: ") and "\n" not in line


def test_it_is_said_how_many_more_there_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"annotation 0 .*\(1 more like this\)"):
        read(tmp_path, lambda content: [row.update(bbox=None) for row in content["annotations"]])


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"images": []}', '{"images": {}, "annotations": []}', "[" * 100000]
)
def test_what_is_no_such_file_is_said(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(InputError, match="no file of COCO's form"):
        read_coco(tmp_path / "c.json")


HARMLESS: dict[str, Change] = {
    "no iscrowd": lambda content: [row.pop("iscrowd") for row in content["annotations"]],
    "no categories": lambda content: content.update(categories=[]),
    "no list of categories": lambda content: content.pop("categories"),
    "a category that is not listed": one(category_id=9),
    "ids that are names": one(id="a"),
    "a box without height, as COCO's own": one(bbox=[8, 8, 16, 0]),
    "a box rounded beyond the image": one(bbox=[60, 40, 4.5, 8.5]),
    "no segmentation": lambda content: [row.pop("segmentation") for row in content["annotations"]],
    "an empty segmentation": one(segmentation=[]),
    "runs": one(segmentation={"size": [48, 64], "counts": [0, 3072]}),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_does_no_harm_is_read(name: str, tmp_path: Path) -> None:
    coco = read(tmp_path, HARMLESS[name])
    assert sorted(coco.anns) == [1, 2] and sorted(coco.imgs) == [0, 7]
    assert all(row["iscrowd"] == 0 and row["category_id"] == 1 for row in coco.anns.values())


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(RIGHT), encoding="utf-8-sig")
    assert len(read_coco(tmp_path / "c.json").anns) == 2


@pytest.mark.parametrize("seed", range(5))
def test_compressed_runs_are_those_of_the_mask(seed: int) -> None:
    mask = np.random.default_rng(seed).random((37, 500)) < 0.1 + 0.2 * seed
    mask[:, 50:450] = seed % 2
    ends = np.flatnonzero(np.diff(np.r_[False, mask.T.ravel()]))
    text = optional("pycocotools.mask").encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    assert uncompressed(str(text, "ascii")) == np.diff(np.r_[0, ends, mask.size]).tolist()
