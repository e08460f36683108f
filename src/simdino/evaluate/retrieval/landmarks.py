"""Landmark retrieval on revisited Oxford and Paris (Radenović et al. 2018): easy, medium and hard, as in DINO's
eval_image_retrieval.py at 7c446df.

DIR/gnd_roxford5k.pkl, DIR/jpg/NAME.jpg     or the same in the one subfolder of DIR that has a gnd_*.pkl
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from simdino.contracts import InputError
from simdino.data.plain_pickle import read_plain_pickle
from simdino.data.sources import FileSource
from simdino.data.stores import FolderStore
from simdino.data.views import resize
from simdino.evaluate.retrieval import LONG_SIDE
from simdino.evaluate.retrieval.ranking import described, orders, precision_at, ranks_of, trapezoid_precision
from simdino.features.extract import inputs, tokens_of
from simdino.feedback import Progress, no_bar
from simdino.models.encoder import Encoder
from simdino.result import Result

GROUND_TRUTH = "gnd_*.pkl"
KINDS = ("easy", "hard", "junk")
SCALES = (1.0, 0.5**0.5, 0.5)
AT = (1, 5, 10)
SETUPS = ("easy", "medium", "hard")

Positions = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Positions in the database of a query's answers."""

    easy: Positions
    hard: Positions
    junk: Positions

    def setups(self) -> list[tuple[str, Positions, Positions]]:
        """(setup, right answers, junk): what is junk is neither right nor wrong."""
        return [
            ("easy", self.easy, np.concatenate([self.junk, self.hard])),
            ("medium", np.concatenate([self.easy, self.hard]), self.junk),
            ("hard", self.hard, np.concatenate([self.junk, self.easy])),
        ]


@dataclass(frozen=True, kw_only=True)
class Landmarks:
    """A database, the queries to it, and the truth about each."""

    name: str
    database: FileSource
    queries: FileSource
    truth: list[Truth]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One of easy, medium and hard, in percent, means over its queries."""

    map: float  # mean average precision by the trapezoid rule
    precision: dict[int, float]  # at 1, 5 and 10, or down to the last right answer where it comes sooner
    queries: int  # those that have a right answer in this setup; the others are skipped


@dataclass(frozen=True, kw_only=True)
class LandmarksResult(Result):
    """Scores of a set of landmarks; None for a setup in which no query has a right answer."""

    name: str
    easy: Setup | None
    medium: Setup | None
    hard: Setup | None
    queries: int
    database: int  # pictures ranked
    broken: dict[str, str]  # pictures left out, and why: in the database they are never found

    def __str__(self) -> str:
        told = ", ".join(
            f"{name} mAP {one.map:.2f} % (mP@10 {one.precision[10]:.1f} %, {one.queries} queries)"
            for name in SETUPS
            if (one := getattr(self, name)) is not None
        )
        return f"{told or 'no query has a right answer'}, {self.database} pictures of {self.name}"


def landmarks(
    encoder: Encoder, data: str | Path, *, size: int = LONG_SIDE, multiscale: bool = False, progress: Progress = no_bar
) -> LandmarksResult:
    """Rank a database of buildings for each query by the cosine of class tokens.

    size: long side in pixels; a picture keeps its proportions and is never enlarged. multiscale: mean of the class
    tokens at 1, 1/√2 and 1/2 of it. Queries are whole pictures, as in DINO: their boxes are not cut out. progress:
    given the pictures.

    Raises InputError for another layout, missing pictures, and a ground truth that holds more than plain values."""
    found = open_landmarks(data)
    vector_of = partial(landmark_vector, size=size, scales=SCALES if multiscale else (1.0,))
    database = described(encoder, found.database, vector_of, what=f"pictures of {found.name}", progress=progress)
    queries = described(encoder, found.queries, vector_of, what="queries", progress=progress)
    positions = np.array(database.kept)
    worth: dict[str, list[list[float]]] = {name: [] for name in SETUPS}
    for i, order in zip(queries.kept, orders(database.vectors, queries.vectors), strict=True):
        for name, right, junk in found.truth[i].setups():
            if len(right):
                ranks = ranks_of(positions[order], right, junk)
                worth[name].append([trapezoid_precision(ranks, len(right)), *(precision_at(ranks, k) for k in AT)])
    setups = {name: setup(rows) for name, rows in worth.items()}
    return LandmarksResult(
        name=found.name, **setups, queries=len(queries.kept), database=len(positions),
        broken=database.broken | queries.broken,
    )  # fmt: skip


def setup(rows: list[list[float]]) -> Setup | None:
    """Means over queries of [average precision, precision at 1, 5, 10]."""
    if not rows:
        return None
    average, *at = (100 * np.mean(rows, axis=0)).tolist()
    return Setup(map=average, precision=dict(zip(AT, at, strict=True)), queries=len(rows))


def landmark_vector(encoder: Encoder, image: Tensor, *, size: int, scales: Sequence[float]) -> Tensor:
    """The class token [D] of a whole picture uint8 [C, H, W], its long side at most `size` px; of several scales the
    mean. Sides are cut at the right and below to multiples of the patch size, as DINO's patch embedding does."""
    pixels = inputs(encoder, thumbnail(image, size)[None])
    scaled = (at_scale(pixels, scale, encoder.patch_size or 1) for scale in scales)
    return torch.stack([tokens_of(encoder, one, patches=False).cls[0].float() for one in scaled]).mean(0)


def thumbnail(image: Tensor, size: int) -> Tensor:
    """uint8 [C, H, W] with its long side brought down to `size` px, in proportion; a smaller one as it is."""
    height, width = image.shape[1:]
    long = max(height, width)
    if long <= size:
        return image
    return resize(image, (max(1, round(height * size / long)), max(1, round(width * size / long))))


def at_scale(pixels: Tensor, scale: float, patch: int) -> Tensor:
    """[1, C, H, W] made smaller and cut to whole patches, one at least each way."""
    sides = [max(patch, int(side * scale)) for side in pixels.shape[2:]]
    if sides != list(pixels.shape[2:]):
        pixels = F.interpolate(pixels, sides, mode="bilinear", align_corners=False)
    return pixels[..., : sides[0] // patch * patch, : sides[1] // patch * patch]


def ground_truths(root: str | Path) -> list[Path]:
    """The files of ground truth in a folder or right below it."""
    path = Path(root).expanduser()
    return sorted(path.glob(GROUND_TRUTH)) or sorted(path.glob(f"*/{GROUND_TRUTH}"))


def open_landmarks(root: str | Path) -> Landmarks:
    """The one set at `root`. Raises InputError for none, for several, for a ground truth of another form, and where
    pictures that it names are missing: with fewer to be found, a score would compare with no other."""
    found = ground_truths(root)
    if not found:
        raise InputError(f"data: '{root}' has no {GROUND_TRUTH}; expected DIR/gnd_roxford5k.pkl and DIR/jpg/NAME.jpg")
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(Path(root).expanduser())) for path in found)
        raise InputError(f"data: '{root}' has several ground truths ({names}); give the folder of one")
    path = found[0]
    name, pictures = path.parent.name, path.parent / "jpg"
    database, queries, truth = checked(read_plain_pickle(path), path)
    named = dict.fromkeys([*database, *queries])
    missing = [file for file in named if not (pictures / file).is_file()]
    if missing:
        raise InputError(
            f"data: '{pictures}' lacks {len(missing):,} of the {len(named):,} pictures that {path.name} names: "
            + ", ".join(missing[:3])
        )
    sources = [FileSource(name, FolderStore(pictures, files), files) for files in (database, queries)]
    sources[1].scale = sources[0].scale
    return Landmarks(name=name, database=sources[0], queries=sources[1], truth=truth)


def checked(told: Any, path: Path) -> tuple[list[str], list[str], list[Truth]]:
    """Files of the database and of the queries, and the truth. Raises InputError for another form."""
    try:
        names = [[f"{name}.jpg" for name in told[part]] for part in ("imlist", "qimlist")]
        answers = [[np.array(one[kind], dtype=np.int64).reshape(-1) for kind in KINDS] for one in told["gnd"]]
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        raise InputError(
            f"{path} is no revisited ground truth: expected imlist, qimlist, and in gnd easy, hard and junk of a query"
        ) from None
    if len(answers) != len(names[1]) or not answers:
        raise InputError(f"{path} has {len(names[1])} queries and the truth about {len(answers)}")
    if any(((it < 0) | (it >= len(names[0]))).any() for one in answers for it in one):
        raise InputError(f"{path} names answers beyond its {len(names[0])} pictures")
    if any(".." in Path(name).parts or Path(name).is_absolute() for files in names for name in files):
        raise InputError(f"{path} names pictures outside its folder")
    return names[0], names[1], [Truth(easy=easy, hard=hard, junk=junk) for easy, hard, junk in answers]
