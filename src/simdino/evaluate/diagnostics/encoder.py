"""Health without labels: what an encoder's features look like, on images and on augmented views of images.

One sampled set of images gives the spectrum of class tokens (`spectra.Spectrum`). A smaller one, each image in several
random views, tells whether features follow the image or the augmentation: LiDAR at the encoder's output, and after
every block the share of variance between images. All in float32: rounding to bfloat16 is noise that looks like rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from simdino import rng as counters
from simdino.config import ViewsConfig
from simdino.contracts import InputError, Preprocess
from simdino.data.base import Source, subset
from simdino.data.photometric import photometric
from simdino.data.sources import open_dataset
from simdino.data.survey import spread_of
from simdino.data.views import crop_boxes, crops, decoded_side
from simdino.defaults import row_for
from simdino.features.dense import patch_features
from simdino.features.extract import IN_CACHE, Progress, extract, prepared, unwatched
from simdino.features.intermediate import last_blocks
from simdino.features.spectra import Grouped, Moments, Spectrum, effective_rank, lidar, spectrum
from simdino.methods.simdino import RateConfig
from simdino.models.encoder import Encoder
from simdino.models.weights import load_encoder, to_stderr
from simdino.precision import present_device
from simdino.runs.evaluations import asked_data, keep_scores
from simdino.runs.verdict import same_images

IMAGES, VIEW_IMAGES, VIEWS = 2000, 100, 10
EPS = RateConfig.eps
ONE_VECTOR = 0.98  # mean cosine between images above which features have collapsed
FEW_DIRECTIONS = 5  # participation ratio under which they are of low rank: at random initialisation it is about 3


@dataclass(frozen=True, kw_only=True)
class Health:
    """The monitors of an encoder, and what they say."""

    spectrum: Spectrum  # of class tokens, one for an image
    lidar: float  # of class tokens of views
    between_view_share: tuple[float, ...]  # after each block: the share of the variance that lies between images
    patch_rank: float | None  # effective rank of the patch tokens of an image, the mean; None without patches
    view_images: int  # images in the last three ...
    views: int  # ... and views of each
    status: Literal["collapsed", "low rank", "healthy"]
    sentence: str
    broken: dict[str, str]  # images left out, and why

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return self.scores() | {
            "images": self.spectrum.images, "width": self.spectrum.width, "view_images": self.view_images,
            "views": self.views, "status": self.status, "sentence": self.sentence, "broken": self.broken,
        }  # fmt: skip

    def scores(self) -> dict[str, Any]:
        """The monitors by name; those of a run's checkpoints are compared by these."""
        spectral = {name: value for name, value in self.spectrum.as_dict().items() if name not in ("images", "width")}
        return spectral | {
            "lidar": self.lidar, "patch_rank": self.patch_rank, "between_view_share": list(self.between_view_share)
        }  # fmt: skip

    def __str__(self) -> str:
        s, first, last = self.spectrum, *self.spectrum.alpha_range
        rows = [
            ("RankMe", f"{s.rank_me:.1f} of {s.width}"),
            ("effective rank", f"{s.effective_rank:.1f}"),
            ("stable rank", f"{s.stable_rank:.2f}"),
            ("participation ratio", f"{s.participation_ratio:.1f}"),
            ("alpha-ReQ", "none" if s.alpha is None else f"{s.alpha:.2f} (eigenvalues {first} to {last})"),
            ("LiDAR", f"{self.lidar:.1f} of {min(s.width, self.view_images - 1)}"),
            ("expansion", f"{s.expansion_fraction:.3f} of its range (coding rate {s.coding_rate:.1f})"),
            ("uniformity", f"{s.uniformity:.2f}"),
            ("mean cosine", f"{s.mean_cosine:.3f}"),
            ("feature std", f"{s.feature_std:.3f}"),
            ("between-view share", " ".join(f"{x:.2f}" for x in self.between_view_share)),
            *([] if self.patch_rank is None else [("patch rank", f"{self.patch_rank:.1f}")]),
        ]
        return "\n".join([self.sentence, *(f"{name:<20}{value}" for name, value in rows)])


def health(
    encoder: Encoder,
    data: str | Path | Source,
    *,
    images: int = IMAGES,
    view_images: int = VIEW_IMAGES,
    views: int = VIEWS,
    eps: float = EPS,
    seed: int = 0,
    workers: int = 0,
    progress: Progress = unwatched,
) -> Health:
    """The monitors of an encoder on images without labels, and a verdict.

    images: at most so many, by a fixed shuffle, give the spectrum; at most `view_images` of them are seen in `views`
    random views each (`view_law`). eps: the distortion of the coding rate. seed: of the views. progress: given batches.
    Raises InputError for fewer than two readable images, or fewer than two views or images to view."""
    if min(images, view_images, views) < 2:
        raise InputError(
            f"health compares images and views: give 2 or more of each, not --images {images}, --view-images "
            f"{view_images}, --views {views}"
        )
    if not 1e-6 <= eps <= 1e3:
        raise InputError(f"--eps {eps} must be between 1e-6 and 1e3")
    everything = data if isinstance(data, Source) else open_dataset(data)
    source = subset(everything.with_bits(encoder.preprocess.bits), images)
    features = extract(encoder, source, precision="float32", workers=workers, progress=progress)
    if len(features) < 2:
        raise InputError(f"{source.name} has {len(features)} readable image: health compares images, give more")
    if not features.vectors.isfinite().all():
        raise InputError(f"the features of encoder {encoder.config.name} are not all finite: its weights are broken")
    unreadable = set(features.broken)
    viewed = subset(source.select([i for i, name in enumerate(source.names) if name not in unreadable]), view_images)
    layers = view_layers(encoder, viewed, views=views, seed=seed, progress=progress)
    facts = spectrum(features.vectors, eps=eps)
    status, sentence = verdict(facts, spread=spread_of(viewed))
    return Health(
        spectrum=facts,
        lidar=lidar(layers[-1].between, layers[-1].within),
        between_view_share=tuple(layer.between_share for layer in layers),
        patch_rank=patch_rank(encoder, viewed),
        view_images=len(viewed),
        views=views,
        status=status,
        sentence=sentence,
        broken=features.broken,
    )


def view_law(preprocess: Preprocess, *, views: int) -> ViewsConfig:
    """Views as training on images of the encoder's size would make them, all by one law: global crops, each blurred
    and solarised with the mean of the two global crops' chances."""
    law = row_for(preprocess.crop, gpu=True).views
    blur, solarize = (sum(chances[:2]) / 2 for chances in (law.blur, law.solarize))
    return replace(
        law, global_views=views, local_views=0, global_size=preprocess.crop, blur=(blur,) * 3, solarize=(solarize,) * 3
    )


def random_views(source: Source, preprocess: Preprocess, *, views: int, seed: int) -> Iterator[Tensor]:
    """Views of some images at a time, prepared for an encoder: float32 [n, views, C, crop, crop]. A function of the
    seed and of an image's position."""
    law = view_law(preprocess, views=views)
    keys = counters.sample_keys(seed, 0, np.arange(len(source)))
    at_once = max(1, IN_CACHE // views)
    for start in range(0, len(source), at_once):
        part = keys[start : start + at_once]
        read = [source.read(start + i, preprocess.channels, at_least=decoded_side(law)) for i in range(len(part))]
        heights, widths = np.array([image.shape[1:] for image in read]).T
        boxes, flips = crop_boxes(part, heights, widths, law)
        cut = torch.stack(
            [crops(image, box, flip, law.global_size) for image, box, flip in zip(read, boxes, flips, strict=True)], 1
        )
        given = torch.from_numpy(part)
        seen = photometric(cut, given, config=law, first=0, mean=preprocess.mean, std=preprocess.std)
        yield seen.transpose(0, 1)


@torch.inference_mode()
def view_layers(
    encoder: Encoder, source: Source, *, views: int, seed: int, progress: Progress = unwatched
) -> list[Grouped]:
    """How class tokens of views scatter within and between images: after each block through the final norm, the
    encoder's output last; for encoders without class tokens on the way the output alone."""
    device = next(encoder.parameters()).device
    layers: list[Grouped] = []
    batches = ceil(len(source) / max(1, IN_CACHE // views))
    was_training = encoder.training
    encoder.eval()
    for seen in progress(random_views(source, encoder.preprocess, views=views, seed=seed), "augmented views", batches):
        given = seen.flatten(0, 1).to(device)
        tokens = class_tokens(encoder, given)
        layers = layers or [Grouped() for _ in tokens]
        for layer, cls in zip(layers, tokens, strict=True):
            layer.add(cls.unflatten(0, (-1, views)).cpu())
    encoder.train(was_training)
    return layers


def class_tokens(encoder: Encoder, images: Tensor) -> list[Tensor]:
    """Class tokens [N, D] after each block, or of the output alone where the blocks have none."""
    try:
        return [tokens.cls for tokens in last_blocks(encoder, images, count=encoder.depth)]
    except InputError:
        return [encoder(images).cls]


def patch_rank(encoder: Encoder, source: Source) -> float | None:
    """The effective rank of the patch tokens of an image [P, D], the mean over images: between 1 and min(P, D)."""
    if encoder.patch_size is None:
        return None
    ranks: list[float] = []
    for _, images, _ in prepared(source, encoder.preprocess):
        for part in images.split(IN_CACHE):
            for patches in patch_features(encoder, part, precision="float32").flatten(1, 2).cpu():
                small = patches if len(patches) >= patches.shape[1] else patches.T  # the moments that are fewer
                ranks.append(effective_rank(Moments.of(small).singular_values))
    return sum(ranks) / len(ranks)


def verdict(facts: Spectrum, *, spread: float | None = None) -> tuple[Literal["collapsed", "low rank", "healthy"], str]:
    """Status and sentence, by two thresholds: the mean cosine between images, and the directions that the variance
    takes part in. spread: of the images themselves, see `same_images`."""
    seen = (
        f"mean cosine {facts.mean_cosine:.2f} between images, variance in {facts.participation_ratio:.1f} directions, "
        f"RankMe {facts.rank_me:.0f} of {facts.width}"
    )
    if not facts.mean_cosine <= ONE_VECTOR or not facts.participation_ratio > 0:
        why = same_images(spread) or (
            "all images have nearly the same feature. Raise --rho or lower --eps (DINO: change --teacher-temperature, "
            "or --centering sinkhorn); then a lower --lr. `simdino report RUN` tells when it began."
        )
        return "collapsed", f"Collapsed ({seen}; collapsed is a cosine above {ONE_VECTOR}, or no variance): {why}"
    few = min(FEW_DIRECTIONS, 0.5 * min(facts.width, facts.images - 1))  # so many images cannot vary in more
    if facts.participation_ratio < few:
        return "low rank", (
            f"Low rank ({seen}; low is under {few:g} directions): images differ in a few ways only, as at "
            f"random initialisation. Train longer; then raise --rho or lower --eps (DINO: a lower "
            f"--teacher-temperature), or give more varied images."
        )
    return "healthy", f"Healthy: {seen}."


def evaluate_health(
    encoder: str,
    data: str | None,
    *,
    images: int = IMAGES,
    view_images: int = VIEW_IMAGES,
    views: int = VIEWS,
    eps: float = EPS,
    device: str = "auto",
    log: Callable[[str], None] = to_stderr,
    progress: Progress = unwatched,
) -> Health:
    """`health` of an encoder wherever it is. Kept in evaluations.jsonl where that is a run folder.

    data: what the run was trained on unless given. device: where the encoder runs. log: called with a line where the
    folder cannot be written to. progress: given the batches."""
    where = asked_data(encoder, data)
    source = open_dataset(where)
    loaded = load_encoder(encoder, log=log).to(present_device(device))
    result = health(loaded, source, images=images, view_images=view_images, views=views, eps=eps, progress=progress)
    keep_scores(
        encoder, protocol="health", where=where, name=source.name, counted={},
        settings={"images": images, "view_images": view_images, "views": views, "eps": eps},
        results=result.as_dict(), said=str(result), log=log,
    )  # fmt: skip
    return result
