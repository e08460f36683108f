"""The record page: k-NN for minutes of self-supervised learning, each entry a command that anyone can run.

    pip install -r benchmarks/requirements.txt
    python benchmarks/records.py fashion-mnist path/to/imagenette128 --minutes 10 --seeds 0 1 2

Rules. The data are a set's training images without labels, nothing else: no weights from elsewhere. The budget is a
time on `--threads` threads of one machine, from the first image to the last step, evaluations on the way included. The
score is k-NN (k = 20) of the validation images with all training images as bank, by the same code for all. One
command for all data; nothing is tuned to a set but what follows its images by itself. FLOPs are those of the matrix
products and convolutions of one step, forward and backward, times the steps.

    ours            simdino pretrain DATA --minutes N
    ours, before    what that was before ConvNets and Muon: a small ViT, AdamW, an average as teacher
    textbook        SimDINO as written in the paper (`textbook.py`): the same ViT, eager, PIL views, two global and ten
                    local crops, the released code's settings, following the clock
    EMP-SSL         Tong et al. 2023, arXiv 2304.03977, from the paper: a ResNet-18, 20 patches of 32 px an image, their
                    mean as target, LARS
    lightly-train   its DINO with all that it chooses itself, the same ViT, as many steps as fill the time

Each is what a person gets who asks for nothing else. Prints a Markdown table and stores
benchmarks/results/records.json; finished runs are reused. Data that cannot be had are skipped with a line.
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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count, product
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image, ImageOps
from textbook import MEAN, STD, Blur, Network, Step, Views, coding_rate
from timing import store
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms as v1

import simdino as sd
from simdino.assembly import build
from simdino.config import Config, EncoderConfig
from simdino.contracts import Preprocess, Tokens
from simdino.data.sources import open_dataset
from simdino.models.catalogue import kind_of, make_encoder
from simdino.models.encoder import Encoder
from simdino.runs.folder import source_revision
from simdino.saved import read_metadata, read_rows
from simdino.train.flops import flops_of_step
from simdino.train.parallel import Processes

Trained = tuple[Encoder, int, float, float]
"""An encoder, and the steps, seconds and FLOPs that it took."""

LOCAL = 96 / 224  # the side of DINO's local crops, of a global crop's


def local_size(config: Config) -> int:
    """DINO's local crops at this size of images, a multiple of the patch."""
    patch, size = config.encoder.patch_size, config.views.global_size
    return max(patch, round(size * LOCAL / patch) * patch)


BEFORE = {
    8: ("vit_pico", 8, 2, 0.8), 28: ("vit_pico", 28, 4, 0.8), 32: ("vit_nano", 32, 4, 0.5),
    40: ("vit_nano", 32, 4, 0.5), 64: ("vit_nano", 64, 8, 0.4), 128: ("vit_nano", 128, 16, 0.4),
}  # fmt: skip
"""The defaults of d55c6ff by the size of a global crop that the images have now: encoder, size of a global crop, patch
size and least share of the image that the crop shows."""


def before(size: int) -> dict[str, Any]:
    """The settings that give the defaults of d55c6ff where a global crop has this size now."""
    encoder, side, patch, share = BEFORE[size]
    return {
        "encoder.name": encoder, "encoder.patch_size": patch, "views.global_size": side,
        "views.global_scale": (share, 1.0), "projector.layers": 3, "optim.optimizer": "adamw", "optim.teacher": "ema",
    }  # fmt: skip


def ours(config: Config, out: Path, *, minutes: float, seed: int, threads: int, words: Sequence[str] = ()) -> Trained:
    """`simdino pretrain` as it comes, or with a few words."""
    started = time.perf_counter()
    given = ["--minutes", str(minutes), "--seed", str(seed), "--threads", str(threads), "--out", str(out / "run")]
    subprocess.run([sys.executable, "-m", "simdino", "pretrain", config.data.root, *given, *words], check=True)
    seconds = time.perf_counter() - started
    steps = read_rows(out / "run" / "metrics.jsonl")[-1]["step"]
    training = build(read_metadata(out / "run").config, Processes())
    return sd.load_encoder(out / "run"), steps, seconds, steps * flops_of_step(training)


def ours_before(config: Config, out: Path, **how: Any) -> Trained:
    """The same with the defaults that it had."""
    settings = before(config.views.global_size).items()
    words = (f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}" for name, value in settings)
    return ours(config, out, **how, words=[word for one in words for word in ("--set", one)])


def textbook(config: Config, out: Path, *, minutes: float, seed: int, threads: int) -> Trained:
    """The plain step on plain views, settings of the released code."""
    released = sd.recipes.auto(config.data.root, recipe="simdino_vits16_released", batch=config.run.batch, steps=1000)
    network = Network("vit_tiny_patch16_224", hidden=config.projector.hidden_dim, **timm_shape(config))
    step = Step(network, fused=False, bfloat16=False, weight=1 / config.run.batch + 1 / config.projector.out_dim)
    views = Views(size=config.views.global_size, local_size=local_size(config), local_views=10)

    def follow(share: float, images: list[Image.Image]) -> None:
        wave = 0.5 * (1 + math.cos(math.pi * share))
        for group in step.optimizer.param_groups:
            group["lr"] = released.optim.lr * min(share / released.optim.warmup, wave)
            group["weight_decay"] = 0.4 + (0.04 - 0.4) * wave
        step.momentum = 1 - (1 - 0.996) * wave
        step([torch.stack(view) for view in zip(*map(views.of, images), strict=True)])

    spent = for_minutes(follow, config, minutes=minutes, seed=seed)
    return as_ours(config, step.teacher.encoder.state_dict()), *spent


def for_minutes(
    step: Callable[[float, list[Image.Image]], None], config: Config, *, minutes: float, seed: int
) -> tuple[int, float, float]:
    """Call `step` with the share of the time that is over and a batch of images until all of it is. Return the steps,
    the seconds and the FLOPs, those of the first step for each."""
    torch.manual_seed(seed)
    random.seed(seed)
    started, flops = time.perf_counter(), 0.0
    for done, images in enumerate(batches(config)):
        share = (time.perf_counter() - started) / (60 * minutes)
        if share >= 1:
            return done, time.perf_counter() - started, done * flops
        if done:
            step(share, images)
            continue
        with FlopCounterMode(display=False) as counter:
            step(share, images)
        flops = float(counter.get_total_flops())
    raise AssertionError("batches come for ever")


PATCHES, PATCH, EMP_BATCH = 20, 32, 100


class EMP(nn.Module):
    """EMP-SSL's network: a ResNet-18 as for CIFAR (3 x 3 stem, no pooling after it) and a projector with batch
    normalisation, images [N, 3, 32, 32] -> unit embeddings [N, 1024] (its main.py: two layers, 4,096 hidden)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torchvision.models.resnet18(num_classes=1)
        self.net.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.net.maxpool, self.net.fc = nn.Identity(), nn.Identity()
        self.before = nn.Sequential(nn.Linear(512, 4096), nn.BatchNorm1d(4096), nn.ReLU())
        self.projector = nn.Linear(4096, 1024)

    def forward(self, images: Tensor) -> Tensor:
        """Embed the patches."""
        return F.normalize(self.projector(self.before(self.net(images))), dim=-1)


class EMPEncoder(Encoder):
    """Its features, averaged over a grid of patches of an image as the paper evaluates: images -> class token [N, 512]
    of the ResNet (the paper's is of 4,096 channels before the last layer of its projector)."""

    def __init__(self, network: EMP, size: int) -> None:
        super().__init__()
        self.network, self.embed_dim, self.patch_size, self.in_chans, self.depth = network, 512, None, 3, 1
        self.config, self.preprocess = EncoderConfig(name="EMP-SSL", image_size=size), in_imagenet_colours(size)

    def forward(
        self, images: Tensor, *, keys: Tensor | None = None, masks: Tensor | None = None, patches: bool = True
    ) -> Tokens:
        """Encode the patches of a quarter of the area at 3 x 3 places."""
        side = images.shape[-1] // 2
        places = [round(i * (images.shape[-1] - side) / 2) for i in range(3)]
        parts = [images[..., top : top + side, left : left + side] for top in places for left in places]
        scaled = [F.interpolate(part, (PATCH, PATCH), mode="bilinear", antialias=True) for part in parts]
        return Tokens(cls=torch.stack([self.network.net(part) for part in scaled]).mean(0), patches=None)


def emp_ssl(config: Config, out: Path, *, minutes: float, seed: int, threads: int) -> Trained:
    """Its loss for a batch of 100 images with 20 patches each: minus the mean coding rate (eps² .2) of each patch's
    batch, minus 200 times the mean cosine of patches to the mean of their image's; LARS at .3, cosine over the time."""
    torch.manual_seed(seed)
    network = EMP()
    patch = v1.Compose([
        v1.RandomResizedCrop(PATCH, (0.25, 0.25), ratio=(1, 1)), v1.RandomHorizontalFlip(),
        v1.RandomApply([v1.ColorJitter(0.4, 0.4, 0.4, 0.2)], p=0.8), v1.RandomGrayscale(0.2), Blur(0.1),
        v1.RandomApply([v1.Lambda(ImageOps.solarize)], p=0.1), v1.ToTensor(), v1.Normalize(MEAN, STD),
    ])  # fmt: skip
    momenta = {name: torch.zeros_like(p) for name, p in network.named_parameters()}

    def follow(share: float, images: list[Image.Image]) -> None:
        views = torch.stack([torch.stack([patch(image) for image in images]) for _ in range(PATCHES)])
        z = network(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        rate = sum((coding_rate(one, eps2=0.2) for one in z), torch.zeros(())) / PATCHES
        loss = -rate - 200 * F.cosine_similarity(z, z.mean(0)[None], dim=-1).mean()
        network.zero_grad()
        loss.backward()
        lars(network, momenta, lr=0.3 * 0.5 * (1 + math.cos(math.pi * share)))

    spent = for_minutes(follow, replace(config, run=replace(config.run, batch=EMP_BATCH)), minutes=minutes, seed=seed)
    return EMPEncoder(network, config.views.global_size), *spent


@torch.no_grad()
def lars(network: nn.Module, momenta: dict[str, Tensor], *, lr: float) -> None:
    """You et al. 2017, arXiv 1708.03888: momentum .9, weight decay 1e-4, trust .005; vectors take the plain step."""
    for name, p in network.named_parameters():
        if p.grad is None:
            continue
        update = p.grad
        if p.ndim > 1:
            update = update + 1e-4 * p
            update = update * (0.005 * p.norm() / (update.norm() + 1e-8))
        p.sub_(momenta[name].mul_(0.9).add_(update), alpha=lr)


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


def in_imagenet_colours(size: int) -> Preprocess:
    """Images of this size, normalised as ImageNet is."""
    return Preprocess(resize=size, crop=size, channels=3, mean=MEAN, std=STD)


def as_ours(config: Config, weights: dict[str, Tensor]) -> Encoder:
    """A ViT of timm's in our encoder, which has the same names, to be scored by the same code."""
    size = config.views.global_size
    encoder = make_encoder(replace(config.encoder, drop_path=0.0), in_imagenet_colours(size))
    encoder.load_state_dict({name: value for name, value in weights.items() if not name.startswith("head.")})
    return encoder


def lightly_train(config: Config, out: Path, *, minutes: float, seed: int, threads: int) -> Trained:
    """lightly-train's DINO: some steps to see how long one takes, then as many as fill the time."""
    images = Path(config.data.root) / "train"
    if not images.is_dir():
        images = written(config, out / "images")
    pilot, flops = pretrain_lightly(config, images, out / "pilot", seed=seed, steps=12)
    steps = int(60 * minutes / ((pilot[-1] - pilot[3]) / (len(pilot) - 4)))
    ends, _ = pretrain_lightly(config, images, out / "run", seed=seed, steps=steps)
    weights = torch.load(out / "run" / "exported_models" / "exported_last.pt", weights_only=True)
    return as_ours(config, weights), len(ends), ends[-1] - ends[0], len(ends) * flops


def pretrain_lightly(config: Config, images: Path, out: Path, *, seed: int, steps: int) -> tuple[list[float], float]:
    """One call of its `pretrain`; the moments at which steps ended, and the FLOPs of the first."""
    os.environ["LIGHTLY_TRAIN_EVENTS_DISABLED"] = "1"
    import lightly_train as theirs  # noqa: PLC0415
    from lightly_train._methods.dino.dino import DINO  # noqa: PLC0415

    moments: list[float] = []
    counter = FlopCounterMode(display=False)

    def begun(*_: Any) -> None:
        if not moments:
            counter.__enter__()

    def ended(*_: Any) -> None:
        if not moments:
            counter.__exit__(None, None, None)
        moments.append(time.perf_counter())

    DINO.on_train_batch_start, DINO.on_train_batch_end = begun, ended
    shape = timm_shape(config)
    size, local = shape.pop("image_size"), local_size(config)
    theirs.pretrain(
        out=str(out), data=str(images), model="timm/vit_tiny_patch16_224", method="dino", seed=seed,
        model_args={**shape, "img_size": size, "dynamic_img_size": True}, batch_size=config.run.batch,
        transform_args={"image_size": (size, size), "local_view": {"view_size": (local, local)}},
        num_workers=0, accelerator="cpu", epochs=1000, trainer_args={"max_steps": steps},
    )  # fmt: skip
    return moments, float(counter.get_total_flops())


def written(config: Config, folder: Path) -> Path:
    """The training images as PNG files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    source = open_dataset(config.data.root, "train")
    for i in range(len(source)):
        Image.fromarray(source.read(i, 3).permute(1, 2, 0).numpy()).save(folder / f"{i:06d}.png", compress_level=1)
    return folder


ENTRIES = {
    "ours": ours, "ours, before": ours_before, "textbook": textbook, "EMP-SSL": emp_ssl,
    "lightly-train, DINO": lightly_train,
}  # fmt: skip


def one(entry: str, data: str, out: Path, given: argparse.Namespace) -> None:
    """Train and score one entry in this process; its row is written last."""
    torch.set_num_threads(given.threads)
    config = sd.recipes.auto(data)
    if ENTRIES[entry] is not ours:  # the peers have the ViT that was the default
        config = sd.recipes.auto(data, before(config.views.global_size))
    encoder, steps, seconds, flops = ENTRIES[entry](
        config, out, minutes=given.minutes, seed=given.seeds[0], threads=given.threads
    )
    score = sd.evaluate.knn(encoder, data, k=20, baselines=False).encoder
    row = {
        "minutes": seconds / 60, "steps": steps, "TFLOPs": flops / 1e12, "k-NN": score.top1,
        "source_revision": source_revision(),
    }  # fmt: skip
    print(f"{entry} on {data}: k-NN {score.top1:.1f} after {seconds / 60:.1f} min, {steps} steps, {flops:.3g} FLOPs")
    (out / "row.json").write_text(json.dumps(row))


def obtainable(data: str) -> bool:
    """Whether the data are here or can be downloaded; a line says why not."""
    try:
        open_dataset(data, "train")
    except sd.InputError as error:
        print(f"{data} is skipped: {error}")
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--only", nargs="+", choices=list(ENTRIES), default=list(ENTRIES))
    parser.add_argument("--runs", type=Path, default=Path("runs/records"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(given.only[0], given.data[0], given.one, given)
        return

    def row(job: tuple[str, int, str]) -> dict[str, Any]:
        data, seed, entry = job
        name = {
            "data": Path(data).name,
            "budget": given.minutes,
            "threads": given.threads,
            "seed": seed,
            "entry": entry,
        }
        length = f"{given.minutes:g}min-{given.threads}threads"
        out = given.runs / f"{Path(data).name}-{seed}-{entry.replace(', ', '-')}-{length}"
        if not (out / "row.json").exists():
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            words = ["--one", str(out), "--only", entry, "--seeds", str(seed)]
            words += ["--minutes", str(given.minutes), "--threads", str(given.threads)]
            with (out / "log.txt").open("w") as log:
                subprocess.run([sys.executable, __file__, data, *words], check=True, stdout=log, stderr=log)
            print((out / "log.txt").read_text().splitlines()[-1])
        return {**name, **json.loads((out / "row.json").read_text())}

    with ThreadPoolExecutor(given.jobs) as pool:
        rows = list(pool.map(row, product(filter(obtainable, given.data), given.seeds, given.only)))
    settings = {"minutes": given.minutes, "threads": given.threads, "jobs": given.jobs}
    store("records", settings, rows, keys=("data", "budget", "threads", "entry", "seed"))


if __name__ == "__main__":
    main()
