"""Data sets with a name: `digits` and `scattered-digits` are always there; others are on this machine or downloaded.

scikit-learn and torchvision's data sets take seconds to import, so each is imported where it is needed.
"""

import gzip
import os
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from simdino.contracts import InputError
from simdino.data.base import ArraySource
from simdino.data.index import cache_folder
from simdino.data.splits import Part, Split

IMAGENETTE_IMAGES = 9469 + 3925
IMAGENETTE_CLASSES = (
    "tench", "English springer", "cassette player", "chain saw", "church", "French horn", "garbage truck", "gas pump",
    "golf ball", "parachute",
)  # fmt: skip
"""In the order of their folders' names, which are WordNet numbers."""

_FASHION_PARTS: dict[Part, str] = {"train": "train", "val": "t10k"}
_IDX_BYTES = 0x08  # the code for uint8 in an IDX header
_PROBE_SECONDS = 3.0

T = TypeVar("T")
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]
"""Images uint8 [N, H, W] or [N, H, W, C], labels [N], their numbers in the set [N], and the names of the classes."""


@dataclass(frozen=True, kw_only=True)
class BuiltIn:
    """A data set with a name, an entry of `sources.SOURCES`: its arrays, or its folder. Both functions raise InputError
    where the set cannot be had.

    arrays: returns the images of "train" or "val", where they fit in memory. folder: returns a folder that has them,
    which is opened as any other is. classes: what these are called, where their folders have other names."""

    arrays: Callable[[Part], Arrays] | None = None
    folder: Callable[[], Path] | None = None
    classes: tuple[str, ...] = ()

    def in_memory(self, name: str, split: Split) -> ArraySource:
        """Return a split of a set that is in arrays."""
        assert self.arrays is not None
        parts: tuple[Part, ...] = ("train", "val") if split == "all" else (split,)
        loaded = [self.arrays(part) for part in parts]
        images = np.concatenate([part[0] for part in loaded])
        labels = np.concatenate([part[1] for part in loaded])
        names = [f"{name}/{part}/{i}" for part, (_, _, numbers, _) in zip(parts, loaded, strict=True) for i in numbers]
        return ArraySource(name, images, names, labels, loaded[0][3])


def imagenette_folder() -> Path:
    """Return the folder with imagenette's `train/` and `val/`, downloaded if need be. Raises InputError where it cannot
    be had."""
    from torchvision.datasets import Imagenette  # noqa: PLC0415

    folder = cache_folder() / "imagenette2-160"
    hint = f"connect to the internet, or unpack imagenette2-160.tgz into '{cache_folder()}'"
    if not folder.is_dir():
        _download("imagenette", lambda: Imagenette(cache_folder(), size="160px", download=True), hint)
    found = sum(1 for _ in folder.rglob("*.JPEG"))
    if found < IMAGENETTE_IMAGES:
        raise InputError(
            f"data: imagenette in '{folder}' is incomplete, {found} of {IMAGENETTE_IMAGES} images (an unpacking that "
            f"was stopped?); delete it and try again"
        )
    return folder


def fashion_mnist_available() -> bool:
    """Return whether fashion-mnist is on this machine, from the system's package or an earlier download."""
    return _fashion_files() is not None


def demo_data() -> tuple[str, str]:
    """Return the best small data set that can be had, "fashion-mnist" or "scattered-digits", and why in one line."""
    if fashion_mnist_available():
        return "fashion-mnist", "fashion-mnist: 70,000 images of clothes, already on this machine"
    from torchvision.datasets import FashionMNIST  # noqa: PLC0415

    try:
        # torchvision waits without limit where a firewall swallows packets: ask for the headers first.
        request = urllib.request.Request(FashionMNIST.mirrors[0], method="HEAD")
        with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):
            pass
        _fashion_mnist("val")
    except (OSError, HTTPException, InputError):
        return "scattered-digits", (
            "scattered-digits: scikit-learn's 1,797 digits, each drawn four times at a random place, size and angle "
            "(fashion-mnist is not here and cannot be downloaded)"
        )
    return "fashion-mnist", f"fashion-mnist: 70,000 images of clothes, downloaded to '{cache_folder()}'"


def _digits(part: Part) -> Arrays:
    """Return scikit-learn's digits. Every fifth of a fixed permutation is for validation."""
    from sklearn.datasets import load_digits  # noqa: PLC0415

    pixels, labels = (np.asarray(x) for x in load_digits(return_X_y=True))
    val = np.zeros(len(pixels), dtype=bool)
    val[np.random.default_rng(0).permutation(len(pixels))[::5]] = True
    numbers = np.flatnonzero(val if part == "val" else ~val)
    images = np.round(pixels[numbers] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    return images, labels[numbers], numbers, tuple(str(i) for i in range(10))


COPIES = 4
"""How often each digit is drawn in `scattered-digits`."""


@cache
def _scattered_digits(part: Part) -> Arrays:
    """Return scikit-learn's digits as they lie about: each drawn COPIES times, at a random size, angle and place on a
    ground of random brightness. A digit is in the same part as in `digits`."""
    images, labels, numbers, classes = _digits(part)
    rng = np.random.default_rng([part == "val", 1797])
    drawn = np.stack([scattered(image, rng) for image in images for _ in range(COPIES)])
    copies = (numbers[:, None] * COPIES + np.arange(COPIES)).ravel()
    return drawn, np.repeat(labels, COPIES), copies, classes


def scattered(digit: np.ndarray, rng: np.random.Generator, *, side: int = 40) -> np.ndarray:
    """Draw a digit uint8 [8, 8] somewhere on a canvas: uint8 [side, side].

    It is 12 to 22 pixels high and turned by up to 20 degrees. The ground goes from one grey to another across the
    picture, with noise of 4 levels, and the ink is at least 90 levels brighter."""
    size = int(rng.integers(12, 22, endpoint=True))
    top, left = (int(x) for x in rng.integers(0, side - size, size=2, endpoint=True))
    large = Image.new("L", (2 * side, 2 * side))
    corner = side - size // 2
    large.paste(Image.fromarray(digit).resize((size, size), Image.Resampling.BICUBIC), (corner, corner))
    large = large.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC)
    place = (corner - left, corner - top)
    ink = np.asarray(large.crop((*place, place[0] + side, place[1] + side)), np.float32) / 255
    angle, (dark, bright) = rng.uniform(0, 2 * np.pi), rng.uniform(0, 96, size=2)
    across = np.cos(angle) * np.arange(side)[None] + np.sin(angle) * np.arange(side)[:, None]
    ground = np.interp(across, (across.min(), across.max()), (dark, bright))
    drawn = ground + (rng.uniform(ground.max() + 90, 255) - ground) * ink + rng.normal(0, 4, ink.shape)
    return drawn.clip(0, 255).astype(np.uint8)


def _fashion_mnist(part: Part) -> Arrays:
    from torchvision.datasets import FashionMNIST  # noqa: PLC0415

    if (found := _fashion_files()) is None:
        hint = "install the Debian package dataset-fashion-mnist, or connect to the internet"
        _download("fashion-mnist", lambda: FashionMNIST(cache_folder(), download=True), hint)
        found = _fashion_files()
    if found is None:
        raise InputError(
            f"data: fashion-mnist was downloaded but is not in '{cache_folder()}'; delete it and try again"
        )
    images, labels = map(_read_idx, found[part])
    return images, labels.astype(np.int64), np.arange(len(images)), tuple(FashionMNIST.classes)


def _fashion_files() -> dict[Part, tuple[Path, Path]] | None:
    """Return the files of images and labels, from the first of the two places that has them all."""
    packaged = Path(os.environ.get("SIMDINO_DATASETS", "/usr/share/datasets")) / "fashion-mnist"  # as Debian has it
    downloaded = cache_folder() / "FashionMNIST" / "raw"
    for folder, ending in ((packaged, ".gz"), (downloaded, "")):
        files: dict[Part, tuple[Path, Path]] = {
            part: (folder / f"{word}-images-idx3-ubyte{ending}", folder / f"{word}-labels-idx1-ubyte{ending}")
            for part, word in _FASHION_PARTS.items()
        }
        if all(file.is_file() for both in files.values() for file in both):
            return files
    return None


def _read_idx(path: Path) -> np.ndarray:
    """Return the uint8 array of an IDX file: two zeros, type, number of axes, sizes (big-endian), values."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        zeros, kind, axes = int.from_bytes(content[:2], "big"), content[2], content[3]
        shape = np.frombuffer(content, dtype=">u4", count=axes, offset=4)
        if zeros != 0 or kind != _IDX_BYTES:
            raise ValueError("no IDX file of bytes")
        return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * axes).reshape(tuple(int(n) for n in shape))
    except (OSError, EOFError, IndexError, ValueError) as error:
        raise InputError(f"fashion-mnist: cannot read '{path}' ({error}); delete it and try again") from error


def _cifar10(part: Part) -> Arrays:
    from torchvision.datasets import CIFAR10  # noqa: PLC0415

    hint = f"connect to the internet, or put cifar-10-python.tar.gz into '{cache_folder()}'"
    data = _download("cifar10", lambda: CIFAR10(cache_folder(), train=part == "train", download=True), hint)
    images = np.asarray(data.data, dtype=np.uint8)
    return images, np.asarray(data.targets, dtype=np.int64), np.arange(len(images)), tuple(data.classes)


def _download(name: str, get: Callable[[], T], hint: str) -> T:
    """Return what torchvision gives. Raises InputError with a hint how else to get it."""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        return get()
    except Exception as error:  # urllib, torchvision, tarfile and the disk each raise their own
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"data: cannot download {name} ({why}); {hint}") from error


SOURCES = {
    "digits": BuiltIn(arrays=_digits),
    "scattered-digits": BuiltIn(arrays=_scattered_digits),
    "fashion-mnist": BuiltIn(arrays=_fashion_mnist),
    "cifar10": BuiltIn(arrays=_cifar10),
    "imagenette": BuiltIn(folder=imagenette_folder, classes=IMAGENETTE_CLASSES),
}
