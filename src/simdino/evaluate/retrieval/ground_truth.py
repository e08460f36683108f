"""Revisited Oxford and Paris (Radenović et al. 2018): pictures, queries, and which answers are right.

DIR/gnd_roxford5k.pkl, DIR/jpg/NAME.jpg     or the same in the one subfolder of DIR that has a gnd_*.pkl
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simdino.contracts import InputError
from simdino.data.plain_pickle import read_plain_pickle
from simdino.data.sources import FileSource
from simdino.data.stores import FolderStore

GROUND_TRUTH = "gnd_*.pkl"
KINDS = ("easy", "hard", "junk")


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Positions in the database of a query's answers, int64 each."""

    easy: NDArray[np.int64]
    hard: NDArray[np.int64]
    junk: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Landmarks:
    """A database, the queries to it, and the truth about each."""

    name: str
    database: FileSource
    queries: FileSource
    truth: list[Truth]


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
    return Landmarks(
        name=name,
        database=FileSource(name, FolderStore(pictures, database), database),
        queries=FileSource(name, FolderStore(pictures, queries), queries),
        truth=truth,
    )


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
