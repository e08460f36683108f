"""Images and the objects in them, read one image at a time. The layouts:

DIR                              any images, nothing known of their objects
DIR/images, DIR/masks            masks/a/b.png of images/a/b.jpg: one number a pixel, 0 is background, each other
                                 number an object, 255 ignored; in a mask of 0 and 255 alone, 255 is the object
DIR/JPEGImages, DIR/Annotations  PASCAL VOC: boxes in XML, of the images in ImageSets/Main/trainval.txt, or of all
DIR and a JSON file              COCO: boxes and masks of the images in DIR
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from simdino.contracts import InputError
from simdino.data.annotated import Exif, by_stem, file_bytes, read_coco, read_picture, scale_of
from simdino.data.base import Source
from simdino.data.decode import orientation
from simdino.data.opening import BrokenImage, is_image_name, reason
from simdino.data.sources import open_dataset
from simdino.evaluate.segmentation.masks import IGNORED, pairs_in
from simdino.settings import Values

CORNERS = ("xmin", "ymin", "xmax", "ymax")
Boxes = NDArray[np.float64]
"""[n, 4]: left, top, right, bottom in pixels, right and bottom exclusive."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is known of an image's objects."""

    boxes: Boxes | None = None  # None where nothing is known, not where there is nothing
    masks: NDArray[np.bool_] | None = None  # [n, H, W]
    ignored: NDArray[np.bool_] | None = None  # [H, W], pixels that count for nothing; beside masks


class Objects:
    """Images by position, of which nothing is known unless a subclass reads it.

    Attributes:
        name: of the data.
        names: of the images, paths below the folder of images.
        ids: their numbers in files of COCO's form.
        coco: pycocotools' index of all annotations, of COCO's layout alone.
        turned: of the images with annotations read so far, those that EXIF turns.
    """

    coco: Any = None

    def __init__(self, name: str, names: Sequence[str], ids: Sequence[int] | None = None) -> None:
        self.name, self.names, self.turned = name, names, 0
        self.ids = ids or range(1, len(names) + 1)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int, channels: int) -> tuple[Tensor, Truth]:
        """Image uint8 [C, H, W] and what is known. Raises BrokenImage, and InputError for annotations that are none."""
        raise NotImplementedError


class BareObjects(Objects):
    """Images of which nothing is known."""

    def __init__(self, source: Source, values: Values | None) -> None:
        super().__init__(source.name, source.names)
        self.source = source.with_values(values)

    def read(self, i: int, channels: int) -> tuple[Tensor, Truth]:
        """See above."""
        return self.source.read(i, channels), Truth()


class MaskedObjects(Objects):
    """Objects as numbers in masks."""

    def __init__(self, root: Path, exif: Exif, values: Values | None) -> None:
        self.pairs = pairs_in(root, ("images", "masks"), reduce_zero=False, exif=exif, values=values)
        super().__init__(self.pairs.name, [name.removeprefix("images/") for name in self.pairs.images])

    def read(self, i: int, channels: int) -> tuple[Tensor, Truth]:
        """See above."""
        image, mask = self.pairs.read(i, channels)
        self.turned += self.pairs.turned(i)
        numbers = np.setdiff1d(mask, (0, IGNORED))
        ignored = mask == IGNORED
        if not len(numbers) and ignored.any():  # of 0 and 255 alone
            numbers, ignored = np.array([IGNORED]), np.zeros_like(ignored)
        masks = mask == numbers[:, None, None]
        return image, Truth(boxes=boxes_of(masks), masks=masks, ignored=ignored)


class BoxedObjects(Objects):
    """Images in a folder, and boxes that were drawn on them: upright or as stored, as `exif` says."""

    def __init__(
        self, root: Path, folder: Path, names: Sequence[str], ids: Sequence[int] | None = None, *,
        exif: Exif, values: Values | None,
    ) -> None:  # fmt: skip
        super().__init__(root.resolve().name, names, ids)
        self.exif: Exif = exif
        self.folder, self.scale = folder, scale_of(folder, names, values)

    def read(self, i: int, channels: int) -> tuple[Tensor, Truth]:
        """See above."""
        name = self.names[i]
        data = file_bytes(self.folder, name)
        self.turned += orientation(data, name) != 1
        image = read_picture(data, name, channels=channels, exif=self.exif, scale=self.scale)
        return image, Truth(boxes=self.boxes(i, image.shape[2], image.shape[1]))

    def boxes(self, i: int, width: int, height: int) -> Boxes:
        """The boxes of image i, which has so many pixels. Raises BrokenImage where they cannot be of it."""
        raise NotImplementedError


class VocObjects(BoxedObjects):
    """Boxes in PASCAL VOC's XML, those marked difficult or truncated included, as LOST and TokenCut count."""

    def __init__(self, root: Path, exif: Exif, values: Values | None) -> None:
        self.root, folder = root, root / "JPEGImages"
        listed = root / "ImageSets" / "Main" / "trainval.txt"
        lines = listed.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if listed.is_file() else ()
        stems = [line.split()[0] for line in lines if line.strip()]
        stems = stems or sorted(path.stem for path in (root / "Annotations").glob("*.xml"))
        there = sorted(path.name for path in folder.iterdir() if is_image_name(path.name))
        known = by_stem(there, folder)
        if known.keys().isdisjoint(stems):
            raise InputError(f"data: none of the {len(stems)} images that '{root}' names is in its JPEGImages/")
        super().__init__(root, folder, [known.get(stem, f"{stem}.jpg") for stem in stems], exif=exif, values=values)

    def boxes(self, i: int, width: int, height: int) -> Boxes:
        """See above."""
        name = f"{Path(self.names[i]).stem}.xml"
        try:
            tree = ElementTree.fromstring(file_bytes(self.root / "Annotations", name))
            found = [[float(box.findtext(corner, "")) for corner in CORNERS] for box in tree.iterfind("object/bndbox")]
        except (ElementTree.ParseError, ValueError) as error:
            raise BrokenImage(name, f"no annotation of VOC: {reason(error)}") from error
        said = [tree.findtext(f"size/{side}", "0") for side in ("width", "height")]
        if said not in (["0", "0"], [str(width), str(height)]):
            raise BrokenImage(name, f"{width} x {height} pixels, but {' x '.join(said)} annotated")
        for box in found:
            left, top, right, bottom = box
            if not (0 <= left <= right <= width and 0 <= top <= bottom <= height):  # refuses NaN too
                raise BrokenImage(name, f"the box {box} lies outside of its image of {width} x {height} pixels")
        boxes = np.array(found).reshape(-1, 4) - [1, 1, 0, 0]  # pixels are counted from 1, the last one included
        return boxes.clip(0)  # some tools count from 0


class CocoObjects(BoxedObjects):
    """Boxes and masks in a JSON file of COCO's form. Crowds are no objects, and boxes are rounded, as LOST does."""

    def __init__(self, root: Path, annotations: Path, exif: Exif, values: Values | None) -> None:
        self.coco = read_coco(annotations)
        images = sorted(self.coco.dataset["images"], key=lambda one: one["id"])
        names = [str(one["file_name"]) for one in images]
        if not any((root / name).is_file() for name in names):
            raise InputError(
                f"data: '{root}' has none of the {len(names)} images of {annotations} (first: "
                f"{next(iter(names), 'none')}); give the folder that their names start from"
            )
        super().__init__(root, root, names, [int(one["id"]) for one in images], exif=exif, values=values)

    def boxes(self, i: int, width: int, height: int) -> Boxes:
        """See above."""
        about = self.coco.imgs[self.ids[i]]
        said = (about["width"], about["height"])
        if (width, height) != said:
            lies = "upright" if self.exif == "turn" else "as stored"
            raise BrokenImage(self.names[i], f"{width} x {height} pixels {lies}, but {said[0]} x {said[1]} annotated")
        known = self.coco.loadAnns(self.coco.getAnnIds(imgIds=self.ids[i], iscrowd=False))
        boxes = np.array([one["bbox"] for one in known]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes.round()


def open_objects(
    data: str | Path, annotations: str | Path | None = None, *, exif: Exif = "turn", values: Values | None = None
) -> Objects:  # fmt: skip
    """The images of a folder and what is known of their objects. annotations: a JSON file of COCO's form. exif: what
    they were drawn on, see `data.annotated`. values: of an encoder's training images, where these were deep.

    Raises InputError where there are no images, for a file that is none of COCO's, and where annotations name none of
    the images."""
    root = Path(data).expanduser()
    if annotations is not None:
        return CocoObjects(root, Path(annotations).expanduser(), exif, values)
    if (root / "JPEGImages").is_dir() and (root / "Annotations").is_dir():
        return VocObjects(root, exif, values)
    if (root / "images").is_dir() and (root / "masks").is_dir():
        return MaskedObjects(root, exif, values)
    if exif != "turn":
        raise InputError(f"--exif {exif} has no effect: '{data}' has neither masks nor boxes, and pictures are turned")
    return BareObjects(open_dataset(str(data)), values)


def boxes_of(masks: NDArray[np.bool_]) -> Boxes:
    """The boxes around masks [n, H, W], none of them empty."""
    boxes = np.zeros((len(masks), 4))
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes
