"""Images and the objects in them, read one image at a time. The layouts:

DIR                              any images, nothing known of their objects
DIR/images, DIR/masks            masks/a/b.png of images/a/b.jpg: one number a pixel, 0 is background, each other
                                 number an object, 255 ignored; in a mask of 0 and 255 alone, 255 is the object
DIR/JPEGImages, DIR/Annotations  PASCAL VOC: boxes in XML, of the images in ImageSets/Main/trainval.txt, or of all
DIR and a JSON file              COCO: boxes and masks of the images in DIR
"""

from __future__ import annotations

import contextlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from simdino.contracts import InputError
from simdino.data.base import Source
from simdino.data.decode import BrokenImage, decode, reason
from simdino.data.pictures import open_pictures
from simdino.data.segmentation import IGNORED, pairs_in
from simdino.extras import optional

COCO_KEYS = {
    "images": {"id", "file_name", "width", "height"},
    "annotations": {"id", "image_id", "category_id", "bbox", "area", "iscrowd"},
    "categories": {"id"},
}
CORNERS = ("xmin", "ymin", "xmax", "ymax")
Boxes = NDArray[np.float64]
"""[n, 4]: left, top, right, bottom in pixels, right and bottom exclusive."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is known of an image's objects."""

    boxes: Boxes | None = None  # None where nothing is known, not where there is nothing
    masks: NDArray[np.bool_] | None = None  # [n, H, W]
    ignored: NDArray[np.bool_] | None = None  # [H, W], pixels that count for nothing; beside masks


class Objects(ABC):
    """Images by position, and what is known of the objects in them.

    Attributes:
        name: of the data.
        names: of the images, paths below the folder of images.
        ids: their numbers in files of COCO's form.
        coco: pycocotools' index of all annotations, of COCO's layout alone.
    """

    coco: Any = None

    def __init__(self, name: str, names: Sequence[str], ids: Sequence[int] | None = None) -> None:
        self.name, self.names = name, names
        self.ids = ids or range(1, len(names) + 1)

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def read(self, i: int, channels: int) -> tuple[Tensor, Truth]:
        """Image uint8 [C, H, W] and what is known. Raises BrokenImage, and InputError for annotations that are none."""


class BareObjects(Objects):
    """Images of which nothing is known."""

    def __init__(self, source: Source) -> None:
        super().__init__(source.name, source.names)
        self.source = source

    def read(self, i: int, channels: int) -> tuple[Tensor, Truth]:
        """See above."""
        return self.source.read(i, channels), Truth()


class MaskedObjects(Objects):
    """Objects as numbers in masks."""

    def __init__(self, root: Path) -> None:
        self.pairs = pairs_in(root, ("images", "masks"), reduce_zero=False)
        super().__init__(self.pairs.name, [name.removeprefix("images/") for name in self.pairs.images])

    def read(self, i: int, channels: int) -> tuple[Tensor, Truth]:
        """See above."""
        image, mask = self.pairs.read(i, channels)
        numbers = np.setdiff1d(mask, (0, IGNORED))
        ignored = mask == IGNORED
        if not len(numbers) and ignored.any():  # of 0 and 255 alone
            numbers, ignored = np.array([IGNORED]), np.zeros_like(ignored)
        masks = mask == numbers[:, None, None]
        return image, Truth(boxes=boxes_of(masks), masks=masks, ignored=ignored)


class VocObjects(Objects):
    """Boxes in PASCAL VOC's XML, those marked difficult or truncated included, as LOST and TokenCut count."""

    def __init__(self, root: Path) -> None:
        self.root = root
        listed = root / "ImageSets" / "Main" / "trainval.txt"
        lines = listed.read_text().splitlines() if listed.is_file() else ()
        stems = [line.split()[0] for line in lines if line.strip()]
        stems = stems or sorted(path.stem for path in (root / "Annotations").glob("*.xml"))
        if not any((root / "JPEGImages" / f"{stem}.jpg").is_file() for stem in stems):
            raise InputError(f"data: none of the {len(stems)} images that '{root}' names is in its JPEGImages/")
        super().__init__(root.resolve().name, [f"{stem}.jpg" for stem in stems])

    def read(self, i: int, channels: int) -> tuple[Tensor, Truth]:
        """See above."""
        name = self.names[i]
        image = decode(file_bytes(self.root / "JPEGImages", name), name, channels=channels)
        return image, Truth(boxes=self._boxes(f"{Path(name).stem}.xml", (image.shape[1], image.shape[2])))

    def _boxes(self, name: str, sides: tuple[int, int]) -> Boxes:
        try:
            tree = ElementTree.fromstring(file_bytes(self.root / "Annotations", name))
            found = [[float(box.findtext(corner, "")) for corner in CORNERS] for box in tree.iterfind("object/bndbox")]
        except (ElementTree.ParseError, ValueError) as error:
            raise BrokenImage(name, f"no annotation of VOC: {reason(error)}") from error
        boxes = np.array(found).reshape(-1, 4) - [1, 1, 0, 0]  # pixels are counted from 1, the last one included
        if len(boxes) and (boxes[:, 2].max() > sides[1] or boxes[:, 3].max() > sides[0]):
            raise BrokenImage(name, f"a box beyond its image of {sides[1]} x {sides[0]} pixels")
        return boxes


class CocoObjects(Objects):
    """Boxes and masks in a JSON file of COCO's form. Crowds are no objects, and boxes are rounded, as LOST does."""

    def __init__(self, root: Path, annotations: Path) -> None:
        self.root, self.coco = root, read_coco(annotations)
        images = sorted(self.coco.dataset["images"], key=lambda one: one["id"])
        names = [str(one["file_name"]) for one in images]
        if not any((root / name).is_file() for name in names):
            raise InputError(
                f"data: '{root}' has none of the {len(names)} images of {annotations} (first: "
                f"{next(iter(names), 'none')}); give the folder that their names start from"
            )
        super().__init__(root.resolve().name, names, [int(one["id"]) for one in images])

    def read(self, i: int, channels: int) -> tuple[Tensor, Truth]:
        """See above."""
        name, about = self.names[i], self.coco.imgs[self.ids[i]]
        image = decode(file_bytes(self.root, name), name, channels=channels)
        found, said = (image.shape[2], image.shape[1]), (about["width"], about["height"])
        if found != said:
            raise BrokenImage(name, f"{found[0]} x {found[1]} pixels upright, but {said[0]} x {said[1]} annotated")
        known = self.coco.loadAnns(self.coco.getAnnIds(imgIds=self.ids[i], iscrowd=False))
        boxes = np.array([one["bbox"] for one in known]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return image, Truth(boxes=boxes.round())


def open_objects(data: str | Path, annotations: str | Path | None = None) -> Objects:
    """The images of a folder and what is known of their objects. annotations: a JSON file of COCO's form.

    Raises InputError where there are no images, for a file that is none of COCO's, and where annotations name none of
    the images."""
    root = Path(data).expanduser()
    if annotations is not None:
        return CocoObjects(root, Path(annotations).expanduser())
    if (root / "JPEGImages").is_dir() and (root / "Annotations").is_dir():
        return VocObjects(root)
    if (root / "images").is_dir() and (root / "masks").is_dir():
        return MaskedObjects(root)
    return BareObjects(open_pictures(str(data)))


def read_coco(path: Path) -> Any:
    """pycocotools' COCO of a file, without its talk. Raises InputError for a file of another form."""
    tools = optional("pycocotools.coco")
    try:
        dataset = json.loads(path.read_text(encoding="utf-8"))
        complete = all(one.keys() >= keys for part, keys in COCO_KEYS.items() for one in dataset[part])
    except OSError as error:
        raise InputError(f"--annotations {path}: {reason(error)}") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        dataset, complete = {}, False
    if not complete:
        parts = ", ".join(f"{part} ({', '.join(sorted(keys))})" for part, keys in COCO_KEYS.items())
        raise InputError(f"--annotations {path} is no file of COCO's form: JSON with {parts}")
    for number, one in enumerate(dataset["annotations"], start=1):
        one["id"] = number  # the evaluator takes a match with number 0 for none
    return indexed(tools, dataset)


def indexed(tools: Any, dataset: dict[str, Any]) -> Any:
    """pycocotools' COCO of a data set, without its talk."""
    coco = tools.COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def file_bytes(root: Path, name: str) -> bytes:
    """A file below a folder. Raises BrokenImage."""
    try:
        return (root / name).read_bytes()
    except OSError as error:
        raise BrokenImage(name, reason(error)) from error


def boxes_of(masks: NDArray[np.bool_]) -> Boxes:
    """The boxes around masks [n, H, W], none of them empty."""
    boxes = np.zeros((len(masks), 4))
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes
