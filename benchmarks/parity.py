"""Ours beside the authors' own code, in float64: schedules, parameter groups, weights, losses, views, masks, k-NN and
whole optimizer steps. Optional: it needs clones of their repositories, none of whose lines are ours.

    git clone https://github.com/facebookresearch/dino official/dino
    git clone https://github.com/facebookresearch/dinov2 official/dinov2
    git clone https://github.com/RobinWu218/SimDINO official/SimDINO
    python benchmarks/parity.py --official official

Prints the largest difference of each row, stores benchmarks/results/parity.json, and ends with 1 where one is above
its tolerance. What is left out of it, and why, is in docs/parity.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from official_code import CLONES, first_family, one_process, second_family, stand_in
from parity_first import check_first
from parity_parts import check_knn, check_masks, check_views
from parity_second import check_second
from rows import Row, keep


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, required=True, metavar="DIR", help="holds dino, dinov2 and SimDINO")
    folder = parser.parse_args().official
    missing = [name for name in CLONES if not (folder / name).is_dir()]
    if missing:
        print(f"left out: {folder} has no clone of {', '.join(missing)}")
        return
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    stand_in()
    rows: list[Row] = []

    def note(part: str, what: str, apart: float, tolerance: float) -> None:
        rows.append({"part": part, "what": what, "largest": float(apart), "tolerance": tolerance})

    with tempfile.TemporaryDirectory() as scratch, one_process(Path(scratch)):
        dino, simdino = first_family(folder / "dino"), first_family(folder / "SimDINO" / "simdino")
        check_first(dino, "dino", note, Path(scratch))
        check_first(simdino, "simdino", note, Path(scratch))
        dinov2 = second_family(folder / "dinov2", "dinov2", "ssl_meta_arch")
        check_second(dinov2, "dinov2", note, Path(scratch))
        simdinov2 = second_family(folder / "SimDINO", "simdinov2", "ssl_meta_arch_sim")
        check_second(simdinov2, "simdinov2", note, Path(scratch))
        check_views(dino.utils, dinov2.transforms, note)
        check_masks(dinov2.masking, note)
        check_knn(dino.eval_knn, note)
    columns = {"part": "part", "what": "what", "largest difference": "largest", "tolerance": "tolerance"}
    keep("parity", rows, keys=(), columns=columns)
    above = [f"{row['part']}, {row['what']}" for row in rows if not row["largest"] <= row["tolerance"]]
    if above:
        sys.exit("above the tolerance: " + "; ".join(above))


if __name__ == "__main__":
    main()
