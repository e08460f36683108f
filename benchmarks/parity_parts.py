"""Rows of parity that no method owns: the operations on views, masks, and k-NN."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from simdino.data import photometric as ours
from simdino.data.masks import block_mask
from simdino.data.views import resize
from simdino.evaluate.classification.neighbours import knn_each
from simdino.features.extract import Features
from simdino.rng import sample_keys

MASKS, GRID = 2000, (14, 14)


def picture(height: int = 96, width: int = 96) -> Image.Image:
    """Smooth colours with noise on them."""
    y, x = np.mgrid[0:height, 0:width] / 40
    waves = np.stack([127 + 90 * np.sin(3 * x + c) * np.cos(2 * y - c) for c in range(3)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 12, waves.shape)
    return Image.fromarray((waves + noise).clip(0, 255).astype(np.uint8))


def unit(image: Image.Image) -> Tensor:
    """[1, 3, h, w] in [0, 1]."""
    return tv.to_tensor(image)[None]


def check_views(first: Any, second: Any, note: Any) -> None:
    """Each operation on a picture, in mean levels of 255; theirs round to whole levels after every one.

    first: DINO's utils. second: DINOv2's transforms, whose blur is torchvision's."""
    image = picture()
    factor = torch.tensor([1.3]).view(-1, 1, 1, 1)
    by = {
        "brightness 1.3": (ours.brightness(unit(image), factor), tv.adjust_brightness(image, 1.3)),
        "contrast 1.3": (ours.contrast(unit(image), factor), tv.adjust_contrast(image, 1.3)),
        "saturation 1.3": (ours.saturation(unit(image), factor), tv.adjust_saturation(image, 1.3)),
        "hue 0.08": (ours.hue(unit(image), torch.tensor(0.08)), tv.adjust_hue(image, 0.08)),
        "grey": (ours.grey(unit(image)).expand(1, 3, 96, 96), tv.to_grayscale(image, 3)),
        "solarize": (ours.solarize(unit(image)), ImageOps.solarize(image, 128)),
    }
    for sigma in (0.5, 2.0):
        column = torch.tensor([sigma])
        by[f"DINO's blur {sigma}"] = (
            ours.gaussian_blur(unit(image), column), image.filter(ImageFilter.GaussianBlur(radius=sigma)),
        )  # fmt: skip
        blur = second.GaussianBlur(p=0.0, radius_min=sigma, radius_max=sigma)  # which applies with 1 - p
        by[f"DINOv2's blur {sigma}"] = (ours.gaussian_blur(unit(image), column, radius=4, reflect=True), blur(image))
    for name, (mine, theirs) in by.items():
        note("views", f"{name}, mean levels of 255", 255 * float((mine - unit(theirs)).abs().mean()), 1.0)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    for name, mode in (("bicubic", InterpolationMode.BICUBIC), ("bilinear", InterpolationMode.BILINEAR)):
        theirs = tv.pil_to_tensor(tv.resized_crop(image, 5, 9, 60, 70, [48, 48], mode))
        mine = resize(pixels[:, 5:65, 9:79], 48, interpolation=name)  # pyright: ignore[reportArgumentType]
        note("views", f"{name} crop, largest in levels", float((mine.int() - theirs.int()).abs().max()), 1.0)
    assert first.GaussianBlur(1.0).radius_max == 2.0


def check_masks(masking: Any, note: Any) -> None:
    """How many patches are hidden where 30 and 90 of 196 are asked for: the mean over many masks, in standard errors
    of the difference."""
    random.seed(0)
    theirs = masking.MaskingGenerator(input_size=GRID, max_num_patches=98)
    keys = sample_keys(0, 0, np.arange(MASKS))
    for asked in (30, 90):
        counts = [
            np.array([block_mask(key, 0, grid=GRID, patches=asked).sum() for key in keys]),
            np.array([theirs(asked).sum() for _ in range(MASKS)]),
        ]
        error = np.sqrt(sum(count.var() for count in counts) / MASKS)
        note("masks", f"mean of {asked} asked, standard errors", abs(counts[0].mean() - counts[1].mean()) / error, 4.0)


def check_knn(script: Any, note: Any) -> None:
    """Top-1 and top-5 of random features of 30 classes, points."""
    draws = np.random.default_rng(0)
    sets = [(draws.normal(size=(n, 16)).astype(np.float32), draws.integers(0, 30, n)) for n in (500, 400)]
    vectors = [torch.nn.functional.normalize(torch.from_numpy(x)) for x, _ in sets]
    labels = [torch.from_numpy(y) for _, y in sets]
    classes = tuple(map(str, range(30)))
    bank, query = (
        Features(vectors=v, names=[""] * len(v), labels=y, classes=classes, broken={})
        for v, (_, y) in zip(vectors, sets, strict=True)
    )
    for k in (5, 20):
        top1, top5 = script.knn_classifier(vectors[0], labels[0], vectors[1], labels[1], k, 0.07, num_classes=30)
        mine = knn_each(bank, query, ks=[k])[0]
        note("k-NN", f"top-1, k {k}, points", abs(mine.top1 - top1), 1e-9)
        ties = 2.0 if k < 10 else 1e-9  # fewer than five classes have a vote; of the others theirs takes any
        note("k-NN", f"top-5, k {k}, points", abs(mine.top5 - top5), ties)
