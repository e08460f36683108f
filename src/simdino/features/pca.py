"""Patch features as colours: the principal components of several pictures at once (DINOv2's figures).

The first component parts objects from background; the first three of the foreground become red, green and blue, so
that like parts of different pictures have like colours. There is nothing random in it: covariances are taken and
decomposed in float64, and a component's sign is chosen by what it says, not by the solver.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from simdino.contracts import InputError
from simdino.features.attention import looked_at
from simdino.features.extract import patch_features
from simdino.features.spectra import Moments
from simdino.models.encoder import Encoder

CLIP = 2.3  # standard deviations that are full colour (capi, eval_visualizations.py at 98b4fa1)
COLOURS = 3


@dataclass(frozen=True, kw_only=True)
class Principal:
    """One picture's patches as colours."""

    image: Tensor  # uint8 [C, H, W], the picture as it was looked at
    colours: Tensor  # float32 [h, w, 3] in [0, 1]
    foreground: Tensor  # bool [h, w]


@torch.inference_mode()
def principal_pictures(
    encoder: Encoder, images: Sequence[Tensor], *, size: int | None = None, foreground: bool = True
) -> list[Principal]:
    """The colours of pictures uint8 [C, H, W], joint over all of them.

    size: see `attention.looked_at`. foreground: whether the background is told apart first and left out of the colours.
    Raises InputError for an encoder without patch tokens."""
    shown = [looked_at(encoder, image, size=size) for image in images]
    features = [patch_features(encoder, image[None], precision="float32")[0].cpu() for image in shown]
    front = foreground_of(features) if foreground else [torch.ones(f.shape[:2], dtype=torch.bool) for f in features]
    colours = colours_of(features, front)
    rows = zip(shown, colours, front, strict=True)
    return [Principal(image=image, colours=colour, foreground=mask) for image, colour, mask in rows]


def foreground_of(features: Sequence[Tensor]) -> list[Tensor]:
    """Which patches are foreground, bool [h, w] for each of the features [h, w, D].

    The direction along which the patches of a picture differ most, one for all pictures; in each picture its two sides
    are parted where they are most alike in themselves (Otsu's threshold), and lone patches go with those around them
    (a 3 x 3 median, as in dinov3/notebooks/pca.ipynb at 6876159). The side that has less of the pictures' borders
    than of their insides is the foreground, the same side in all: photographers put things inside."""
    within = Moments()
    for f in features:
        rows = f.flatten(0, 1).double()
        within.add(rows - rows.mean(0))
    direction = leading(within, 1)[0][:, 0]
    scores = [f.double() @ direction for f in features]
    above = [smoothed(score > otsu(score.flatten())) for score in scores]
    at_border = torch.cat([one[border(one)] for one in above]).double().mean()
    inside = torch.cat([one[~border(one)] for one in above]).double().mean()
    return [~a for a in above] if at_border > inside else above


def smoothed(mask: Tensor) -> Tensor:
    """What most of the 3 x 3 patches around each patch say: bool [h, w]. Edges are repeated outwards."""
    around = functional.pad(mask.double()[None, None], (1, 1, 1, 1), mode="replicate")
    return functional.avg_pool2d(around, 3, stride=1)[0, 0] > 0.5


def border(mask: Tensor) -> Tensor:
    """The outermost patches of a grid [h, w]."""
    edge = torch.ones_like(mask)
    edge[1:-1, 1:-1] = False
    return edge


def otsu(values: Tensor) -> float:
    """The threshold that parts values [N] into two groups of the least variance within (Otsu 1979), over all N - 1
    places; values above it are the upper group. Equal values stay together."""
    ordered = values.double().sort().values
    n = len(ordered)
    low = torch.arange(1, n, dtype=torch.float64)
    sums = ordered.cumsum(0)
    apart = low * (n - low) * (sums[:-1] / low - (sums[-1] - sums[:-1]) / (n - low)).square()
    apart = apart.where(ordered[1:] > ordered[:-1], -1)
    return float(ordered[apart.argmax()]) if n > 1 else float("-inf")


def colours_of(features: Sequence[Tensor], front: Sequence[Tensor]) -> list[Tensor]:
    """Colours float32 [h, w, 3] in [0, 1] of all patches, by the components of those in front.

    Each component is divided by its standard deviation in front, turned so that its skew there is positive, and
    clipped at 2.3 deviations."""
    moments = Moments()
    chosen = [f[mask] for f, mask in zip(features, front, strict=True)]
    for rows in chosen:
        moments.add(rows)
    if moments.count <= COLOURS:
        raise InputError(
            "too few patches to tell colours apart: give larger pictures, a larger --size, or more of them"
        )
    directions, values = leading(moments, COLOURS)
    scale = values.clamp_min(1e-12 * float(values[0]) + torch.finfo(values.dtype).tiny).rsqrt()
    whitening = directions * scale
    skew = sum((((rows.double() - moments.mean) @ whitening) ** 3).sum(0) for rows in chosen)
    whitening = whitening * torch.where(torch.as_tensor(skew) < 0, -1.0, 1.0)
    scores = [((f.double() - moments.mean) @ whitening).clamp(-CLIP, CLIP) for f in features]
    return [(0.5 + 0.5 * score / CLIP).float() for score in scores]


def leading(moments: Moments, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` principal directions [D, count] and their variances [count], the largest first."""
    values, vectors = torch.linalg.eigh(moments.covariance)
    return vectors[:, -count:].flip(-1), values[-count:].flip(-1).clamp_min(0)
