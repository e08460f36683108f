"""Masks fitted to the edges of their image by a fully connected CRF (Kraehenbuehl and Koltun 2011, arXiv:1210.5644)
with the numbers of CutLER (maskcut/crf.py at cca0a27). By pydensecrf2, an extra."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from simdino.data.pictures import as_rgb
from simdino.extras import optional

NEAR, NEAR_WEIGHT = 3, 7  # pixels over which neighbours agree whatever their colours, and how much
FAR, COLOUR, ALIKE_WEIGHT = 50, 5, 10  # pixels and steps of colour over which those of like colours agree, and how much
ITERATIONS = 10
LEAST_OVERLAP = 0.5  # IoU with the mask before, below which the fitted one is dropped


def fitted_to_edges(image: Tensor, mask: Tensor) -> Tensor | None:
    """A mask bool [H, W] of a uint8 image [C, H, W] moved to the image's edges, holes filled; None where its IoU with
    the mask before is below 1/2.

    Each pixel is held to be in the mask with probability .73 inside and .27 outside (softmax of 1 and 0).

    Raises InputError where pydensecrf2 is not installed."""
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
