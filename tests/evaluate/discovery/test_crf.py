"""Masks moved to the edges of their image by a fully connected CRF."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted import Planted

from simdino.evaluate.discovery import maskcut as module
from simdino.evaluate.discovery.maskcut import fitted_to_edges, half_covered, maskcut

pytestmark = pytest.mark.extra("pydensecrf")
SIDE = 24


def mean_field(image: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    """The CRF written out over all pairs of pixels in float64: kernels normalised on both sides by their row sums, as
    the library's default does, Potts weights 7 and 10, ten steps."""
    y, x = (axis.ravel()[:, None] for axis in np.mgrid[: mask.shape[0], : mask.shape[1]].astype(float))
    colours = image.permute(1, 2, 0).reshape(-1, 3).double().numpy()
    places = (y - y.T) ** 2 + (x - x.T) ** 2
    shades = ((colours[:, None] - colours[None]) ** 2).sum(-1)
    kernels = []
    for kernel in (np.exp(-places / (2 * 3**2)), np.exp(-places / (2 * 50**2) - shades / (2 * 5**2))):
        scale = kernel.sum(1) ** -0.5
        kernels.append(kernel * scale * scale[:, None])
    inside = mask.numpy().ravel().astype(float)
    unary = np.stack([1 - inside, inside])
    q = np.exp(unary) / np.exp(unary).sum(0)
    for _ in range(10):
        q = np.exp(unary + 7 * q @ kernels[0] + 10 * q @ kernels[1])
        q /= q.sum(0)
    return q.argmax(0).reshape(mask.shape) == 1


@pytest.mark.parametrize(("slope", "seed"), [(40, 0), (40, 1), (120, 0)])
def test_the_field_is_that_of_all_pairs_of_pixels(slope: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slope of colours, where every number of the field matters."""
    monkeypatch.setattr(module, "LEAST_OVERLAP", 0)
    generator, ramp = torch.Generator().manual_seed(seed), torch.linspace(0, 1, SIDE)
    colours = 100 + slope * (ramp + ramp[:, None]) + 4 * torch.randn(3, SIDE, SIDE, generator=generator)
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[3 : 12 + 2 * seed, 3:18] = True
    mask ^= torch.rand(SIDE, SIDE, generator=generator) < 0.3
    image = colours.clamp(0, 255).byte()
    expected, found = mean_field(image, mask), fitted_to_edges(image, mask)
    assert found is not None and 0.1 < expected.mean() < 0.9
    assert (found.numpy() == expected).mean() > 0.96  # the library filters on a lattice


def test_holes_are_filled() -> None:
    image, ring = torch.full((3, SIDE, SIDE), 30, dtype=torch.uint8), torch.zeros(SIDE, SIDE, dtype=torch.bool)
    ring[4:20, 4:20] = True
    whole = ring.clone()
    image[0, ring] = 230
    image[:, 9:15, 9:15] = 30
    ring[9:15, 9:15] = False
    found = fitted_to_edges(image, ring)
    assert found is not None and torch.equal(found, whole)


def test_masks_are_fitted_to_edges_and_those_that_change_too_much_are_dropped() -> None:
    image = torch.full((3, 40, 60), 30, dtype=torch.uint8)
    image[:, 8:32, 12:44] = 220
    edge = image[0] > 100
    rough = edge.roll((2, -3), (0, 1)) & (torch.rand(40, 60, generator=torch.Generator().manual_seed(0)) > 0.1)
    fitted = fitted_to_edges(image, rough)
    assert fitted is not None and torch.equal(fitted, edge)
    assert fitted_to_edges(image, torch.zeros_like(edge)) is None
    sliver = torch.zeros_like(edge)
    sliver[8:32, 12:20] = True  # a quarter of the object: all of it is taken, or nothing
    assert fitted_to_edges(image, sliver) is None
    assert torch.equal(half_covered(edge, (80, 120)), edge.repeat_interleave(2, 0).repeat_interleave(2, 1))
    planted = torch.zeros(3, 64, 64, dtype=torch.uint8) + 20
    planted[0, 16:40, 16:40] = 230
    (mask,) = maskcut(Planted(), planted, count=1, size=64, crf=True)
    assert torch.equal(mask, planted[0] > 100)
