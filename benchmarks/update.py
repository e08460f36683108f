"""Seconds of what follows the gradient in a step: clipping, AdamW and the teacher, of ViT-S with its projector.

    python benchmarks/update.py

These touch every parameter and compute little: memory is what bounds them. Counted are the bytes that must be read and
written, four to a number: clipping reads a gradient for its norm, then scales it (3), AdamW reads weight, gradient and
two moments and writes three of them (7), the teacher's average reads two and writes one (3). The share is that of a
plain copy's bytes a second; more than 1 is what caches save. The textbook's is what `textbook.py` does: a loop over
parameters, torch's own AdamW. One thread; stores benchmarks/results/update.json.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
from textbook import Network
from timing import pin, store, take_turns
from torch import Tensor, nn

from simdino.config import EncoderConfig, OptimConfig
from simdino.contracts import Preprocess
from simdino.models.catalogue import make_encoder
from simdino.models.groups import set_values
from simdino.models.projector import Embedder, Projector, make_teacher, update_teacher
from simdino.train.optim import clip, make_optimizer

NUMBERS = {"clipping": 3, "AdamW": 7, "teacher": 3}


def with_gradients(model: nn.Module) -> None:
    """Gradients of the size that real ones have."""
    for p in model.parameters():
        p.grad = 1e-3 * torch.randn_like(p)


def ours() -> tuple[dict[str, Callable[[], object]], int]:
    """The parts of our update, and the number of parameters."""
    plain = Preprocess(resize=224, crop=224, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    encoder = make_encoder(EncoderConfig(name="vit_small", image_size=224, patch_size=16, drop_path=0.0), plain)
    student = Embedder(encoder, Projector(embed_dim=384, hidden_dim=2048, out_dim=256))
    teacher, config = make_teacher(student), OptimConfig(lr=5e-4)
    optimizer = make_optimizer(student, config)
    set_values(optimizer, lr=5e-4, weight_decay=0.04)
    with_gradients(student)
    parts = {
        "clipping": lambda: clip(student, config),
        "AdamW": optimizer.step,
        "teacher": lambda: update_teacher(teacher, student, momentum=0.996),
    }
    return parts, sum(p.numel() for p in student.parameters())


def textbook() -> dict[str, Callable[[], object]]:
    """The same as loops."""
    student = Network("vit_small_patch16_224", image_size=224, patch_size=16)
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-4, weight_decay=0.04)
    with_gradients(student)

    def clip_each() -> None:
        for p in student.parameters():
            assert p.grad is not None
            p.grad.mul_(min(1.0, 3.0 / (float(p.grad.norm()) + 1e-6)))

    @torch.no_grad()
    def average() -> None:
        for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
            old.mul_(0.996).add_(0.004 * new)

    return {"clipping": clip_each, "AdamW": optimizer.step, "teacher": average}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    pin(1)
    torch.manual_seed(0)
    parts, parameters = ours()
    source = torch.randn(parameters)
    target = torch.empty_like(source)

    def copied() -> Tensor:
        return target.copy_(source)

    cases = {("ours", name): run for name, run in parts.items()}
    cases |= {("textbook", name): run for name, run in textbook().items()}
    timings = take_turns({"copy": copied, **{" ".join(key): run for key, run in cases.items()}}, repeats=given.repeats)
    bandwidth = 8 * parameters / timings["copy"].median
    rows = []
    for part, numbers in NUMBERS.items():
        seconds, loop = (timings[f"{whose} {part}"].median for whose in ("ours", "textbook"))
        rows.append({
            "part": part, "seconds": seconds, "textbook is slower by": loop / seconds,
            "share of the copy's bytes a second": 4 * numbers * parameters / seconds / bandwidth,
        })  # fmt: skip
    settings = {"parameters": parameters, "copy GB/s": round(bandwidth / 1e9, 1), "threads": 1}
    store("update", {**settings, "repeats": given.repeats}, rows)


if __name__ == "__main__":
    main()
