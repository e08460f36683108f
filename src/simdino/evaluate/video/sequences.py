"""Videos in the layouts of DAVIS 2016 and 2017: frames, and the masks of their objects.

    DIR/JPEGImages/480p/NAME/00000.jpg ...     or Full-Resolution in place of 480p
    DIR/Annotations/480p/NAME/00000.png ...    of every frame, or of the first alone: then there is nothing to score
    DIR/ImageSets/2017/val.txt                 a name a line; 2016 also has a line a frame, its two paths

A frame is read when it is asked for.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from simdino.contracts import InputError
from simdino.data.annotated import Exif, by_stem, file_bytes, read_picture, scale_of, sides_of
from simdino.data.decode import as_stored, orientation
from simdino.data.opening import BrokenImage, is_image_name, reason
from simdino.data.scale import Scale
from simdino.evaluate.video import Year
from simdino.settings import Values

Mask = NDArray[np.uint8]  # [H, W], 0 is background, 1, 2, ... are objects

VOID = 255
MASK_FORMATS = ("PNG", "GIF", "BMP", "TIFF")  # those that keep numbers as they are
PARTS = ("JPEGImages", "Annotations")
RESOLUTIONS = ("480p", "Full-Resolution")
LISTS: dict[Year, tuple[str, ...]] = {
    "2017": ("2017/val.txt",),
    "2016": ("2016/val.txt", "480p/val.txt", "1080p/val.txt"),
}
LAYOUT = "DIR/JPEGImages/480p/NAME/00000.jpg, DIR/Annotations/480p/NAME/00000.png, DIR/ImageSets/2017/val.txt"


@dataclass(frozen=True, kw_only=True)
class Video:
    """A sequence: its frames in order, and the masks that there are of them.

    whole: whether all objects are one foreground, as in 2016. sides: width and height of all. scale: of all frames.
    exif: what the masks were drawn on, see `data.annotated`."""

    name: str
    frames: Sequence[Path]
    masks: Sequence[Path]  # one a frame, or the first frame's alone
    whole: bool
    sides: tuple[int, int]
    scale: Scale
    exif: Exif = "turn"

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def annotated(self) -> bool:
        """Whether every frame has a mask to be compared with."""
        return len(self.masks) == len(self.frames) > 1

    def frame(self, i: int, channels: int = 3) -> Tensor:
        """Frame i, uint8 [C, H, W]. Raises InputError for a damaged one: what follows it could not be told."""
        path = self.frames[i]
        with naming(f"sequence {self.name}: frame '{path}'"):
            data = file_bytes(path.parent, path.name)
            image = read_picture(data, path.name, channels=channels, exif=self.exif, scale=self.scale)
        if (found := (image.shape[2], image.shape[1])) != self.sides:
            raise InputError(
                f"data: sequence {self.name}: frame '{path}' has {found[0]} x {found[1]} pixels upright, but the first "
                f"mask {self.sides[0]} x {self.sides[1]}; give frames of its size"
            )
        return image

    def turned(self) -> int:
        """The number of frames that EXIF turns, without those that cannot be read: `frame` reports them."""
        count = 0
        for path in self.frames:
            with suppress(BrokenImage):
                count += orientation(file_bytes(path.parent, path.name), path.name) != 1
        return count

    def mask(self, i: int) -> Mask:
        """The mask of frame i: void (255) is background; in 2016, whatever is not background is object 1. Raises
        InputError for a damaged one."""
        labels = np.array(mask_file(self.masks[i]))
        if self.whole:
            return (labels > 0).astype(np.uint8)
        return np.where(labels == VOID, 0, labels).astype(np.uint8)

    def palette(self) -> list[int] | None:
        """The colours of the first mask; None where it is grey."""
        return mask_file(self.masks[0]).getpalette()


def open_davis(
    root: str | Path, year: Year | None = None, *, exif: Exif = "turn", values: Values | None = None
) -> tuple[Year, list[Video]]:  # fmt: skip
    """The validation videos below `root`, of 2017's list where both are there and `year` does not say otherwise.

    exif: see `data.annotated`. values: of an encoder's training images, where these were deep.

    Raises InputError for an unknown layout, for a sequence without frames or without its first mask, and for one of
    whose frames some have masks and others have none."""
    path = Path(root).expanduser()
    if not path.is_dir():
        raise InputError(f"data: there is no folder '{root}'; give one of DAVIS: {LAYOUT}")
    year, listed = sequence_list(path, year)
    pictures, masks = (path / part / resolution_of(path) for part in PARTS)
    frames = {name: images_in(pictures / name) for name in names_in(listed)}
    scale = scale_of(path, [str(file.relative_to(path)) for files in frames.values() for file in files], values)
    videos: list[Video] = []
    for name, files in frames.items():
        if not files:
            raise InputError(f"data: sequence {name} has no frames in '{pictures / name}'")
        found, sides = masks_of(files, masks / name, exif=exif)
        whole = year == "2016"
        videos.append(Video(name=name, frames=files, masks=found, whole=whole, sides=sides, scale=scale, exif=exif))
    return year, videos


def sequence_list(root: Path, year: Year | None) -> tuple[Year, Path]:
    """The year and its list of sequences."""
    for one, files in LISTS.items():
        for file in files:
            if year in (None, one) and (root / "ImageSets" / file).is_file():
                return one, root / "ImageSets" / file
    wanted = " or ".join(f"ImageSets/{files[0]}" for one, files in LISTS.items() if year in (None, one))
    raise InputError(f"data: '{root}' is no DAVIS: it has no {wanted}; expected {LAYOUT}")


def names_in(listed: Path) -> list[str]:
    """The sequences of a list, each once: a name a line, or the paths of a frame and its mask."""
    try:
        lines = [line.split()[0] for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data: {listed} cannot be read as text in UTF-8: {reason(error)}") from None
    names = list(dict.fromkeys(Path(line).parent.name if "/" in line else line for line in lines))
    if not names or "" in names:
        raise InputError(f"data: {listed} names no sequence; expected a name a line, or a line of two paths a frame")
    return names


def resolution_of(root: Path) -> str:
    """480p where frames and masks have it, else Full-Resolution."""
    have = [{p.name for p in (root / part).iterdir()} if (root / part).is_dir() else set() for part in PARTS]
    both = [name for name in RESOLUTIONS if all(name in names for names in have)]
    if not both:
        found = " and ".join(
            f"{part}/ has {', '.join(sorted(it)) or 'nothing'}" for part, it in zip(PARTS, have, strict=True)
        )
        raise InputError(f"data: '{root}' has none of {', '.join(RESOLUTIONS)} for frames and masks alike: {found}")
    return both[0]


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder by name; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if is_image_name(path.name) and not path.name.startswith("."))


def masks_of(frames: Sequence[Path], folder: Path, *, exif: Exif) -> tuple[list[Path], tuple[int, int]]:
    """The masks of a sequence's frames, one for each or the first alone, and the width and height of the first."""
    name, first = folder.name, frames[0]
    by_stem((path.name for path in frames), first.parent)  # each is the only one of its mask
    known = by_stem((path.name for path in images_in(folder)), folder)
    if first.stem not in known:
        where = folder / f"{first.stem}.png"
        raise InputError(f"data: sequence {name} has no mask of its first frame: '{where}' is missing")
    found = [folder / known[frame.stem] for frame in frames if frame.stem in known]
    if len(found) not in (1, len(frames)):
        lacking = next(frame.stem for frame in frames if frame.stem not in known)
        raise InputError(
            f"data: sequence {name} has masks of {len(found)} of its {len(frames)} frames, none of {lacking}: give "
            f"those of all, or the first alone to have the others made without a score"
        )
    with naming(f"'{first}'"):
        height, width = sides_of(file_bytes(first.parent, first.name), first.name, exif=exif)
    if (sides := mask_file(found[0]).size) != (width, height):
        raise InputError(
            f"data: sequence {name}: the first frame has {width} x {height} pixels, but its mask {sides[0]} x "
            f"{sides[1]}; give one of its size"
        )
    return found, sides


def mask_file(path: Path) -> Image.Image:
    """A mask, its numbers as they are stored. Raises InputError for a damaged file and for one that has no numbers."""
    with naming(f"'{path}'"):
        labels, _ = as_stored(file_bytes(path.parent, path.name), path.name, formats=MASK_FORMATS)
    if labels.mode not in ("1", "L", "P"):
        raise InputError(
            f"data: mask '{path}' has colours (mode {labels.mode}); expected one number a pixel, an indexed PNG"
        )
    return labels


@contextmanager
def naming(file: str) -> Iterator[None]:
    """Raise InputError that names a file where it is no image, or half of one."""
    try:
        yield
    except BrokenImage as error:
        raise InputError(f"data: {file} cannot be read: {error.reason}") from error
