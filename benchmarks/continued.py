"""Continued pretraining: an encoder trained on half of the classes goes on with the other half, or with images of
another kind, beside one of the same size that starts from random weights there. Does k-NN on the new images rise, and
does it ever fall below where it began?

    python benchmarks/continued.py path/to/imagenette128 --minutes 5 --jobs 2
    python benchmarks/continued.py path/to/imagenette128 --minutes 5 --to fashion-mnist --steps 600 --jobs 2

DATA is a folder with train/CLASS and val/CLASS; --to is any DATA of `simdino pretrain` with labels. With --steps both
runs on the new images have as many. Prints a Markdown table and stores benchmarks/results/continued.json
with the machine's description.
"""

from __future__ import annotations

import argparse
import json
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


def sizes(run: Path) -> list[str]:
    """The words that give random weights the encoder, crops and channels of a finished run."""
    config = json.loads((run / "config.json").read_text())["config"]
    encoder, side = config["encoder"], config["views"]["global_size"]
    words = {"encoder": encoder["name"], "patch-size": encoder["patch_size"], "image-size": side}
    words["channels"] = config["data"]["channels"]
    return [part for name, value in words.items() for part in (f"--{name}", str(value))]


def main() -> None:
    """Train on the first half, then on the second or on other images, with and without what was learned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0, help="of each run")
    parser.add_argument("--to", metavar="DATA", help="other images to go on with  [default: the second half]")
    parser.add_argument("--steps", type=int, help="of each run on the new images, instead of minutes")
    parser.add_argument("--settings", default="", metavar="WORDS", help="more words for the continued run, as one")
    parser.add_argument("--runs", type=Path, default=Path("runs/continued"), help="run folders; finished are reused")
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    if not (given.data / SPLITS[0]).is_dir():
        raise SystemExit(f"{given.data} has no folder {SPLITS[0]}: give a folder with train/CLASS and val/CLASS")
    first, second = halves(given.data, given.runs / "data")
    minutes = ["--minutes", str(given.minutes)]
    length = minutes if given.steps is None else ["--steps", str(given.steps)]

    def job(start: str, where: str, data: str, words: list[str]) -> Job:
        settings = given.settings if start == "first half" else ""
        name = {"data": given.data.name, "trained on": where, "starts from": start, "settings": settings}
        return Job(name=name, data=data, words=[*words, "--threads", "1"], folder=given.runs)

    where, data = ("second half", str(second)) if given.to is None else (given.to, given.to)
    before = job("random weights", "first half", str(first), minutes)
    rows = train_all([before], at_once=1)
    if "steps" not in rows[0]:
        raise SystemExit(f"the first half: {rows[0]['verdict']}")
    same = sizes(before.out)
    crops = same[same.index("--image-size") :][:2]
    init = ["--init", str(before.out), "--guard", "0", *crops, *given.settings.split()]  # to the end, however low
    after = [
        job("random weights", where, data, [*length, *same]),
        job("first half", where, data, [*length, *init]),
    ]
    rows += train_all(after, at_once=given.jobs)
    columns = {"steps": "steps", "k-NN at the start": "random", "lowest": "lowest", "best": "best", "end": "knn"}
    columns |= {"alignment": "alignment", "expansion": "expansion_fraction", "verdict": "verdict"}
    keep("continued", rows, keys=tuple(before.name), columns=columns)


if __name__ == "__main__":
    main()
