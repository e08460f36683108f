"""Annotated data sets: which annotation belongs to which image, how the image was turned, and files in COCO's format,
of which every value that is used is checked."""

import contextlib
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from torch import Tensor

from simdino.data.decode import sides
from simdino.data.opening import breaking, reason
from simdino.data.scale import Scale
from simdino.errors import InputError
from simdino.extras import optional
from simdino.feedback import Log
from simdino.settings import Values

Exif = Literal["turn", "ignore"]
"""What masks and boxes were drawn on: "turn" is the image turned as its EXIF data say, as viewers show it; "ignore" is
the image as it is stored, as tools that ignore EXIF show it. The encoder sees what was drawn on."""

IMAGE_KEYS = ("id", "file_name", "width", "height")
ANNOTATION_KEYS = ("image_id", "bbox", "area")
FORM = f"expected are images ({', '.join(IMAGE_KEYS)}), annotations ({', '.join(ANNOTATION_KEYS)})"
CATEGORY = 1  # of every object: classes are not used
SLACK = 1.0  # pixels by which rounded boxes may lie outside of their image

Row = dict[str, Any]


def scale_of(root: Path, names: Sequence[str], values: Values | None) -> Scale:
    """Return the scale of a set of images below `root`. values: those of an encoder's training images, if they were
    deep."""
    return Scale(partial(file_bytes, root), names, values=values)


def file_bytes(root: Path, name: str) -> bytes:
    """Return the bytes of a file below a folder. Raises BrokenImage."""
    with breaking(None, name):
        return (root / name).read_bytes()


def read_picture(data: bytes, name: str, *, channels: int, exif: Exif, scale: Scale) -> Tensor:
    """Return the image as it was drawn on, [C, H, W]. scale: that of its set. Raises BrokenImage."""
    return scale.decode(data, name, channels=channels, upright=exif == "turn").pixels


def sides_of(data: bytes, name: str, *, exif: Exif) -> tuple[int, int]:
    """Return height and width of what `read_picture` gives, from the header. Raises BrokenImage."""
    return sides(data, name, upright=exif == "turn")


def tell_turned(turned: int, *, of: int, exif: Exif, log: Log) -> None:
    """Print a line where EXIF turns images that masks or boxes belong to."""
    if not turned:
        return
    taken, other = ("turned images", "ignore") if exif == "turn" else ("images as they are stored", "turn")
    log(
        f"{turned} of {of} images are turned by their EXIF data; masks and boxes are taken as drawn on the {taken}: "
        f"--exif {other} where that is wrong"
    )


def by_stem(names: Iterable[str], where: object) -> dict[str, str]:
    """Return paths by their names without extension. Raises InputError where two share one: which is annotated is
    unclear."""
    found: dict[str, str] = {}
    for name in names:
        stem = str(PurePosixPath(name).with_suffix(""))
        if stem in found:
            raise InputError(f"data: '{where}' has both {found[stem]} and {name}, which one annotation would be of")
        found[stem] = name
    return found


def read_coco(path: Path) -> Any:
    """Return pycocotools' COCO of a file, all objects in one category, without printing anything. An annotation without
    `iscrowd` is no crowd; categories are not read.

    Raises InputError for a file in another format, and for the first invalid value: in which image or annotation, which
    key, what it is, what it should be, and how many more there are."""
    tools = optional("pycocotools.coco")
    dataset = parsed(path)
    faults = list(faults_of(dataset))
    if faults:
        more = f" ({len(faults) - 1} more like this)" if len(faults) > 1 else ""
        raise InputError(f"--annotations {path}: {faults[0]}{more}: mend or remove it")
    annotations = [
        one | {"id": number, "category_id": CATEGORY, "iscrowd": one.get("iscrowd", 0)}
        for number, one in enumerate(dataset["annotations"], start=1)  # the evaluator takes a match with 0 for none
    ]
    coco = tools.COCO()
    coco.dataset = dataset | {"annotations": annotations, "categories": [{"id": CATEGORY, "name": "object"}]}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def parsed(path: Path) -> dict[str, list[Row]]:
    """Return the lists of images and annotations in a file. Raises InputError where they are missing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"--annotations {path}: {reason(error)}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"--annotations {path} is no file of COCO's form: it is not JSON: {reason(error)}") from None
    for part in ("images", "annotations"):
        rows = content.get(part) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(one, dict) for one in rows):
            raise InputError(f"--annotations {path} is no file of COCO's form: it has no list of {part} ({FORM})")
    return content


def faults_of(dataset: dict[str, list[Row]]) -> Iterator[str]:
    """Yield a line for each image and annotation with an invalid value."""
    images: dict[int, Row] = {}
    for i, one in enumerate(dataset["images"]):
        try:
            check_image(one, images)
            images[one["id"]] = one
        except ValueError as fault:
            yield f"image {i} ({one.get('file_name', 'without a name')!r}): {fault}"
    for i, one in enumerate(dataset["annotations"]):
        try:
            check_annotation(one, images)
        except ValueError as fault:
            yield f"annotation {i} (id {one.get('id')!r}): {fault}"


def check_image(one: Row, others: dict[int, Row]) -> None:
    """Raise ValueError for an invalid value of an image's row. others: the images before it, by id."""
    if lacking := [key for key in IMAGE_KEYS if key not in one]:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    if not is_whole(one["id"]):
        raise ValueError(f"id {one['id']!r} is no whole number; number the images")
    if not isinstance(one["file_name"], str) or not one["file_name"]:
        raise ValueError(f"file_name {one['file_name']!r} is no name")
    for key in ("width", "height"):
        if not is_whole(one[key]) or one[key] < 1:
            raise ValueError(f"{key} {one[key]!r} is no number of pixels")
    if (other := others.get(one["id"])) is not None:
        raise ValueError(f"id {one['id']} is that of {other['file_name']!r} too; each image needs its own")


def check_annotation(one: Row, images: dict[int, Row]) -> None:
    """Raise ValueError for an invalid value of an annotation. images: the valid ones, by id."""
    if lacking := [key for key in ANNOTATION_KEYS if key not in one]:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    image = images.get(one["image_id"]) if is_whole(one["image_id"]) else None
    if image is None:
        raise ValueError(f"image_id {one['image_id']!r} is the id of no image; ids are whole numbers, not text")
    if not is_number(one["area"]) or one["area"] < 0:
        raise ValueError(f"area {one['area']!r} is no number of pixels")
    if not is_whole(one.get("iscrowd", 0)) or one.get("iscrowd", 0) not in (0, 1):
        raise ValueError(f"iscrowd {one['iscrowd']!r} is neither 0 nor 1")
    check_box(one["bbox"], image)
    check_outline(one.get("segmentation"), image)


def check_box(box: Any, image: Row) -> None:
    """Raise ValueError for a wrong left, top, width or height. A side may be 0, as in COCO's own files."""
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        raise ValueError(f"bbox {box!r} is not four numbers: left, top, width, height in pixels")
    left, top, width, height = box
    if width < 0 or height < 0:
        raise ValueError(f"bbox {box!r} has a negative side; it is left, top, width, height")
    if min(left, top) < -SLACK or left + width > image["width"] + SLACK or top + height > image["height"] + SLACK:
        raise ValueError(f"bbox {box!r} lies outside of its image of {image['width']} x {image['height']} pixels")


def check_outline(outline: Any, image: Row) -> None:
    """Raise ValueError for what is neither polygons nor run lengths. There may be none of both."""
    if isinstance(outline, dict):
        check_runs(outline, [image["height"], image["width"]])
    elif isinstance(outline, list):
        for polygon in outline:
            right = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
            if not right or not all(map(is_number, polygon)):
                raise ValueError(
                    f"segmentation has the polygon {shortened(polygon)}; one is x, y of three points or more"
                )
    elif outline is not None:
        raise ValueError(f"segmentation {shortened(outline)} is neither a list of polygons nor run lengths")


def check_runs(runs: Row, sides: list[int]) -> None:
    """Raise ValueError for a wrong mask of run lengths, in numbers or in COCO's compressed text.

    sides: height and width of the image."""
    size, counts = runs.get("size"), runs.get("counts")
    if size != sides:
        raise ValueError(
            f"segmentation has run lengths of size {shortened(size)}, but its image has {sides} (height, width)"
        )
    if isinstance(counts, str):
        counts = uncompressed(counts)
    if not isinstance(counts, list) or not all(is_whole(count) and count >= 0 for count in counts):
        raise ValueError(f"segmentation has counts {shortened(runs.get('counts'))}, which are no run lengths")
    if sum(counts) != math.prod(sides):
        raise ValueError(
            f"segmentation has run lengths of {sum(counts)} pixels in all, its image has {math.prod(sides)}"
        )


def uncompressed(text: str) -> list[int] | None:
    """Return COCO's compressed run lengths as numbers, or None for a text that is not such. A character holds 5 bits,
    counted from "0", the low ones first, and 32 where more follow; from the third on, a run is stored as its difference
    to the run two before."""
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    return None if shift else counts


def is_whole(value: Any) -> bool:
    """Return whether the value is a whole number and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether the value is a finite number and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def shortened(value: Any) -> str:
    """Return a value as at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
