"""The monitors of `health`: the spectrum of class tokens, and what random views of images tell."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from simdino import rng as counters
from simdino.config import ViewsConfig
from simdino.contracts import InputError, Preprocess
from simdino.data.base import Source, subset
from simdino.data.photometric import photometric, to_unit_range
from simdino.data.survey import spread_of
from simdino.data.views import crop_boxes, crops, decoded_side
from simdino.defaults import row_for
from simdino.features.extract import IN_CACHE, extract, patch_features, prepared
from simdino.features.spectra import Grouped, Moments, Spectrum, effective_rank, lidar, spectrum
from simdino.feedback import Progress, no_bar
from simdino.methods import cures
from simdino.models.encoder import Encoder, evaluating
from simdino.result import Result
from simdino.runs.verdict import same_images

Status = Literal["collapsed", "low rank", "healthy"]
ONE_VECTOR = 0.98  # mean cosine between images above which features have collapsed
FEW_DIRECTIONS = 5  # participation ratio under which they are of low rank: at random initialisation it is about 3


@dataclass(frozen=True, kw_only=True)
class Health(Result):
    """The monitors of an encoder, and what they say."""

    spectrum: Spectrum  # of class tokens, one for an image
    lidar: float  # of class tokens of views
    between_view_share: tuple[float, ...]  # after each block: the share of the variance that lies between images
    patch_rank: float | None  # effective rank of the patch tokens of an image, the mean; None without patches
    view_images: int  # images in the last three ...
    views: int  # ... and views of each
    status: Status
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


def measure(
    encoder: Encoder, data: Source, *,
    images: int, view_images: int, views: int, eps: float, seed: int = 0, workers: int = 0,
    method: str | None = None, progress: Progress = no_bar,
) -> Health:  # fmt: skip
    """The monitors of an encoder, see `health`. method: of the run that trained it.

    Raises InputError for fewer than two readable images."""
    source = subset(data.with_values(encoder.preprocess.values), images)
    features = extract(encoder, source, precision="float32", workers=workers, progress=progress)
    if len(features) < 2:
        raise InputError(f"{source.name} has {len(features)} readable image: health compares images, give more")
    if not features.vectors.isfinite().all():
        raise InputError(f"the features of encoder {encoder.config.name} are not all finite: its weights are broken")
    unreadable = set(features.broken)
    viewed = subset(source.select([i for i, name in enumerate(source.names) if name not in unreadable]), view_images)
    layers = view_layers(encoder, viewed, views=views, seed=seed, progress=progress)
    measured = spectrum(features.vectors, eps=eps)
    status, sentence = verdict(measured, spread=spread_of(viewed), method=method)
    return Health(
        spectrum=measured,
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
        images = (source.read(start + i, preprocess.channels, at_least=decoded_side(law)) for i in range(len(part)))
        read = [to_unit_range(image) for image in images]
        heights, widths = np.array([image.shape[1:] for image in read]).T
        boxes, ways = crop_boxes(part, heights, widths, law)
        cut = torch.stack(
            [crops(image, box, way, law.global_size) for image, box, way in zip(read, boxes, ways, strict=True)], 1
        )
        given = torch.from_numpy(part)
        seen = photometric(cut, given, config=law, first=0, mean=preprocess.mean, std=preprocess.std)
        yield seen.transpose(0, 1)


@torch.inference_mode()
def view_layers(
    encoder: Encoder, source: Source, *, views: int, seed: int, progress: Progress = no_bar
) -> list[Grouped]:
    """How class tokens of views scatter within and between images: after each block through the final norm, the
    encoder's output last; for encoders without class tokens on the way the output alone."""
    layers: list[Grouped] = []
    batches = ceil(len(source) / max(1, IN_CACHE // views))
    stream = random_views(source, encoder.preprocess, views=views, seed=seed)
    with evaluating(encoder):
        for seen in progress(stream, "augmented views", batches):
            tokens = class_tokens(encoder, seen.flatten(0, 1).to(encoder.device))
            layers = layers or [Grouped() for _ in tokens]
            for layer, cls in zip(layers, tokens, strict=True):
                layer.add(cls.unflatten(0, (-1, views)).cpu())
    return layers


def class_tokens(encoder: Encoder, images: Tensor) -> list[Tensor]:
    """Class tokens [N, D] after each block, or of the output alone where the blocks have none."""
    try:
        return [tokens.cls for tokens in encoder.last_blocks(images, encoder.depth)]
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


def verdict(
    measured: Spectrum, *, spread: float | None = None, method: str | None = None
) -> tuple[Status, str]:  # fmt: skip
    """Status and sentence, by two thresholds: the mean cosine between images, and the directions that the variance
    takes part in. spread: of the images themselves, see `same_images`. method: of the run."""
    seen = (
        f"mean cosine {measured.mean_cosine:.2f} between images, variance in {measured.participation_ratio:.1f} "
        f"directions, RankMe {measured.rank_me:.0f} of {measured.width}"
    )
    if not measured.mean_cosine <= ONE_VECTOR or not measured.participation_ratio > 0:
        why = same_images(spread) or (
            f"all images have nearly the same feature. Give {', or '.join([*cures(method), 'a lower --lr'])}. "
            f"`simdino report RUN` tells when it began."
        )
        return "collapsed", f"Collapsed ({seen}; collapsed is a cosine above {ONE_VECTOR}, or no variance): {why}"
    few = min(FEW_DIRECTIONS, 0.5 * min(measured.width, measured.images - 1))  # so many images cannot vary in more
    if measured.participation_ratio < few:
        return "low rank", (
            f"Low rank ({seen}; low is under {few:g} directions): images differ in a few ways only, as at "
            f"random initialisation. Train longer; then give {', or '.join([*cures(method), 'more varied images'])}."
        )
    return "healthy", f"Healthy: {seen}."
