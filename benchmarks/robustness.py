"""Does it collapse? SimDINO with nothing tuned over batches and learning rates, for three encoders (the default one, a
small ViT and CRATE), DINO beside it; then eps² and the weight of the rate on one setting.

    python benchmarks/robustness.py path/to/imagenette128 --jobs 2

Every run sees the same number of images: some 90 seconds for a ViT on one thread, its two evaluations included.
Prints a Markdown table and stores benchmarks/results/robustness.json with the machine's description.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import Any

from rows import keep

from runs import Job, train_all
from simdino.data.sources import open_dataset
from simdino.data.survey import survey_training_images
from simdino.options import Options
from simdino.recipes import resolve

BATCHES, RATES = (16, 64, 256), (0.3, 1.0, 3.0)
CORNERS = tuple(product((16, 256), (0.3, 3.0)))
EPS2 = (0.02, 0.1, 0.3, 1.0)
WEIGHTS = (1 / 3, 3.0)


def settings() -> list[dict[str, Any]]:
    """What each run changes: method, encoder, batch, factor of the learning rate, eps², factor of the rate's weight."""
    base = {"method": "simdino", "encoder": "default", "batch": 64, "lr x": 1.0, "eps²": 0.05, "weight x": 1.0}
    grid = [{**base, "batch": batch, "lr x": rate} for batch, rate in product(BATCHES, RATES)]
    grid += [
        {**base, "encoder": encoder, "batch": batch, "lr x": rate}
        for encoder in ("vit_nano", "crate_nano")
        for batch, rate in CORNERS
    ]
    grid += [{**base, "encoder": "crate_nano"}]
    grid += [{**base, "method": "dino", "batch": batch, "lr x": rate} for batch, rate in product(BATCHES, RATES)]
    return grid + [{**base, "eps²": eps2} for eps2 in EPS2] + [{**base, "weight x": factor} for factor in WEIGHTS]


def words_of(setting: dict[str, Any], lr: float) -> list[str]:
    """The words of `simdino pretrain` for a setting; lr: the default for its batch."""
    words = ["--method", setting["method"], "--batch", str(setting["batch"]), "--lr", f"{lr * setting['lr x']:.4g}"]
    if setting["encoder"] != "default":
        words += ["--encoder", setting["encoder"]]
    if setting["method"] == "simdino":
        words += ["--eps", f"{setting['eps²'] ** 0.5:.6g}", "--rho", f"{1.5 * setting['weight x']:.4g}"]
    return words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=5120, help="that each run sees")
    parser.add_argument("--runs", type=Path, default=Path("runs/robustness"), help="run folders; finished are reused")
    parser.add_argument("--first", type=int, help="settings alone, in the order of the table: 18 are those of SimDINO")
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    facts = survey_training_images(open_dataset(given.data, "train"), given.data, max_broken=0.1)
    jobs = []
    for setting in settings()[: given.first]:
        length = max(1, given.images // setting["batch"])
        encoder = {} if setting["encoder"] == "default" else {"encoder": setting["encoder"]}
        options = Options(method=setting["method"], batch=setting["batch"], steps=length, **encoder)
        lr, steps = resolve(given.data, options, statistics=facts).optim.lr, str(length)
        words = [*words_of(setting, lr), "--steps", steps, "--evaluate-every", steps, "--threads", "1"]
        name = {"data": Path(given.data).name, **setting}
        jobs.append(Job(name=name, data=given.data, words=words, folder=given.runs))
    rows = train_all(jobs, at_once=given.jobs)
    columns = {"steps": "steps", "random": "random", "k-NN": "knn", "best": "best", "effective rank": "effective_rank"}
    columns |= {"alignment": "alignment", "expansion": "expansion_fraction", "verdict": "verdict"}
    keys = tuple(jobs[0].name)
    keep("robustness", rows, keys=keys, columns=columns)


if __name__ == "__main__":
    main()
