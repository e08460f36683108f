"""The demo: pretrain on Fashion-MNIST (scattered digits where that cannot be had), score it, write a page about it.

    python recipes/demo.py --minutes 2.2 --out runs/demo

Two laptop cores and four minutes give the numbers in the README; more minutes give better ones.
"""

import argparse
from pathlib import Path

import simdino as sd
from simdino.data.builtin import demo_data
from simdino.options import Options
from simdino.plan import plan
from simdino.show.report import write_report

SHARE = {"digits": 1 / 3, "scattered-digits": 1.4}
"""What some sets take of the minutes: beside them Fashion-MNIST has 70,000 images to evaluate, these a few thousand."""

SETTINGS = {"scattered-digits": {"views.flip": 0.0}}
"""What some sets need: a digit in a mirror is none."""


def main() -> None:
    """Train, score, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="any DATA of `simdino pretrain`; chosen for you otherwise")
    parser.add_argument("--minutes", type=float, default=2.2, help="of training; see SHARE")
    parser.add_argument("--out", default="runs/demo")
    words = parser.parse_args()

    data, reason = (words.data, "as asked") if words.data else demo_data()
    print(f"demo on {data}: {reason}")
    minutes = SHARE.get(data, 1.0) * words.minutes
    run = sd.pretrain(plan(data, Options(SETTINGS.get(data), minutes=minutes), words.out), words.out)
    print("\n".join(run.lines()))
    if run.interrupted is not None:
        raise SystemExit(f"stopped; go on with: simdino pretrain --resume {words.out}")
    print("\nk-NN of the validation images, all training images as the bank:")
    print("\n".join(f"  {line}" for line in sd.evaluate.knn(words.out, data).lines()))
    write_report([Path(words.out)])  # again, with these scores


if __name__ == "__main__":
    main()
