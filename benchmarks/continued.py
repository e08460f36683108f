"""Continued pretraining: an encoder trained on half of the classes goes on with the other half, beside one that starts
from random weights there. Does k-NN on the new images rise, and does it ever fall below where it began?

    python benchmarks/continued.py path/to/imagenette128 --minutes 5 --jobs 2

DATA is a folder with train/CLASS and val/CLASS. Prints a Markdown table and stores benchmarks/results/continued.json
with the machine's description.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rows import keep

from runs import Job, train_all

SPLITS = ("train", "val")


def halves(data: Path, out: Path) -> tuple[Path, Path]:
    """Two folders of links, to the first and to the second half of the classes."""
    names = sorted(folder.name for folder in (data / SPLITS[0]).iterdir() if folder.is_dir())
    middle = len(names) // 2
    found = []
    for half, classes in (("first", names[:middle]), ("second", names[middle:])):
        for split in SPLITS:
            (out / half / split).mkdir(parents=True, exist_ok=True)
            for name in classes:
                link = out / half / split / name
                if not link.exists():
                    link.symlink_to((data / split / name).resolve())
        found.append(out / half)
    return found[0], found[1]


def main() -> None:
    """Train on the first half, then on the second with and without what was learned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0, help="of each run")
    parser.add_argument("--settings", default="", metavar="WORDS", help="more words for the continued run, as one")
    parser.add_argument("--runs", type=Path, default=Path("runs/continued"), help="run folders; finished are reused")
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    if not (given.data / SPLITS[0]).is_dir():
        raise SystemExit(f"{given.data} has no folder {SPLITS[0]}: give a folder with train/CLASS and val/CLASS")
    first, second = halves(given.data, given.runs / "data")
    length = ["--minutes", str(given.minutes), "--threads", "1"]

    def job(start: str, data: Path, words: list[str]) -> Job:
        settings = given.settings if start == "first half" else ""
        name = {"data": given.data.name, "trained on": f"{data.name} half", "starts from": start, "settings": settings}
        return Job(name=name, data=str(data), words=[*length, *words], folder=given.runs)

    before = job("random weights", first, [])
    after = job("first half", second, ["--init", str(before.out), *given.settings.split()])
    rows = train_all([before, job("random weights", second, [])], at_once=given.jobs) + train_all([after], at_once=1)
    columns = {"steps": "steps", "k-NN at the start": "random", "lowest": "lowest", "best": "best", "end": "knn"}
    columns |= {"alignment": "alignment", "expansion": "expansion_fraction", "verdict": "verdict"}
    keep("continued", rows, keys=tuple(before.name), columns=columns)


if __name__ == "__main__":
    main()
