"""Copy detection, as on Copydays (Douze et al. 2009): is the picture most like a changed copy its original?

DINO's eval_copy_detection.py at 7c446df.

    DIR/original/200100.jpg       Copydays: what is searched,
    DIR/strong/200101.jpg         and copies, whose first four letters are their original's
    DIR/originals/beach.jpg       or pictures of your own,
    DIR/copies/beach-blur.jpg     and copies, whose names begin with their original's (the longest, where several fit)
    DIR/distractors/...           optional: other pictures, searched among the originals
    DIR/whitening/...             optional: other pictures, to learn the whitening of vectors from
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from simdino.contracts import InputError
from simdino.data.sources import FileSource
from simdino.data.stores import FolderStore
from simdino.data.views import resize
from simdino.evaluate.retrieval import SQUARE
from simdino.evaluate.retrieval.ranking import Ranks, described, orders, ranks_of, trapezoid_precision
from simdino.features.extract import inputs, patch_maps, patch_of, tokens_of
from simdino.feedback import Progress, no_bar
from simdino.models.encoder import Encoder
from simdino.result import Result

BEST = 20  # ranks that count
POWER, LEAST = 4, 1e-6  # of GeM
FLOOR = 1e-5  # of the largest variance: smaller ones are raised to it before whitening
COPYDAYS, LETTERS = ("original", "strong"), 4
LAYOUTS = (COPYDAYS, ("originals", "copies"))
LAYOUT = "DIR/originals/NAME.jpg and DIR/copies/NAME-1.jpg, or Copydays' DIR/original/ and DIR/strong/"


@dataclass(frozen=True, kw_only=True)
class CopiesResult(Result):
    """Scores in percent, means over the copies."""

    map: float  # over the best 20 of each copy, by the trapezoid rule
    recall1: float  # copies whose nearest picture is their original
    copies: int
    skipped: int  # copies whose name tells no original
    originals: int
    distractors: int
    whitening: int  # pictures that the whitening was learned from; 0 for none
    broken: dict[str, str]  # pictures left out, and why; an original among them is never found

    def __str__(self) -> str:
        skipped = f" ({self.skipped} more skipped: their names tell no original)" if self.skipped else ""
        whitened = f", whitened by {self.whitening} pictures" if self.whitening else ""
        return (
            f"mAP {self.map:.2f} %  recall@1 {self.recall1:.2f} %, {self.copies} copies{skipped} of {self.originals} "
            f"originals among {self.distractors} distractors{whitened}"
        )


def copies(encoder: Encoder, data: str | Path, *, size: int = SQUARE, progress: Progress = no_bar) -> CopiesResult:
    """Rank originals and distractors for each copy by the cosine of [class token ; GeM of the patches].

    data: see above. size: pictures become squares of so many pixels. progress: given the pictures.

    Raises InputError for another layout, where no copy tells its original, and for an encoder without patches."""
    patch_of(encoder)  # refuses at once what has none
    folders = layout_at(data)
    if folders is None:
        raise InputError(f"data: '{data}' has no originals and copies; expected {LAYOUT}")
    sources = pictures_in(data, (*folders, "distractors", "whitening"))
    empty = [name for name in folders if not len(sources[name])]
    if empty:
        raise InputError(f"data: '{Path(data) / empty[0]}' has no pictures; expected {LAYOUT}")
    searched, asked = (sources[name] for name in folders)
    right = originals_of(asked.names, searched.names, letters=LETTERS if folders == COPYDAYS else None)
    if not any(map(len, right)):
        raise InputError(f"data: no copy has the name of an original ({asked.names[0]}, ...); expected {LAYOUT}")
    vector_of = partial(copy_vector, size=size)
    found = {
        name: described(encoder, source, vector_of, what=name, progress=progress)
        for name, source in sources.items()
        if len(source)
    }
    kept = {name: found[name].kept if name in found else [] for name in sources}
    database = torch.cat([found[name].vectors for name in (folders[0], "distractors") if name in found])
    queries = found[folders[1]].vectors
    if "whitening" in found:
        whiten = whitening_of(found["whitening"].vectors)
        database, queries = whiten(database), whiten(queries)
    positions = np.array(kept[folders[0]] + [-1] * len(kept["distractors"]))  # a distractor is never right
    worth = []
    for i, order in zip(kept[folders[1]], orders(database, queries), strict=True):
        if len(right[i]):
            ranks = ranks_of(positions[order[:BEST]], right[i])
            worth.append((trapezoid_precision(ranks, len(right[i])), 0 in ranks))
    if not worth:
        raise InputError("data: no copy that tells its original can be read")
    average, recall = (100 * np.mean(worth, axis=0)).tolist()
    return CopiesResult(
        map=average, recall1=recall, copies=len(worth), skipped=len(queries) - len(worth),
        originals=len(kept[folders[0]]), distractors=len(kept["distractors"]), whitening=len(kept["whitening"]),
        broken={f"{name}/{picture}": why for name, one in found.items() for picture, why in one.broken.items()},
    )  # fmt: skip


def copy_vector(encoder: Encoder, image: Tensor, *, size: int) -> Tensor:
    """[class token ; generalised mean of the patch tokens], 2 D numbers, of a picture uint8 [C, H, W] as a square of
    `size` px (the next multiple of the patch size below)."""
    patch = patch_of(encoder)
    tokens = tokens_of(encoder, inputs(encoder, resize(image, max(patch, size // patch * patch))[None]))
    return torch.cat([tokens.cls[0].float(), generalised_mean(patch_maps(encoder, tokens)[0].flatten(0, 1))])


def generalised_mean(patches: Tensor) -> Tensor:
    """[P, D] -> [D]: the fourth root of the mean fourth power of what is above 0 (GeM, Radenović et al. 2018)."""
    return patches.clamp(min=LEAST).pow(POWER).mean(0).pow(1 / POWER)


def whitening_of(vectors: Tensor) -> Callable[[Tensor], Tensor]:
    """[n, D] -> float32 [n, D]: takes off the mean of the pictures' vectors [N, D] that it is learned from, and brings
    the directions in which these vary to variance 1. Raises InputError for fewer than two."""
    if len(vectors) < 2:
        raise InputError("whitening is learned from many pictures, more than a vector has numbers; received one")
    vectors = vectors.double()
    mean = vectors.mean(0)
    centred = vectors - mean
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(vectors))
    axes = axes / variances.clamp(min=float(variances.max()) * FLOOR).sqrt()
    return lambda others: ((others.double() - mean) @ axes).float()


def layout_at(data: str | Path) -> tuple[str, str] | None:
    """The folders of originals and of copies, or None where there are none."""
    root = Path(data).expanduser()
    return next((names for names in LAYOUTS if all((root / name).is_dir() for name in names)), None)


def pictures_in(data: str | Path, names: Sequence[str]) -> dict[str, FileSource]:
    """The pictures of each subfolder, none where there is no such folder. Those of more than 8 bits are all scaled as
    the first one's."""
    found: dict[str, FileSource] = {}
    for name in names:
        folder = Path(data).expanduser() / name
        store = FolderStore.walk(folder, every_name=True) if folder.is_dir() else FolderStore(folder, [])
        found[name] = FileSource(name, store, store.names)
        found[name].scale = found[names[0]].scale
    return found


def originals_of(copied: Sequence[str], originals: Sequence[str], *, letters: int | None) -> list[Ranks]:
    """Positions of the originals of each copy. letters: how many first ones of their names tell; unless given, a copy's
    name begins with the whole of its original's."""
    positions: dict[str, list[int]] = {}
    for i, name in enumerate(originals):
        positions.setdefault(PurePosixPath(name).stem[:letters], []).append(i)

    def found(name: str) -> list[int]:
        stem = PurePosixPath(name).stem[:letters]
        starts = [stem] if letters else (stem[:length] for length in range(len(stem), 0, -1))
        return next((positions[start] for start in starts if start in positions), [])

    return [np.array(found(name), dtype=np.int64) for name in copied]
