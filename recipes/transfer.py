"""Pretrain on each of two data sets and score each encoder on both: what was learned on one, is it worth anything on
the other?

    python recipes/transfer.py fashion-mnist path/to/imagenette128 --minutes 5 --out runs/transfer

Each run is scored on its own data and on the other's beside random initialisation and raw pixels. Its folder holds a
report, and comparison.html in --out shows both side by side. A run that is there already is finished, not repeated.
"""

import argparse
from pathlib import Path

import simdino as sd
from simdino.data.sources import absolute
from simdino.options import Options
from simdino.plan import plan, run_folder
from simdino.runs.evaluations import trained_on
from simdino.show.report import write_report


def main() -> None:
    """Train, score, report."""
    words = arguments()
    data = list(dict.fromkeys(map(absolute, words.data)))
    if len(data) < 2:
        raise SystemExit("give two different data sets")
    names = [run_folder(one).name for one in data]
    if names[0] == names[1]:
        names[1] += "-2"
    folders = [Path(words.out) / name for name in names]
    for one, folder in zip(data, folders, strict=True):
        train(one, folder, Options(minutes=None if words.steps else words.minutes, steps=words.steps))

    tables = {(i, j): sd.evaluate.knn(folders[i], data[j], k=words.k).rows for i in range(2) for j in range(2)}
    pages = [write_report([folder]) for folder in folders] + [write_report(folders, Path(words.out))]
    print("\nk-NN accuracy, % (in brackets: the same encoder untrained)")
    print(f"{'':<24}" + "".join(f"{f'trained on {name}':>34}" for name in names) + f"{'raw pixels':>14}")
    for j, name in enumerate(names):
        cells = (
            f"{table['encoder'][0].top1:.1f} ({table['random initialisation'][0].top1:.1f})"
            for table in (tables[0, j], tables[1, j])
        )
        pixels = tables[j, j]["raw pixels"][0].top1
        print(f"{f'scored on {name}':<24}" + "".join(f"{cell:>34}" for cell in cells) + f"{pixels:>14.1f}")
    print("\n" + "\n".join(f"wrote {page}" for page in pages))


def arguments() -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs=2, help="any DATA of `simdino pretrain`, with labels")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, for each")
    parser.add_argument("--steps", type=int, help="of training, for each, instead of minutes")
    parser.add_argument("--k", type=int, default=20, help="neighbours that vote")
    parser.add_argument("--out", default="runs/transfer")
    return parser.parse_args()


def train(data: str, folder: Path, options: Options) -> None:
    """A run in the folder, from where it stands if there is one."""
    if not (folder / "config.json").exists():
        run = sd.pretrain(plan(data, options, folder), folder)
    elif absolute(str(trained_on(folder).root)) == data:
        run = sd.resume(folder)
    else:
        raise SystemExit(f"{folder} was trained on other data ({trained_on(folder).root}): give another --out")
    print("\n".join(run.lines()))
    if run.interrupted is not None:
        raise SystemExit("stopped; the same command goes on")


if __name__ == "__main__":
    main()
