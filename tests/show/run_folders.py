"""Run folders as `simdino pretrain` writes them, without training, and a reader of the pages made of them."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import torch

from simdino.methods import METHODS
from simdino.show.sheets import neighbours_sheet, views_sheet

CONFIG = {
    "data": {
        "root": "fashion-mnist",
        "channels": 1,
        "mean": [0.286040604],
        "std": [0.353024245],
        "labels": True,
        "train_images": 60000,
    },
    "views": {"local_views": 6, "global_size": 28, "local_size": 16, "global_scale": [0.4, 1.0], "flip": 0.5},
    "encoder": {"name": "vit_tiny", "patch_size": 4, "registers": 0, "layer_scale": None, "drop_path": 0.1},
    "projector": {"hidden_dim": 2048, "out_dim": 256},
    "loss": {"eps": 0.5, "gamma": "balanced", "rho": 1.5, "scope": "global"},
    "optim": {"lr": 0.002, "final_lr": 1e-6, "warmup": 0.1, "weight_decay": 0.04, "momentum": 0.996},
    "run": {"method": "simdino", "steps": 1000, "batch": 64, "seed": 0},
    "speed": {"micro_batch": None, "precision": "float32", "device": "cpu", "workers": 2},
}
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Checks nesting while it reads, and keeps the tags and the text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += f" {data} "


TERMS = {
    name: [
        key for curve in (*method.terms, *method.health) for key in (curve.key, *(one for one, _ in curve.references))
    ]
    for name, method in METHODS.items()
}
"""What only some methods log."""


def training_row(step: int, steps: int, pace: float, top: float, method: str = "simdino") -> dict:
    t = step / steps
    wobble = 0.01 * math.sin(step * 1.7)
    fraction = top * (1 - math.exp(-9 * pace * t)) + wobble
    terms = {
        "distance": 0.07 + 0.45 * math.exp(-5 * pace * t),
        "rate_weighted": 0.1 + 0.55 * fraction,
        "patch_distance": 0.2 + 0.4 * math.exp(-3 * t),
        "patch_rate_weighted": 0.05 + 0.2 * fraction,
        "cross_entropy": 6.9 - 2 * t,
        "target_entropy": 0.9 - 0.3 * t,
        "prototype_use": 0.99,
        "patch_cross_entropy": 5.0 - t,
        "koleo": 1.4 - 0.6 * t,
        "gradient_ratio": 1.5 + 6 * math.exp(-8 * t) + 10 * wobble,
    }
    return {
        "step": step,
        **{name: terms.get(name, 1 - t) for name in TERMS[method]},
        "loss": -0.2 - 0.9 * (1 - math.exp(-6 * pace * t)) + wobble,
        "alignment": 0.93 - 0.45 * math.exp(-5 * pace * t) + wobble,
        "rate": 12.0 + 60.0 * fraction,
        "expansion_fraction": fraction,
        "effective_rank": 2 + 90 * fraction,
        "grad_norm": 2.1,
        "lr": 0.002 * min(10 * t, 0.5 * (1 + math.cos(math.pi * t))),
        "weight_decay": 0.04 + 0.36 * t,
        "momentum": 0.996 + 0.004 * t,
    }


def make_run(
    folder: Path,
    *,
    pace: float = 1.0,
    top: float = 0.86,
    labels: bool = True,
    pictures: bool = False,
    method: str = "simdino",
    init: str | None = None,
) -> Path:
    folder.mkdir(parents=True)
    steps = 1000
    rows = []
    for step in range(0, steps + 1, 10):
        if step:
            rows.append(training_row(step, steps, pace, top, method))
        if step % 100 == 0:
            knn = 55.4 + 33.1 * (1 - math.exp(-4 * pace * step / steps))
            scores = {"knn": knn, "knn_pixels": 85.7, "knn_k": 20} if labels else {}
            rows.append({"step": step, **scores, "bank": 60000, "queries": 10000, "feature_rank": 12 + step / 20})
    metadata = {
        "simdino": "0.1.0",
        "source_revision": "abc123",
        "command": f"simdino pretrain fashion-mnist --steps 1000 --eps {0.5 * pace:g} --out runs/{folder.name}",
        "machine": "2 x AMD EPYC, torch 2.14",
        "config": CONFIG
        | {
            "loss": CONFIG["loss"] | {"eps": 0.5 * pace} if method.startswith("sim") else {},
            "projector": CONFIG["projector"] | {"prototypes": 0 if method.startswith("sim") else 1024},
            "run": CONFIG["run"] | {"method": method, "init": init},
        },
        "data": {"name": "fashion-mnist", "train_images": 60000, "val_images": 10000, "classes": 10, "broken": 3},
    }
    (folder / "config.json").write_text(json.dumps(metadata))
    write_lines(folder / "metrics.jsonl", rows)
    speed = [
        {"step": s, "images_per_second": 812.0 + s % 7, "mfu": 0.41, "data_wait": 0.03, "seconds": s * 0.08}
        for s in range(10, 1001, 10)
    ]
    write_lines(folder / "speed.jsonl", speed)
    (folder / "broken.txt").write_text("a/<b>.png\ttruncated file\nc.png\tno image\nd.png\tempty file\n")
    if pictures:
        (folder / "pictures").mkdir()
        image = torch.arange(28 * 28).reshape(1, 28, 28).remainder(251).to(torch.uint8)
        views_sheet([image] * 3, image.expand(2, 3, 1, 28, 28), None).save(folder / "pictures" / "views.png")
        neighbours_sheet([image] * 12, [[image] * 5] * 12).save(folder / "pictures" / "neighbours.png")
    return folder


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def edit(run: Path, **changes) -> None:
    metadata = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(metadata | changes))


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))
