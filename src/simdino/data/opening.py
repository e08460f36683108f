"""Open an image file: which formats are admitted, how large an image may be, and what makes one broken.

Pillow refuses some files although all of their pixels are there: a PNG may have more metadata than its limits allow, or
damaged metadata; a JPEG may lack its end marker. Its own switches for these are global, and this package changes no
global state, so such a file is opened as a mended copy."""

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

from PIL import Image, ImageFile

from simdino.errors import InputError
from simdino.extras import optional

MAX_PIXELS = 178_956_970
"""The largest size that is decoded, since a file of a few bytes can claim any. It is Pillow's own limit for an
error."""

NOT_OPENED = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})
"""Formats that Pillow registers but that are not opened: EPS is a program that Ghostscript would run, the others are
recognised but have no decoder."""

HEIC = "HEIF"  # as its plugin registers it

OTHERS = frozenset({".npy", ".dcm", ".dicom", ".jxl"})
"""Extensions of images that Pillow does not open, see `data.readers`."""

LARGEST_METADATA = 1_000_000
"""The most bytes of a PNG's text or colour profile, unpacked, that are kept: Pillow refuses 1,048,576."""

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_FRAMES, _SCAN = (0xC0, 0xC1, 0xC2), 0xDA
_NO_SEGMENT = (0x00, 0x01, *range(0xD0, 0xDA), 0xFF)  # markers without a length, and bytes that are none
_PACKED = (b"zTXt", b"iCCP")
_METADATA = (b"tEXt", b"iTXt", *_PACKED)


class BrokenImage(ValueError):
    """An image that cannot be decoded: `name` says which one, `reason` says why in one line."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def reason(error: Exception) -> str:
    """Return what went wrong, in one line and without Pillow's internals."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image in any format that Pillow can open"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class _QuietPillow:
    """Silences Pillow's warnings while any thread is decoding.

    `warnings.catch_warnings` alone restores the wrong filters when threads overlap, so the first thread in installs
    the filter and the last one out removes it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._caught.__exit__(None, None, None)


_quiet_pillow = _QuietPillow()


@contextmanager
def breaking(data: bytes | None, name: str) -> Iterator[None]:
    """Raise BrokenImage for whatever is raised inside, and keep Pillow quiet: decoders raise almost every type of
    exception on damaged input, and one bad file must not end a run."""
    if data == b"":
        raise BrokenImage(name, "the file is empty (0 bytes)")
    with _quiet_pillow:
        try:
            yield
        except Exception as error:
            raise BrokenImage(name, reason(error)) from error


@cache
def formats() -> tuple[str, ...]:
    """Return the names of the formats that may be opened: Pillow's own, and HEIC where its plugin is installed."""
    Image.init()
    closed = {*NOT_OPENED, HEIC}
    with suppress(InputError):
        optional("pillow_heif").register_heif_opener()
        closed.remove(HEIC)
    return tuple(name for name in Image.ID if name not in closed)


@cache
def extensions() -> frozenset[str]:
    """Return the lower-case file extensions, with their dot, of the formats that may be opened."""
    # Multi-picture files (.mpo) are opened by the JPEG reader and have no opener of their own.
    known = {*formats(), "MPO"}
    return OTHERS | frozenset(ext.lower() for ext, name in Image.registered_extensions().items() if name in known)


def is_image_name(name: str) -> bool:
    """Return whether the name ends like an image file; the content is not looked at."""
    stem, dot, extension = name.rpartition(".")
    return bool(stem) and dot + extension.lower() in extensions()


def opened(data: bytes) -> ImageFile.ImageFile:
    """Return a file opened by its header, also where Pillow refuses it for its metadata."""
    try:
        return _open(data)
    except Exception as refusal:
        for copy in mended(data):
            with suppress(Exception):
                return _open(copy)
        raise refusal


def loaded(data: bytes, at_least: int | None = None) -> tuple[Image.Image, str]:
    """Return a decoded file and its raw mode, also where Pillow refuses it for more than its pixels.

    at_least: the short side that is needed; a JPEG may be decoded at a fraction of its size."""
    try:
        return _load(data, at_least)
    except Exception as refusal:
        with suppress(Exception):  # the copies are no better
            first, *others = [_load(copy, None) for copy in mended(data)]
            if all(first[0].tobytes() == other[0].tobytes() for other in others):
                return first
        raise refusal


def raw_mode(image: ImageFile.ImageFile) -> str:
    """Return how the pixels of an image that is not loaded yet lie in its file, as Pillow's raw mode."""
    arguments = image.tile[0].args if image.tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _load(data: bytes, at_least: int | None) -> tuple[Image.Image, str]:
    image = _open(data)
    raw = raw_mode(image)
    if at_least is not None:
        image.draft(None, (at_least, at_least))
    image.load()
    return image, raw


def _open(data: bytes) -> ImageFile.ImageFile:
    """Read the header only. Raises ValueError for too many pixels."""
    try:
        image = Image.open(io.BytesIO(data), formats=formats())
    except Image.DecompressionBombError as error:
        size = _claimed_size(data)
        raise ValueError(_too_large(*size) if size else str(error)) from error
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(_too_large(image.width, image.height))
    return image


def _claimed_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height in the header of a file that `Image.open` refuses without telling them."""
    for name in formats():
        opener, accepts = Image.OPEN[name]
        with suppress(Exception):  # not this format
            if accepts is None or accepts(data[:16]) is True:
                return opener(io.BytesIO(data), "").size
    return None


def _too_large(width: int, height: int) -> str:
    return f"{width} x {height} pixels are more than the limit of {MAX_PIXELS:,} pixels"


def mended(data: bytes) -> list[bytes]:
    """Return readable copies of a refused file, if any. All pixels are there if every copy gives the same ones."""
    if data.startswith(_PNG):
        lean = _PNG + b"".join(_needed_chunks(data))
        return [lean] if len(lean) < len(data) else []
    if data.startswith(_JPEG) and _has_every_scan(data):
        # A decoder that still needs data reads the filling as such, and each filling gives other pixels.
        whole = data.rstrip(b"\xff")
        return [whole + filling * 64 + _JPEG_END for filling in (b"\x00", b"\x55", b"\xaa")]
    return []


def _has_every_scan(data: bytes) -> bool:
    """Return whether a JPEG has begun the scans that give all coefficients of all components to their last bit. Where a
    progressive JPEG ends between two scans, no decoder notices that the rest is missing."""
    missing: set[tuple[int, int]] = set()
    at = len(_JPEG)
    while 0 <= (at := data.find(b"\xff", at)) <= len(data) - 4:
        marker = data[at + 1]
        if marker in _NO_SEGMENT:
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if marker in _FRAMES:  # precision height width count (component sampling table) ...
            missing |= {(component, k) for component in body[6::3] for k in range(64)}
        elif marker == _SCAN and len(body) >= 4:  # count (component tables) ... first last bits
            first, last, bits = body[-3:]
            if bits % 16 == 0:
                missing -= {(component, k) for component in body[1:-3:2] for k in range(first, last + 1)}
        at += 2 + length
    return not missing


def _needed_chunks(data: bytes) -> Iterator[bytes]:
    """Yield the chunks of a PNG without large or damaged metadata and without what follows its end."""
    at, kind = len(_PNG), b""
    while at + 12 <= len(data) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + 12 + length]
        at += len(chunk)
        if kind not in _METADATA or _is_small_and_whole(kind, chunk):
            yield chunk
    if kind != b"IEND":
        yield data[at:]


def _is_small_and_whole(kind: bytes, chunk: bytes) -> bool:
    """Return whether Pillow reads this metadata chunk, which may hold the EXIF orientation."""
    body, (checksum,) = chunk[8:-4], struct.unpack(">I", chunk[-4:])
    if checksum != zlib.crc32(kind + body):
        return False
    try:
        return len(_unpacked(kind, body)) <= LARGEST_METADATA
    except (IndexError, ValueError, zlib.error):
        return False


def _unpacked(kind: bytes, body: bytes) -> bytes:
    """Return a chunk's text or profile, unpacked to at most one byte more than is kept."""
    packed = b""
    if kind in _PACKED:  # keyword 0 method data
        packed = body.split(b"\0", 1)[1][1:]
    elif kind == b"iTXt":  # keyword 0 flag method language 0 keyword 0 text
        flag, _, *rest = body.split(b"\0", 1)[1]
        packed = bytes(rest).split(b"\0", 2)[2] if flag else b""
    return zlib.decompressobj().decompress(packed, LARGEST_METADATA + 1) if packed else body
