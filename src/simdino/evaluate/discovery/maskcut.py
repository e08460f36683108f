"""Masks of objects without any training for it: MaskCut (Wang et al. 2023, arXiv:2301.11320) and TokenCut (Wang et al.
2022, arXiv:2202.11539).

Both link patches whose keys in the last block point the same way, cut the graph in two where the normalised cut is
least (Shi and Malik 2000), and take the connected side around the patch that the cut is surest of. Rules and constants
are those of CutLER (maskcut/maskcut.py at cca0a27) and TokenCut (fed52cd).
"""

from math import floor, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from simdino.contracts import InputError, unit
from simdino.data.pictures import as_rgb
from simdino.evaluate.discovery import COUNT, TAU
from simdino.extras import optional
from simdino.features.attention import last_heads
from simdino.features.extract import inputs, patch_of
from simdino.models.encoder import Encoder

WEAK = 1e-5  # the weight of an edge between patches that are not alike: the graph stays connected
SIZE = 480  # pixels of a side: CutLER's ...
PATCHES = 60  # ... with its patches of 8; of smaller patches no more than that
DENSE = 2000  # patches up to which all of the matrix is decomposed; Lanczos iterations beyond
LARGEST = 6_400  # patches of an image: their graph has as many squared edges, attention as many squared weights a head
ROWS = 512  # of the graph that are float64 at a time
NEAR, NEAR_WEIGHT = 3, 7  # pixels over which neighbours agree whatever their colours, and how much
FAR, COLOUR, ALIKE_WEIGHT = 50, 5, 10  # pixels and steps of colour over which those of like colours agree, and how much
ITERATIONS = 10
LEAST_OVERLAP = 0.5  # IoU with the mask before, below which the fitted one is dropped

Bits = NDArray[np.bool_]


def maskcut(
    encoder: Encoder, image: Tensor, *,
    count: int = COUNT, tau: float = TAU["maskcut"], size: int | None = None, crf: bool = False,
) -> Tensor:  # fmt: skip
    """Up to `count` masks, bool [n, H, W], of one uint8 image [C, H, W], the surest first; disjoint without `crf`.

    tau: the cosine of two keys above which patches are linked. size: the side in pixels that the image is brought to,
    whatever its aspect (Lanczos), snapped to a multiple of the patch; 480 unless given, less where that is more than 60
    patches. crf: whether masks are fitted to the edges of the image, and those that change too much dropped, see
    `fitted_to_edges`.

    A stage cuts the graph, takes a region, and unlinks its patches for the next. From the second on, a region that is
    not above 1 % of the patches, or whose IoU with the stage before it is above 1/2, is dropped. Two things of the
    original are kept or settled here:

    - A dropped stage counts as an empty region for the next, which cuts the same graph, finds the same region and
      keeps it, less what was taken before. We keep this: a region beside a larger one is found in no other way, since
      patches already taken fall on its side of the cut. What is then left of a region may be nothing, so that there
      are fewer masks.
    - An eigenvector has no sign, and the original's choice of a side depends on the one its solver returns. Here the
      surest patch is positive. The side it is on is the object, unless that holds three or four of the corners.

    Masks are enlarged from patches to pixels by nearest neighbour. An image whose patches are all alike has none.

    Raises InputError for an encoder without patches or readable attention, for a count, tau or size out of range, and
    where `crf` is asked for but not installed.
    """
    patch, sides = patch_of(encoder), (image.shape[1], image.shape[2])
    side = snapped(encoder, size or min(SIZE, PATCHES * patch))
    square = resized(image, (side, side))
    keys, grid = keys_of(encoder, inputs(encoder, square[None]))
    masks = regions(keys, grid, count=count, tau=tau)
    if not crf:
        return enlarged(masks, sides)
    fitted = [mask for one in enlarged(masks, (side, side)) if (mask := fitted_to_edges(square, one)) is not None]
    large = [mask for one in fitted if (mask := half_covered(one, sides)).any()]
    return torch.stack(large) if large else masks.new_zeros(0, *sides)


def tokencut(encoder: Encoder, image: Tensor, *, tau: float = TAU["tokencut"]) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) in pixels, right and bottom exclusive, of the most salient object of a uint8
    image [C, H, W] at its own size. An image whose patches are all alike is its own box.

    The sides are padded at the right and bottom by the mean colour to whole patches. Images of more than 6,400
    patches are reduced to that many first, which the original does not do.

    Raises InputError as `maskcut` does.
    """
    patch, (height, width) = patch_of(encoder), image.shape[1:]
    scale = min(1.0, patch * sqrt(LARGEST / (height * width)))
    small = resized(image, (max(1, floor(height * scale)), max(1, floor(width * scale)))) if scale < 1 else image
    given = inputs(encoder, small[None])
    keys, grid = keys_of(encoder, F.pad(given, (0, -given.shape[3] % patch, 0, -given.shape[2] % patch)))
    linked = links(keys, tau=tau)
    if featureless(linked):
        return 0, 0, width, height
    region = region_of(second_eigenvector(linked), grid, corners=False)
    rows, columns = np.nonzero(region)
    across, down = patch * width / small.shape[2], patch * height / small.shape[1]
    left, right = round(columns.min() * across), round((columns.max() + 1) * across)
    top, bottom = round(rows.min() * down), round((rows.max() + 1) * down)
    return left, top, min(right, width), min(bottom, height)


def regions(keys: Tensor, grid: tuple[int, int], *, count: int, tau: float) -> Tensor:
    """The masks of `maskcut` on the grid of patches, bool [n, h, w], from keys [P, D] in row-major order."""
    if count < 1:
        raise InputError(f"--masks {count} must be 1 or more")
    linked = links(keys, tau=tau)
    taken, previous, found = np.zeros(grid, dtype=bool), np.zeros(grid, dtype=bool), list[Bits]()
    region = None
    for stage in range(count):
        if region is None:
            if featureless(linked):
                break
            region = region_of(second_eigenvector(linked), grid, corners=True)
        if stage and region.mean() <= 0.01:
            break  # every later stage would find it again
        if stage and overlap(region, previous) > 0.5:
            previous = np.zeros_like(taken)
            continue
        found.append(region & ~taken)
        taken, previous = taken | region, region
        linked[region.ravel()] = linked[:, region.ravel()] = False
        region = None
    kept = [mask for mask in found if mask.any()]
    return torch.from_numpy(np.stack(kept)) if kept else torch.zeros(0, *grid, dtype=torch.bool)


def keys_of(encoder: Encoder, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Keys [P, D] of the patches of one image [1, C, H, W] in the last block, on the CPU, and their grid (h, w)."""
    heads = last_heads(encoder, images)
    return heads.patch_keys()[0].float().cpu(), heads.grid


def links(keys: Tensor, *, tau: float) -> Bits:
    """Which patches are linked, bool [P, P]: those whose keys [P, D] have a cosine above tau, and each with itself."""
    if not 0 <= tau < 1:
        raise InputError(f"--tau {tau} must be in [0, 1): it is the cosine above which patches are linked")
    keys = unit(keys)
    return torch.cat([rows @ keys.T > tau for rows in keys.split(ROWS)]).numpy()


def featureless(linked: Bits) -> bool:
    """Whether every patch is linked to all, or none to another: such a graph has no least cut."""
    degrees = linked.sum(1)
    return bool((degrees == len(linked)).all() or (degrees <= 1).all())


def second_eigenvector(linked: Bits) -> NDArray[np.float64]:
    """x [P] of the second smallest eigenvalue of (D - A) x = lambda D x, where A is 1 between linked patches and 1e-5
    between others, and D its row sums. Positive at its largest magnitude.

    Solved as a symmetric problem: x = D^-1/2 u, u the eigenvector of the second largest eigenvalue of
    D^-1/2 A D^-1/2. Its largest is 1, with u = D^1/2 1, and is taken out.
    """
    degrees = WEAK * len(linked) + (1 - WEAK) * linked.sum(1, dtype=np.float64)
    scale = degrees**-0.5
    first = np.sqrt(degrees / degrees.sum())
    x = scale * (of_matrix if len(linked) <= DENSE else by_iteration)(linked, scale, first)
    return x * np.sign(x[np.abs(x).argmax()])


def of_matrix(linked: Bits, scale: NDArray[np.float64], first: NDArray[np.float64]) -> NDArray[np.float64]:
    """The eigenvector of the largest eigenvalue of D^-1/2 A D^-1/2 less its first, from the whole matrix."""
    from scipy.linalg import eigh

    matrix = np.where(linked, 1.0, WEAK) * scale * scale[:, None] - first * first[:, None]
    last = len(linked) - 1
    return eigh(matrix, subset_by_index=[last, last], overwrite_a=True)[1][:, 0]


def by_iteration(linked: Bits, scale: NDArray[np.float64], first: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same by Lanczos iterations from a fixed start, a few rows of the matrix at a time."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    def times(v: NDArray[np.float64]) -> NDArray[np.float64]:
        v = v.ravel()
        scaled = scale * v
        blocks = [linked[i : i + ROWS].astype(np.float64) @ scaled for i in range(0, len(linked), ROWS)]
        return scale * ((1 - WEAK) * np.concatenate(blocks) + WEAK * scaled.sum()) - first * (first @ v)

    matrix = LinearOperator((len(linked), len(linked)), matvec=times, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    start = np.random.default_rng(0).standard_normal(len(linked))
    try:
        return eigsh(matrix, k=1, which="LA", v0=start, ncv=40)[1][:, 0]
    except ArpackNoConvergence:
        return of_matrix(linked, scale, first)


def region_of(x: NDArray[np.float64], grid: tuple[int, int], *, corners: bool) -> Bits:
    """The connected part (by sides of patches) around the surest patch of the patches above the mean of x [P], which
    is positive at its largest magnitude. corners: if three or more corners of the grid are above, those below."""
    from scipy.ndimage import label

    image = x.reshape(grid)
    above = image > image.mean()
    if corners and above[[0, 0, -1, -1], [0, -1, 0, -1]].sum() >= 3:
        image, above = -image, ~above
    parts = np.zeros(grid, dtype=np.int32)
    label(above, output=parts)
    return parts == parts.flat[image.argmax()]


def overlap(a: Bits, b: Bits) -> float:
    """Intersection over union of two masks, one of which is not empty."""
    return (a & b).sum() / (a | b).sum()


def snapped(encoder: Encoder, size: int) -> int:
    """The largest multiple of the patch up to `size`."""
    patch = patch_of(encoder)
    patches = size // patch
    if not 2 <= patches <= sqrt(LARGEST):
        raise InputError(
            f"--size {size} is {patches} patches of {patch} pixels; give {2 * patch} to {floor(sqrt(LARGEST)) * patch}"
        )
    return patches * patch


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """[C, H, W] -> [C, h, w] by Pillow's Lanczos filter, each channel by itself."""
    planes = [Image.fromarray(plane.contiguous().cpu().numpy()) for plane in image]
    found = np.stack([np.array(plane.resize((size[1], size[0]), Image.Resampling.LANCZOS)) for plane in planes])
    return torch.from_numpy(found if image.dtype == torch.uint8 else found.clip(0, 1))


def enlarged(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """bool [n, h, w] -> [n, H, W] by nearest neighbour."""
    if not len(masks):
        return masks.new_zeros(0, *size)
    return F.interpolate(masks[None].float(), size, mode="nearest-exact")[0] > 0


def fitted_to_edges(image: Tensor, mask: Tensor) -> Tensor | None:
    """A mask bool [H, W] of a uint8 image [C, H, W] moved to the image's edges by a fully connected CRF (Kraehenbuehl
    and Koltun 2011, arXiv:1210.5644), holes filled; None where its IoU with the mask before is below 1/2. The numbers
    are those of CutLER (maskcut/crf.py at cca0a27): each pixel is held to be in the mask with probability .73 inside
    and .27 outside (softmax of 1 and 0). Raises InputError where pydensecrf2, an extra, is not installed."""
    densecrf, unary = optional("pydensecrf.densecrf"), optional("pydensecrf.utils")
    from scipy.ndimage import binary_fill_holes

    height, width = mask.shape
    inside = mask.float()
    field = densecrf.DenseCRF2D(width, height, 2)
    field.setUnaryEnergy(unary.unary_from_softmax(torch.stack([1 - inside, inside]).softmax(0).numpy()))
    field.addPairwiseGaussian(sxy=NEAR, compat=NEAR_WEIGHT)
    pixels = np.ascontiguousarray(as_rgb(image).permute(1, 2, 0).numpy())
    field.addPairwiseBilateral(sxy=FAR, srgb=COLOUR, rgbim=pixels, compat=ALIKE_WEIGHT)
    likely = np.array(field.inference(ITERATIONS)).argmax(0).reshape(height, width)
    fitted = torch.from_numpy(np.asarray(binary_fill_holes(likely), bool))
    union = (fitted | mask).sum()
    return fitted if union and (fitted & mask).sum() / union >= LEAST_OVERLAP else None


def half_covered(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """bool [h, w] -> [H, W], the pixels that a bicubic filter gives more than half of the greatest value."""
    grey = Image.fromarray(mask.numpy().astype(np.uint8) * 255).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    values = torch.from_numpy(np.array(grey))
    return values > values.max() / 2
