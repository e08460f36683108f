"""The rows of DINOv2 and SimDINOv2."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from official_code import Settings
from parity_sides import (
    DEPTH,
    DIM,
    EPOCHS,
    HEADS,
    HIDDEN,
    LOCAL,
    PATCH,
    SIZE,
    SMALL,
    WIDTH,
    K,
    average,
    compare_groups,
    compare_schedules,
    compare_steps,
    compare_weights,
    released,
    shaken,
)
from torch import Tensor, nn

from simdino.contracts import Views


def settings(method: str, per_epoch: int) -> Settings:
    """Their configuration: the released values at our small sizes."""
    rated = method == "simdinov2"
    head = {"loss_weight": 1.0, "head_n_prototypes": K, "head_bottleneck_dim": DIM, "head_nlayers": 3,
            "head_hidden_dim": HIDDEN, "remove_last_layer": rated, "head_normalize": True, "use_mcr": rated,
            "loss_weight_end": -1, "loss_weight_warmup_epochs": 0, "loss_weight_freeze_epochs": 0}  # fmt: skip
    rate = {"expa_loss": "mcr", "comp_loss": "cosine", "expa_type": 1, "reduce_cov": 0, "eps": 0.05, "eps_end": -1,
            "coeff": 1, "coeff_end": -1, "expa_end_epoch": -1}  # fmt: skip
    student = {"arch": "vit_toy", "patch_size": PATCH, "drop_path_rate": 0.0, "layerscale": 0.1,
               "drop_path_uniform": True, "pretrained_weights": "", "ffn_layer": "mlp", "block_chunks": 0,
               "qkv_bias": True, "proj_bias": True, "ffn_bias": True, "num_register_tokens": 4 * rated,
               "interpolate_antialias": rated, "interpolate_offset": 0.0 if rated else 0.1}  # fmt: skip
    if rated:
        student |= {"block": "nested", "drop_masks": False, "gradient_checkpointing": False, "attn_drop": 0.0,
                    "ffn_drop": 0.0, "qknorm": False}  # fmt: skip
    return Settings(
        compile=False, compute_precision=Settings(grad_scaler=False), student=Settings(student),
        dino=Settings(head, koleo_loss_weight=0.0 if rated else 0.1, mcr=Settings(rate)),
        ibot=Settings(head, mask_sample_probability=0.5, mask_ratio_min_max=(0.1, 0.5), separate_head=False,
                      mcr=Settings(eps=0.05, coeff=1, coeff_end=1)),
        train=Settings(centering="none" if rated else "centering", OFFICIAL_EPOCH_LENGTH=per_epoch),
        teacher=Settings(momentum_teacher=released(method).momentum, final_momentum_teacher=1, warmup_teacher_temp=0.04,
                         teacher_temp=0.07, warmup_teacher_temp_epochs=15),
        optim=Settings(epochs=EPOCHS, weight_decay=0.04, weight_decay_end=0.4, lr=1e-3, warmup_epochs=10, min_lr=1e-6,
                       clip_grad=3.0, clip_grad_end=-1, freeze_last_layer_epochs=1, patch_embed_lr_mult=0.2,
                       layerwise_decay=0.9, peak_epochs=0),
        crops=Settings(global_crops_size=SIZE, local_crops_size=SMALL, local_crops_number=LOCAL),
    )  # fmt: skip


def check_second(code: Any, method: str, note: Any, scratch: Path) -> None:
    """All rows of a second method. code: see `second_family`."""
    vits = sys.modules[f"{method}.models.vision_transformer"]
    shape = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    rated = method == "simdinov2"
    kind = vits.get_block_fn("nested") if rated else partial(vits.Block, attn_class=vits.MemEffAttention)

    def toy(block: str = "nested", **words: Any) -> nn.Module:
        assert block == "nested"
        return vits.DinoVisionTransformer(**shape, block_fn=kind, **words)

    vits.vit_toy = toy
    torch.manual_seed(0)
    names = ("lr", "weight_decay", "momentum", "temperature")
    cfg = settings(method, 1)
    model = (code.architecture.SSLMetaArch if method == "dinov2" else code.architecture.SimSSLMetaArch)(cfg).double()
    model.need_to_synchronize_fsdp_streams = False
    shaken(model.student, 1)
    model.teacher.load_state_dict(model.student.state_dict())
    model.train()
    groups = model.get_params_groups()
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
    schedules = code.train.build_schedulers(cfg)

    def take(i: int, views: Views) -> float:
        lr, decay, momentum, temperature, last = (schedule[i] for schedule in schedules[:5])
        code.train.apply_optim_scheduler(optimizer, lr, decay, last)
        optimizer.zero_grad(set_to_none=True)
        assert views.masks is not None and views.local_views is not None
        masks = views.masks.flatten(0, 1)
        weights = (1 / masks.sum(-1).clamp(min=1.0)).double()[:, None].expand_as(masks)[masks]
        hidden = masks.flatten().nonzero().flatten()
        data = {
            "collated_global_crops": views.global_views.flatten(0, 1), "masks_weight": weights,
            "collated_local_crops": views.local_views.flatten(0, 1), "collated_masks": masks,
            "mask_indices_list": hidden, "n_masked_patches": torch.tensor([len(hidden)]), "upperbound": len(hidden) + 3,
        }  # fmt: skip
        found = model.forward_backward(data, teacher_temp=temperature)
        for part in model.student.values():
            nn.utils.clip_grad_norm_(part.parameters(), cfg.optim.clip_grad)
        optimizer.step()
        average(model.teacher, model.student, momentum)
        return total_of(found, method)

    theirs = {id(p): (g["lr_multiplier"], g["wd_multiplier"] > 0) for g in groups for p in g["params"]}
    compare_groups(method, theirs, Joined(model.student), note)
    fresh = build_backbone(code, settings(method, 1))
    compare_weights(method, fresh, scratch / "second.pth", note)
    compare_steps(method, Joined(model.student), Joined(model.teacher), take, note)
    wide = dict(zip(names, code.train.build_schedulers(settings(method, 7)), strict=False))
    compare_schedules(method, wide if method == "dinov2" else {n: wide[n] for n in names[:3]}, note)


class Joined(nn.Module):
    """Their dictionary of networks under the names that `our_name` reads."""

    def __init__(self, networks: Any) -> None:
        super().__init__()
        self.backbone, self.head = networks["backbone"], networks["dino_head"]


def build_backbone(code: Any, cfg: Settings) -> nn.Module:
    """A teacher's encoder, alone."""
    torch.manual_seed(3)
    found = code.architecture.build_model_from_cfg(cfg)[1].double()
    shaken(found, 4)
    return found


def total_of(found: dict[str, Tensor], method: str) -> float:
    """What they minimise, from what they log."""
    if method == "simdinov2":
        return float(found["total_loss"])
    twice = ("koleo_loss", "ibot_loss")  # logged at half
    return sum(float(value) * (2 if name in twice else 1) for name, value in found.items())
