"""k-NN for minutes of training: ours in half the time of the textbook's SimDINO, and lightly-train's DINO beside them.

    pip install -r benchmarks/requirements.txt
    python benchmarks/time_to_accuracy.py fashion-mnist path/to/imagenette128 --minutes 10 --seeds 0 1 --jobs 2

The same images, encoder, size of images and batch of 64 for all; each run has `--threads` threads, `--jobs` run at
once. Ours is `simdino pretrain` as it comes, with the views that our table has for such images, evaluations included
in its minutes. The textbook's (`textbook.py`) is eager float32 with PIL views, two global and ten local crops, the
learning rate, weight decay, momentum and weight of the rate of the released code, following the clock.
lightly-train's is its DINO with all that it chooses itself (8 views, SGD, float32 on a CPU, prototypes frozen at
first), as many steps as fill the time. So the three differ in more than speed: each is what a person gets who asks
for nothing else. k-NN (k = 20) of the teacher's class token, the whole training set as bank, by the same code. Prints
a Markdown table and stores benchmarks/results/time_to_accuracy.json; finished runs are reused.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count, product
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from textbook import MEAN, STD, Network, Step, Views
from timing import store
from torch import Tensor

import simdino as sd
from simdino.config import Config
from simdino.contracts import Preprocess
from simdino.data.sources import open_dataset
from simdino.models.catalogue import kind_of, make_encoder
from simdino.models.encoder import Encoder
from simdino.runs.folder import source_revision
from simdino.saved import read_rows

LOCAL = 96 / 224  # the side of DINO's local crops, of a global crop's


def local_size(config: Config) -> int:
    """DINO's local crops at this size of images, a multiple of the patch."""
    patch, size = config.encoder.patch_size, config.views.global_size
    return max(patch, round(size * LOCAL / patch) * patch)


def ours(config: Config, out: Path, *, minutes: float, seed: int, threads: int) -> tuple[Encoder, int, float]:
    """`simdino pretrain` as it comes."""
    started = time.perf_counter()
    words = ["--minutes", str(minutes), "--seed", str(seed), "--threads", str(threads), "--out", str(out / "run")]
    subprocess.run([sys.executable, "-m", "simdino", "pretrain", config.data.root, *words], check=True)
    seconds = time.perf_counter() - started
    return sd.load_encoder(out / "run"), read_rows(out / "run" / "metrics.jsonl")[-1]["step"], seconds


def textbook(config: Config, out: Path, *, minutes: float, seed: int, threads: int) -> tuple[Encoder, int, float]:
    """The plain step on plain views, settings of the released code."""
    torch.manual_seed(seed)
    random.seed(seed)
    released = sd.recipes.auto(config.data.root, recipe="simdino_vits16_released", batch=config.run.batch, steps=1000)
    network = Network("vit_tiny_patch16_224", hidden=config.projector.hidden_dim, **timm_shape(config))
    step = Step(network, fused=False, bfloat16=False, weight=1 / config.run.batch + 1 / config.projector.out_dim)
    views = Views(size=config.views.global_size, local_size=local_size(config), local_views=10)
    started, done = time.perf_counter(), 0
    for done, images in enumerate(batches(config)):  # noqa: B007
        share = (time.perf_counter() - started) / (60 * minutes)
        if share >= 1:
            break
        wave = 0.5 * (1 + math.cos(math.pi * share))
        for group in step.optimizer.param_groups:
            group["lr"] = released.optim.lr * min(share / released.optim.warmup, wave)
            group["weight_decay"] = 0.4 + (0.04 - 0.4) * wave
        step.momentum = 1 - (1 - 0.996) * wave
        step([torch.stack(view) for view in zip(*map(views.of, images), strict=True)])
    return as_ours(config, step.teacher.encoder.state_dict()), done, time.perf_counter() - started


def batches(config: Config) -> Iterator[list[Image.Image]]:
    """Shuffled batches of decoded images, for ever."""
    source = open_dataset(config.data.root, "train")
    for _ in count():
        order = random.sample(range(len(source)), len(source))
        for start in range(0, len(order) - config.run.batch + 1, config.run.batch):
            ids = order[start : start + config.run.batch]
            yield [Image.fromarray(source.read(i, 3).permute(1, 2, 0).numpy()) for i in ids]


def timm_shape(config: Config) -> dict[str, Any]:
    """The encoder's shape in timm's words."""
    encoder = kind_of(config.encoder.name).complete(config.encoder)
    sizes = {"embed_dim": encoder.embed_dim, "depth": encoder.depth, "num_heads": encoder.num_heads}
    return {**sizes, "image_size": encoder.image_size, "patch_size": encoder.patch_size}


def as_ours(config: Config, weights: dict[str, Tensor]) -> Encoder:
    """A ViT of timm's in our encoder, which has the same names, to be scored by the same code."""
    size = config.views.global_size
    encoder = make_encoder(
        replace(config.encoder, drop_path=0.0), Preprocess(resize=size, crop=size, channels=3, mean=MEAN, std=STD)
    )
    encoder.load_state_dict({name: value for name, value in weights.items() if not name.startswith("head.")})
    return encoder


def lightly_train(config: Config, out: Path, *, minutes: float, seed: int, threads: int) -> tuple[Encoder, int, float]:
    """lightly-train's DINO: some steps to see how long one takes, then as many as fill the time."""
    images = Path(config.data.root) / "train"
    if not images.is_dir():
        images = written(config, out / "images")
    pilot = pretrain_lightly(config, images, out / "pilot", seed=seed, steps=12)
    steps = int(60 * minutes / ((pilot[-1] - pilot[3]) / (len(pilot) - 4)))
    ends = pretrain_lightly(config, images, out / "run", seed=seed, steps=steps)
    weights = torch.load(out / "run" / "exported_models" / "exported_last.pt", weights_only=True)
    return as_ours(config, weights), len(ends), ends[-1] - ends[0]


def pretrain_lightly(config: Config, images: Path, out: Path, *, seed: int, steps: int) -> list[float]:
    """One call of its `pretrain`; the moments at which steps ended."""
    os.environ["LIGHTLY_TRAIN_EVENTS_DISABLED"] = "1"
    import lightly_train as theirs  # noqa: PLC0415
    from lightly_train._methods.dino.dino import DINO  # noqa: PLC0415

    moments: list[float] = []
    DINO.on_train_batch_end = lambda *_: moments.append(time.perf_counter())
    shape = timm_shape(config)
    size, local = shape.pop("image_size"), local_size(config)
    theirs.pretrain(
        out=str(out), data=str(images), model="timm/vit_tiny_patch16_224", method="dino", seed=seed,
        model_args={**shape, "img_size": size, "dynamic_img_size": True}, batch_size=config.run.batch,
        transform_args={"image_size": (size, size), "local_view": {"view_size": (local, local)}},
        num_workers=0, accelerator="cpu", epochs=1000, trainer_args={"max_steps": steps},
    )  # fmt: skip
    return moments


def written(config: Config, folder: Path) -> Path:
    """The training images as PNG files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    source = open_dataset(config.data.root, "train")
    for i in range(len(source)):
        Image.fromarray(source.read(i, 3).permute(1, 2, 0).numpy()).save(folder / f"{i:06d}.png", compress_level=1)
    return folder


CASES = {"ours, half the time": ours, "textbook": textbook, "lightly-train, DINO": lightly_train}


def one(case: str, data: str, out: Path, given: argparse.Namespace) -> None:
    """Train and score one case in this process; its row is written last."""
    torch.set_num_threads(given.threads)
    minutes = given.minutes / 2 if CASES[case] is ours else given.minutes
    config = sd.recipes.auto(data)
    encoder, steps, seconds = CASES[case](config, out, minutes=minutes, seed=given.seeds[0], threads=given.threads)
    score = sd.evaluate.knn(encoder, data, k=20, baselines=False).encoder
    row = {
        "minutes": seconds / 60, "steps": steps, "k-NN": score.top1, "encoder": config.encoder.name,
        "source_revision": source_revision(),
    }  # fmt: skip
    (out / "row.json").write_text(json.dumps(row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--runs", type=Path, default=Path("runs/time_to_accuracy"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(given.only[0], given.data[0], given.one, given)
        return

    def row(job: tuple[str, int, str]) -> dict[str, Any]:
        data, seed, case = job
        name = {"data": Path(data).name, "seed": seed, "run": case}
        length = f"{given.minutes:g}min-{given.threads}threads"
        out = given.runs / f"{Path(data).name}-{seed}-{case.partition(',')[0]}-{length}"
        if not (out / "row.json").exists():
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            words = ["--one", str(out), "--only", case, "--seeds", str(seed)]
            words += ["--minutes", str(given.minutes), "--threads", str(given.threads)]
            with (out / "log.txt").open("w") as log:
                subprocess.run([sys.executable, __file__, data, *words], check=True, stdout=log, stderr=log)
        return {**name, **json.loads((out / "row.json").read_text())}

    with ThreadPoolExecutor(given.jobs) as pool:
        rows = list(pool.map(row, product(given.data, given.seeds, given.only)))
    settings = {"minutes": given.minutes, "threads": given.threads, "jobs": given.jobs}
    store("time_to_accuracy", settings, rows, keys=("data", "seed", "run"))


if __name__ == "__main__":
    main()
