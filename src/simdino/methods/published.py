"""What the published recipes of several methods share: those of papers and of released codes (DINO at 7c446df, DINOv2
at b8931f7, SimDINO and SimDINOv2 at 8149fc4) for ViTs with patches of 16 pixels at 224 px.

The released ones have the quirks that change results too: each is named where it is taken. Images are normalised by
ImageNet's constants there, whatever they are, and grey ones are turned into three channels. `docs/parity.md` lists what
still differs from the released codes, with its size.
"""

from __future__ import annotations

from typing import Any

from simdino.config import EncoderConfig, OptimConfig, ViewsConfig

SHAPES = {"vits16": "vit_small", "vitb16": "vit_base", "vitl16": "vit_large"}
"""The encoders of the published recipes, by their part of a recipe's name."""

VIT16 = EncoderConfig(image_size=224, patch_size=16)

PAPER_VIEWS = ViewsConfig(global_scale=(0.3, 1.0), local_scale=(0.05, 0.3))
"""Crop scales of the text of SimDINO's paper; its code has 0.4 to 1 and 0.05 to 0.4, the defaults here."""

V2_BLUR: dict[str, Any] = {"blur_radius": 4, "blur_edges": "reflect"}
"""torchvision's GaussianBlur(kernel_size=9), which DINOv2 and SimDINOv2 take in place of Pillow's."""

V2_TOKENS = 1e-6
"""Standard deviation of class and register tokens at the start in DINOv2 and SimDINOv2 (vision_transformer.py)."""

V2_OPTIM = OptimConfig(clip_per="part", layer_decay=0.9, patch_embed_lr=0.2)
V2_MASKS = 0.5  # share of the global crops that have masked patches
