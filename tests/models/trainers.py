"""Stand-ins of seven trainers: encoders by formulas, and checkpoints written as their training code writes them, with
AdamW after a step under numpy's schedules, a gradient scaler and the arguments of the command line."""

from __future__ import annotations

import argparse
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Tensors = dict[str, Tensor]
WIDTH, DEPTH, HEADS, PATCH, GRID = 128, 2, 2, 8, 4
SIZE = GRID * PATCH


def drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> Tensors:
    """Random weights of given shapes, in their order."""
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


# --- encoders -----------------------------------------------------------------------------------------------------


def vit(seed: int, *, scaled: bool = False, chunked: bool = False, registers: int = 0, **more: Any) -> Tensors:
    """The keys that DINO, iBOT and MAE share, and those of DINOv2 when scaled. more: shapes of further tensors."""
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 1 + GRID**2, WIDTH), **more}
    shapes |= {"register_tokens": (1, registers, WIDTH)} if registers else {}
    shapes |= {"patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": (WIDTH,)}
    for i in range(DEPTH):
        block = f"blocks.0.{i}" if chunked else f"blocks.{i}"
        linear = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH)}
        linear |= {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}
        for part, shape in {"norm1": (WIDTH,), "norm2": (WIDTH,), **linear}.items():
            shapes |= {f"{block}.{part}.weight": shape, f"{block}.{part}.bias": shape[:1]}
        shapes |= {f"{block}.ls{j}.gamma": (WIDTH,) for j in (1, 2)} if scaled else {}
    return drawn(shapes | {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}, seed)


def on_grid(positions: Tensor, grid: int, rule: str) -> Tensor:
    """Positions [1, 1 + P, D] on another grid, as each family's code brings them there."""
    image = positions[:, 1:].reshape(1, GRID, GRID, -1).permute(0, 3, 1, 2)
    if rule == "offset" and grid != GRID:
        factor = (grid + 0.1) / GRID
        image = F.interpolate(image, scale_factor=(factor, factor), mode="bicubic")
    elif grid != GRID:
        image = F.interpolate(image, size=(grid, grid), mode="bicubic", antialias=rule == "antialias")
    return torch.cat([positions[:, :1], image.flatten(2).mT], dim=1)


def vit_features(w: Tensors, images: Tensor, rule: str) -> Tensor:
    """Class tokens [N, D] of a ViT, from the formulas."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    patches = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=PATCH).flatten(2).mT
    x = torch.cat([w["cls_token"].expand(len(images), -1, -1), patches], dim=1)
    x = x + on_grid(w["pos_embed"], images.shape[-1] // PATCH, rule)
    if "register_tokens" in w:
        x = torch.cat([x[:, :1], w["register_tokens"].expand(len(x), -1, -1), x[:, 1:]], dim=1)
    for i in range(DEPTH):
        at = f"blocks.0.{i}" if "blocks.0.0.norm1.weight" in w else f"blocks.{i}"
        q, k, v = linear(norm(x, f"{at}.norm1"), f"{at}.attn.qkv").unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.mT / (WIDTH / HEADS) ** 0.5).softmax(-1) @ v
        x = x + w.get(f"{at}.ls1.gamma", 1) * linear(mixed.transpose(1, 2).flatten(2), f"{at}.attn.proj")
        inner = F.gelu(linear(norm(x, f"{at}.norm2"), f"{at}.mlp.fc1"))
        x = x + w.get(f"{at}.ls2.gamma", 1) * linear(inner, f"{at}.mlp.fc2")
    return norm(x, "norm")[:, 0]


CRATE = {"embed_dim": 192, "depth": 6, "num_heads": 3}  # crate_nano


def crate() -> Tensors:
    """The keys of CRATE's classifier."""
    width, pixels = CRATE["embed_dim"], 3 * PATCH**2
    shapes: dict[str, tuple[int, ...]] = {"pos_embedding": (1, 1 + GRID**2, width), "cls_token": (1, 1, width)}
    for place, shape in ((1, (pixels,)), (2, (width, pixels)), (3, (width,))):
        shapes |= {f"to_patch_embedding.{place}.weight": shape, f"to_patch_embedding.{place}.bias": shape[:1]}
    for i in range(CRATE["depth"]):
        at = f"transformer.layers.{i}"
        shapes |= {f"{at}.{half}.norm.{leaf}": (width,) for half in (0, 1) for leaf in ("weight", "bias")}
        shapes |= {f"{at}.0.fn.qkv.weight": (width, width), f"{at}.0.fn.to_out.0.weight": (width, width)}
        shapes |= {f"{at}.0.fn.to_out.0.bias": (width,), f"{at}.1.fn.weight": (width, width)}
    shapes |= {"mlp_head.0.weight": (width,), "mlp_head.0.bias": (width,)}
    return drawn(shapes | {"mlp_head.1.weight": (10, width), "mlp_head.1.bias": (10,)}, seed=7)


def crate_features(w: Tensors, images: Tensor, rule: str) -> Tensor:
    """Class tokens [N, D] of CRATE before its linear layer, from the formulas."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    folded = F.unfold(images, PATCH, stride=PATCH).mT.unflatten(-1, (3, PATCH**2)).transpose(-1, -2).flatten(2)
    inner = norm(folded, "to_patch_embedding.1") @ w["to_patch_embedding.2.weight"].T + w["to_patch_embedding.2.bias"]
    x = torch.cat([w["cls_token"].expand(len(images), -1, -1), norm(inner, "to_patch_embedding.3")], dim=1)
    x = x + on_grid(w["pos_embedding"], images.shape[-1] // PATCH, rule)
    for i in range(CRATE["depth"]):
        at = f"transformer.layers.{i}"
        basis = (norm(x, f"{at}.0.norm") @ w[f"{at}.0.fn.qkv.weight"].T).unflatten(-1, (CRATE["num_heads"], -1))
        basis = basis.transpose(1, 2)
        mixed = (basis @ basis.mT / basis.shape[-1] ** 0.5).softmax(-1) @ basis
        x = x + mixed.transpose(1, 2).flatten(2) @ w[f"{at}.0.fn.to_out.0.weight"].T + w[f"{at}.0.fn.to_out.0.bias"]
        y, d = norm(x, f"{at}.1.norm"), w[f"{at}.1.fn.weight"]
        x = F.relu(y + 0.1 * (y @ d - y @ d.T @ d) - 0.1 * 0.1)
    return norm(x, "mlp_head.0")[:, 0]


# --- what training writes -----------------------------------------------------------------------------------------


def cosine(base: float, final: float, steps: int) -> Any:
    """A schedule as numpy's array of float64, which the trainers index by the step."""
    return final + 0.5 * (base - final) * (1 + np.cos(np.pi * np.arange(steps) / steps))


def optimizer_after_a_step(tensors: Tensors) -> dict[str, Any]:
    """State of AdamW over matrices and the rest, whose rate and decay came from schedules of numpy."""
    parameters = [nn.Parameter(tensor.clone()) for tensor in tensors.values()]
    groups = [{"params": [p for p in parameters if p.ndim > 1]}, {"params": [p for p in parameters if p.ndim == 1]}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=0.1)
    rates, decays = cosine(5e-4, 1e-6, 100), cosine(0.04, 0.4, 100)
    for i, group in enumerate(optimizer.param_groups):
        group["lr"] = rates[3]
        group["weight_decay"] = decays[3] if i == 0 else 0.0
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


def scaler() -> dict[str, Any]:
    """State of a gradient scaler."""
    return {
        "scale": 65536.0,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 2000,
        "_growth_tracker": 7,
    }


def head(prefix: str, *, last_layer: bool) -> Tensors:
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}.mlp.{i}.weight": (8, 8) for i in (0, 2, 4)}
    shapes |= {f"{prefix}.last_layer.weight_g": (9, 1), f"{prefix}.last_layer.weight_v": (9, 8)} if last_layer else {}
    return drawn(shapes, seed=5)


def two_networks(
    teacher: Tensors, heads: Tensors, *, loss: str, wrapper: str = "", masked: bool = False
) -> dict[str, Any]:
    """As DINO, SimDINO and iBOT save: student in DDP, teacher, optimizer, arguments. wrapper: of a compiled teacher.
    masked: the student has a mask token, as iBOT calls it."""
    own = {name: tensor + 1 for name, tensor in teacher.items()}
    own = under("module.backbone.", own | ({"masked_embed": torch.zeros(1, WIDTH)} if masked else {}))
    arguments = argparse.Namespace(
        arch="vit_base", lr=0.0005, use_fp16=True, local_crops_scale=(0.05, 0.4), warmup_teacher_temp=np.float64(0.04)
    )
    return {
        "student": own | under("module.", heads), "teacher": under(wrapper, under("backbone.", teacher) | heads),
        "optimizer": optimizer_after_a_step(own), "epoch": 100, "args": arguments,
        loss: {"center": torch.zeros(1, 9)}, "fp16_scaler": scaler(),
    }  # fmt: skip


def mae() -> dict[str, Any]:
    decoder = {"decoder_pos_embed": (1, 1 + GRID**2, 16), "decoder_embed.weight": (16, WIDTH)}
    decoder |= {"decoder_blocks.0.norm1.weight": (16,), "decoder_norm.bias": (16,), "decoder_pred.weight": (192, 16)}
    own = vit(6, mask_token=(1, 1, 16)) | drawn(decoder, seed=8)
    arguments = argparse.Namespace(model="mae_vit_base_patch16", lr=np.float64(1.5e-4), output_dir="out")
    return {
        "model": own, "optimizer": optimizer_after_a_step(own), "epoch": 799, "scaler": scaler(), "args": arguments
    }  # fmt: skip


def crate_checkpoint() -> dict[str, Any]:
    own = under("module.", crate())
    rates = {"base_lrs": [np.float64(2.4e-4)], "last_epoch": 90, "_step_count": 91, "_last_lr": [np.float32(1e-5)]}
    return {
        "epoch": 91, "arch": "CRATE_tiny", "state_dict": own, "best_acc1": torch.tensor(66.0),
        "optimizer": optimizer_after_a_step(own), "scheduler": rates,
    }  # fmt: skip


def as_one_module(teacher: Tensors, heads: Tensors) -> dict[str, Any]:
    """Both networks and the losses as one module, as the training of DINOv2 and SimDINOv2 goes on from."""
    both = under("teacher.", under("backbone.", teacher) | heads)
    both |= under("student.", under("backbone.", {n: t + 1 for n, t in teacher.items()}) | heads)
    whole = both | {"dino_loss.center": torch.zeros(1, 9)}
    return {"model": whole, "optimizer": optimizer_after_a_step(both), "iteration": np.int64(1249)}


@dataclass(frozen=True)
class Trainer:
    """file: what it writes. encoder: the weights that are its result. rule: how it brings positions to other grids."""

    file: Any
    encoder: Tensors
    rule: str
    features: Callable[[Tensors, Tensor, str], Tensor] = vit_features


def v2(*, last_layer: bool) -> Tensors:
    return head("dino_head", last_layer=last_layer) | head("ibot_head", last_layer=last_layer)


DINO, SIMDINO, IBOT = vit(1), vit(2), vit(3)
V2, SIMDINOV2 = (vit(seed, scaled=True, chunked=True, mask_token=(1, WIDTH)) for seed in (4, 5))
TRAINERS = {
    "DINO": Trainer(two_networks(DINO, head("head", last_layer=True), loss="dino_loss"), DINO, "offset"),
    "SimDINO": Trainer(
        two_networks(SIMDINO, head("head", last_layer=False), loss="dino_loss", wrapper="_orig_mod.module."),
        SIMDINO, "offset",
    ),
    "iBOT": Trainer(two_networks(IBOT, head("head", last_layer=True), loss="ibot_loss", masked=True), IBOT, "offset"),
    "DINOv2": Trainer({"teacher": under("backbone.", V2) | v2(last_layer=True)}, V2, "offset"),
    "SimDINOv2": Trainer({"teacher": under("backbone.", SIMDINOV2) | v2(last_layer=False)}, SIMDINOV2, "antialias"),
    "DINOv2, whole": Trainer(as_one_module(V2, v2(last_layer=True)), V2, "offset"),
    "SimDINOv2, whole": Trainer(as_one_module(SIMDINOV2, v2(last_layer=False)), SIMDINOV2, "antialias"),
    "MAE": Trainer(mae(), vit(6, mask_token=(1, 1, 16)), "plain"),
    "CRATE": Trainer(crate_checkpoint(), crate(), "plain", crate_features),
}  # fmt: skip


def write(held: Any, path: Path, *, numpy: int | None = None, zipped: bool = True) -> Path:
    """torch.save, and where asked with the names that numpy 1 or 2 gives its numbers, whichever is installed."""
    old, new = b"numpy.core.multiarray", b"numpy._core.multiarray"
    was, wanted = (new, old) if numpy == 1 else (old, new)
    written = io.BytesIO()
    torch.save(held, written, _use_new_zipfile_serialization=zipped)
    if not zipped or numpy is None:
        path.write_bytes(written.getvalue().replace(was, wanted) if numpy else written.getvalue())
        return path
    with zipfile.ZipFile(written) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content.replace(was, wanted) if name.endswith("data.pkl") else content)
    return path
