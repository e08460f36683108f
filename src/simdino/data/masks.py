"""Block masks for the patch objective: which patches of which global crops are hidden from the student.

The rule is that of DINOv2 and SimDINOv2 (dinov2/data/masking.py and collate.py at b8931f7): a share of all global crops
of a batch is masked, the ratios of the masked ones form a ladder, and rectangles are placed until the ratio is reached.
Here the batch is the global one and every number comes from a counter, so masks do not depend on how it is split."""

from math import exp, log

import numpy as np
from numpy.typing import NDArray

from simdino import rng as counters

SMALLEST = 4  # patches in a rectangle
LARGEST = 0.5  # share of the grid
ASPECT = (0.3, 1 / 0.3)
TRIES = 10


def mask_ratios(
    seed: int, step: int, *, views: int, batch: int, share: float, ratio: tuple[float, float]
) -> NDArray[np.float64]:
    """Return the share of patches to mask in each global crop of batch `step`: float64 [views, batch], 0 for unmasked
    crops.

    int(share * crops) crops, chosen by a shuffle, are masked. The interval `ratio` is cut into as many equal steps, and
    each masked crop draws its ratio from one of them."""
    crops = views * batch
    masked = int(share * crops)
    edges = np.linspace(*ratio, masked + 1)
    key = counters.sample_keys(seed, step, counters.MASKS)
    within = counters.uniform(key, counters.MASKS, masked)[0] if masked else np.empty(0)
    ratios = np.zeros(crops)
    ratios[:masked] = edges[:-1] + within * np.diff(edges)
    shuffle = counters.uniform(key, counters.MASKS + 1, crops)[0].argsort(kind="stable")
    return ratios[shuffle].reshape(views, batch)


def block_mask(key: np.int64, view: int, *, grid: tuple[int, int], patches: int) -> NDArray[np.bool_]:
    """Return a mask of at most `patches` patches in rectangles, bool [h, w], from the image's rng key.

    It masks fewer than `patches` only where ten rectangles in a row did not fit."""
    rows, columns = grid
    words = np.array([np.int64(key).view(np.uint64), counters.MASKS + view], dtype=np.uint64)
    random = np.random.Generator(np.random.Philox(key=words))
    mask = np.zeros(grid, dtype=bool)
    while (left := patches - int(mask.sum())) > 0:
        for _ in range(TRIES):
            most = min(left, LARGEST * rows * columns)  # below SMALLEST near the end, as in DINOv2
            area = SMALLEST + (most - SMALLEST) * random.random()
            aspect = exp(random.uniform(log(ASPECT[0]), log(ASPECT[1])))
            height, width = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if not (0 < height < rows and 0 < width < columns):
                continue
            top, left_edge = random.integers(rows - height + 1), random.integers(columns - width + 1)
            block = mask[top : top + height, left_edge : left_edge + width]
            if 0 < block.size - int(block.sum()) <= left:
                block[:] = True
                break
        else:
            break
    return mask


def masks_for(keys: NDArray[np.int64], ratios: NDArray[np.float64], *, grid: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the masks of a part of a batch, bool [G, B, P]. keys: [B]; ratios: [G, B], see `mask_ratios`."""
    count = grid[0] * grid[1]
    masks = [
        [
            block_mask(key, view, grid=grid, patches=int(count * ratio)).reshape(-1)
            for key, ratio in zip(keys, row, strict=True)
        ]
        for view, row in enumerate(ratios)
    ]
    return np.array(masks, dtype=bool).reshape(*ratios.shape, count)
