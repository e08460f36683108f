"""Tars in WebDataset's form: the files of a sample have one name up to the first dot, and its image is one of them.

A `.cls` file names the class of its sample; without any, a label in its `.json`. Other files are counted."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from simdino.data.files import is_hidden
from simdino.data.lists import LABELS
from simdino.data.opening import is_image_name
from simdino.data.shards import Shard, ShardKind
from simdino.text import readable

Place = tuple[int, int]  # the first byte, and how many


@dataclass
class Sample:
    """The members of a tar with one name up to the first dot."""

    images: dict[str, Place] = field(default_factory=dict[str, Place])
    label: Place | None = None
    about: Place | None = None  # its JSON


class TarKind(ShardKind):
    """Plain tars."""

    def contents(self, path: Path) -> Shard:
        """Return the images of a tar."""
        found = Shard()
        samples = samples_in(path, found)
        with path.open("rb") as file:
            by_json = json_label(file, samples)
            for sample in samples.values():
                if not sample.images:
                    continue
                name = min(sample.images, key=lambda name: name.rpartition("/")[2].count("."))  # of equals the first
                found.names.append(name)
                found.folders.append(name.rpartition("/")[0])
                found.places.append(sample.images[name][0])
                found.sizes.append(sample.images[name][1])
                found.classes.append(label_of(file, sample, by_json))
        labelled = any(sample.label for sample in samples.values())
        found.labelled_by = ".cls files" if labelled else f"{by_json!r} in .json files" if by_json else ""
        further = [name for sample in samples.values() for name in sample.images if len(sample.images) > 1]
        if further:
            images = len(further) - sum(len(sample.images) > 1 for sample in samples.values())
            found.notes.append(
                f"{path.name} has {images} further images of samples, left out as of {readable(further[0])}; "
                f"files with one name up to the first dot are one sample"
            )
        if not labelled:
            count = sum(sample.about is not None for sample in samples.values()) if not by_json else 0
            found.skipped.other |= {".json": count} if count else {}
        return found

    def get(self, path: Path, place: int, size: int) -> bytes:
        """Return the bytes of a member."""
        with path.open("rb") as file:
            file.seek(place)
            data = file.read(size)
        if len(data) < size:
            raise OSError("it ends before the image does")
        return data


def samples_in(path: Path, found: Shard) -> dict[str, Sample]:
    """Return the samples of a tar by their keys. Files that belong to none are counted."""
    samples: dict[str, Sample] = {}
    for name, place in members(path, found):
        folder, slash, last = name.rpartition("/")
        stem, _, ending = last.partition(".")
        sample = samples.setdefault(folder + slash + stem, Sample())
        if ending.lower() == "cls":
            sample.label = place
        elif ending.lower() == "json":
            sample.about = place
        elif is_image_name(last):
            sample.images[name] = place
        else:
            found.skipped.count(name)
    return samples


def members(path: Path, found: Shard) -> Iterator[tuple[str, Place]]:
    """Yield name and place of every visible file of a tar; what is none is counted."""
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if any(map(is_hidden, name.split("/"))):
                found.skipped.hidden += 1
            elif member.isreg():
                yield name, (member.offset_data, member.size)
            elif not member.isdir():
                found.skipped.no_files += 1


def json_label(file: BinaryIO, samples: dict[str, Sample]) -> str:
    """Return the field of a tar's JSON files that holds the label, by the first of them; empty where they hold none, or
    `.cls` files do."""
    first = next((sample.about for sample in samples.values() if sample.about), None)
    if first is None or any(sample.label for sample in samples.values()):
        return ""
    about = parsed(file, first)
    return next((name for name in about if name.lower() in LABELS), "")


def label_of(file: BinaryIO, sample: Sample, by_json: str) -> str | None:
    """Return the class of a sample, by its JSON where a field of that is named."""
    if sample.label is not None:
        return taken(file, sample.label).decode("utf-8", "replace").strip() or None
    value = parsed(file, sample.about).get(by_json) if by_json and sample.about is not None else None
    return str(value) if isinstance(value, str | int) and value != "" else None


def parsed(file: BinaryIO, place: Place) -> dict[str, object]:
    """Return the object of a JSON file; an empty one where it holds none."""
    try:
        about = json.loads(taken(file, place))
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


def taken(file: BinaryIO, place: Place) -> bytes:
    """Return the bytes at a place."""
    file.seek(place[0])
    return file.read(place[1])


KINDS = {".tar": TarKind}
