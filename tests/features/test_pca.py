"""Colours of patches: what is planted is found, and neither solvers' signs nor the order of pictures show."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.features import pca as principal
from simdino.features.pca import colours_of, foreground_of, otsu, principal_pictures, smoothed
from simdino.models.catalogue import make_encoder

PREPROCESS = Preprocess(resize=16, crop=16, channels=3, mean=(0.5,) * 3, std=(0.3,) * 3)


def planted(count: int = 3, *, size: int = 10, seed: int = 0) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Features [h, w, 16] of pictures with a square object of two halves inside: background, halves and where they
    are."""
    generator = torch.Generator().manual_seed(seed)
    back, left, right = 3 * torch.randn(3, 16, generator=generator)
    right = left + 0.4 * right  # the halves are more alike than object and background
    features, objects, halves = [], [], []
    for i in range(count):
        mask, half = torch.zeros(size, size, dtype=torch.bool), torch.zeros(size, size, dtype=torch.bool)
        mask[2:8, 1 + i : 7 + i], half[2:8, 4 + i : 7 + i] = True, True
        clean = torch.where(half[..., None], right, torch.where(mask[..., None], left, back))
        features.append(clean + 0.1 * torch.randn(size, size, 16, generator=generator))
        objects.append(mask)
        halves.append(half)
    return features, objects, halves


def test_planted_objects_are_the_foreground() -> None:
    features, objects, _ = planted()
    for found, mask in zip(foreground_of(features), objects, strict=True):
        assert (found != mask).sum() <= 4  # the median takes the corners


def test_the_foreground_is_inside_whichever_way_features_point() -> None:
    features, _, _ = planted()
    for found, turned in zip(foreground_of(features), foreground_of([-f for f in features]), strict=True):
        assert torch.equal(found, turned)


def test_two_halves_have_two_colours_and_the_same_in_every_picture() -> None:
    features, objects, halves = planted()
    colours = colours_of(features, objects)
    assert all(c.shape == (10, 10, 3) and c.min() >= 0 and c.max() <= 1 for c in colours)
    kinds = [(c[half].mean(0), c[mask & ~half].mean(0)) for c, mask, half in zip(colours, objects, halves, strict=True)]
    for one, other in kinds:
        assert (one - other).abs().max() > 0.3
        assert torch.allclose(one, kinds[0][0], atol=0.1) and torch.allclose(other, kinds[0][1], atol=0.1)


def slow_colours(features: list[Tensor], front: list[Tensor]) -> list[Tensor]:
    """By singular vectors, with the sign that makes the skew positive."""
    rows = torch.cat([f[m] for f, m in zip(features, front, strict=True)]).double()
    mean = rows.mean(0)
    _, _, directions = torch.linalg.svd(rows - mean, full_matrices=False)
    found = []
    for f in features:
        channels = []
        for direction in directions[:3]:
            scores = (rows - mean) @ direction
            sign = 1 if scores.pow(3).sum() >= 0 else -1
            channels.append((sign * ((f.double() - mean) @ direction) / scores.std()).clamp(-2.3, 2.3))
        found.append(torch.stack(channels, dim=-1) / 4.6 + 0.5)
    return found


def test_colours_are_the_whitened_components_of_the_foreground() -> None:
    features, objects, _ = planted(seed=3)
    for found, expected in zip(colours_of(features, objects), slow_colours(features, objects), strict=True):
        assert torch.allclose(found.double(), expected, atol=1e-5)


@pytest.mark.parametrize("signs", [(-1, 1, 1), (1, -1, -1), (-1, -1, -1)])
def test_the_signs_that_a_solver_chooses_do_not_show(
    signs: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    features, objects, _ = planted()
    before, front = colours_of(features, objects), foreground_of(features)
    own = principal.leading

    def flipped(moments, count):
        directions, values = own(moments, count)
        return directions * torch.tensor(signs[:count], dtype=torch.float64), values

    monkeypatch.setattr(principal, "leading", flipped)
    assert all(torch.equal(a, b) for a, b in zip(before, colours_of(features, objects), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(front, foreground_of(features), strict=True))


def test_the_order_of_pictures_does_not_show() -> None:
    features, objects, _ = planted()
    order = [2, 0, 1]
    turned = colours_of([features[i] for i in order], [objects[i] for i in order])
    for i, found in zip(order, turned, strict=True):
        assert torch.allclose(found, colours_of(features, objects)[i], atol=1e-6)
    for i, found in zip(order, foreground_of([features[i] for i in order]), strict=True):
        assert torch.equal(found, foreground_of(features)[i])


def test_otsu_parts_where_both_sides_vary_least() -> None:
    drawn = torch.randn(65, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.cat([drawn[:40], 6 + 2 * drawn[40:]]).sort().values
    within = [
        float(((low := values[:i]) - low.mean()).square().sum() + ((up := values[i:]) - up.mean()).square().sum())
        for i in range(1, 65)
    ]
    best = 1 + min(range(64), key=within.__getitem__)
    assert int((values > otsu(values)).sum()) == 65 - best
    assert int((torch.tensor([1.0, 1.0, 1.0, 2.0]) > otsu(torch.tensor([1.0, 1.0, 1.0, 2.0]))).sum()) == 1


def test_lone_patches_go_with_those_around_them() -> None:
    mask = torch.zeros(5, 6, dtype=torch.bool)
    mask[1, 1] = True
    assert not smoothed(mask).any() and smoothed(~mask).all()


def test_a_picture_of_an_encoder_has_a_colour_for_each_patch() -> None:
    torch.manual_seed(0)
    encoder = make_encoder(EncoderConfig(name="vit_toy", image_size=16, patch_size=4), PREPROCESS).eval()
    images = [torch.randint(0, 256, (3, height, 40), dtype=torch.uint8) for height in (20, 60)]
    for one, grid in zip(principal_pictures(encoder, images, size=16), [(4, 8), (6, 4)], strict=True):
        assert one.colours.shape == (*grid, 3) and one.foreground.shape == grid
        assert one.image.shape == (3, 4 * grid[0], 4 * grid[1])
    everything = principal_pictures(encoder, images, size=16, foreground=False)
    assert all(one.foreground.all() for one in everything)
    with pytest.raises(InputError, match="too few patches"):
        principal_pictures(encoder, images[:1], size=1, foreground=False)
