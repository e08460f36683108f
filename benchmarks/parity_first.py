"""The rows of DINO and SimDINO."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from parity_sides import (
    DEPTH,
    DIM,
    EPOCHS,
    HEADS,
    HIDDEN,
    LOCAL,
    PATCH,
    SIZE,
    WIDTH,
    K,
    average,
    compare_groups,
    compare_schedules,
    compare_steps,
    compare_weights,
    shaken,
)
from torch import nn

from simdino.contracts import Views


def network(code: Any) -> Any:
    """A small encoder with the head that their trainer gives it."""
    vits = code.vision_transformer
    encoder = vits.VisionTransformer(
        img_size=[SIZE], patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    head = vits.DINOHead(WIDTH, K, hidden_dim=HIDDEN, bottleneck_dim=DIM)
    return code.utils.MultiCropWrapper(encoder, head).double()


def check_first(code: Any, method: str, note: Any, scratch: Path) -> None:
    """All rows of a first method. code: see `first_family`."""
    torch.manual_seed(0)
    student, teacher, other = (network(code) for _ in range(3))
    shaken(student, 1)
    teacher.load_state_dict(student.state_dict())
    if method == "dino":
        loss: Any = code.main_dino.DINOLoss(K, 2 + LOCAL, 0.04, 0.04, 0, EPOCHS).double()
    else:
        loss = code.main_dino.MCRLoss(2 + LOCAL, 0, 1, 0.05, 1)
    groups = code.utils.get_params_groups(student)
    optimizer = torch.optim.AdamW(groups)

    def scheduler(start: float, end: float, per_epoch: int, warm: int = 0) -> Any:
        return code.utils.cosine_scheduler(start, end, EPOCHS, per_epoch, warmup_epochs=warm)

    rates, decays, momenta = scheduler(1e-3, 1e-6, 1, 10), scheduler(0.04, 0.4, 1), scheduler(0.996, 1, 1)

    def take(i: int, views: Views) -> float:
        for number, group in enumerate(optimizer.param_groups):
            group["lr"] = rates[i]
            if number == 0:
                group["weight_decay"] = decays[i]
        images = [*views.global_views, *views.local_views]  # pyright: ignore[reportOptionalIterable]
        with torch.no_grad():
            targets = teacher(images[:2])
        found = loss(student(images), targets, i) if method == "dino" else loss(student(images), targets)[0]
        optimizer.zero_grad()
        found.backward()
        code.utils.clip_gradients(student, 3.0)
        code.utils.cancel_gradients_last_layer(i, student, 1)
        optimizer.step()
        average(teacher, student, momenta[i])
        return float(found)

    compare_groups(method, {id(p): (1.0, n == 0) for n, g in enumerate(groups) for p in g["params"]}, student, note)
    compare_weights(method, other.backbone, scratch / "first.pth", note)
    compare_steps(method, student, teacher, take, note)
    wide = {
        "lr": scheduler(1e-3, 1e-6, 7, 10),
        "weight_decay": scheduler(0.04, 0.4, 7),
        "momentum": scheduler(0.996, 1, 7),
    }
    compare_schedules(method, wide, note)
