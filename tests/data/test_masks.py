"""Block masks: how many crops, how many patches, which shapes; and that nothing but seed, step and key decides them."""

from __future__ import annotations

from functools import cache
from math import exp, log
from random import Random

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from simdino.config import ViewsConfig
from simdino.data.base import ArraySource
from simdino.data.loader import Batches, Loader
from simdino.data.masks import block_mask, mask_ratios, masks_for
from simdino.rng import sample_keys

pytestmark = pytest.mark.slow

Grid = tuple[int, int]
GRIDS: list[Grid] = [(14, 14), (8, 8), (7, 7), (2, 2)]
DRAWS = 10_000
RATIO = (0.1, 0.5)
SHORTFALL = {(14, 14): 0.08, (8, 8): 0.05, (7, 7): 0.05, (2, 2): 0.17}
"""Mean number of patches that a mask lacks of int(N * ratio), measured and rounded up. Of 2 x 2 patches the smallest
block asked for is too large, so that only rounding lets one patch be masked, in 46 of 100 masks."""


# --- ratios ---------------------------------------------------------------------------------------------------------


@cache
def drawn_ratios(views: int = 2, batch: int = 6, share: float = 0.5) -> NDArray[np.float64]:
    steps = [mask_ratios(3, step, views=views, batch=batch, share=share, ratio=RATIO) for step in range(DRAWS)]
    return np.stack(steps).reshape(DRAWS, -1)


@pytest.mark.parametrize(
    ("views", "batch", "share"), [(2, 6, 0.5), (2, 7, 0.5), (2, 5, 0.33), (1, 3, 1.0), (2, 4, 0.1), (2, 4, 0.2)]
)
def test_int_of_share_times_crops_are_masked_one_from_each_rung(views: int, batch: int, share: float) -> None:
    ratios, count = drawn_ratios(views, batch, share), int(share * views * batch)
    assert ratios.shape == (DRAWS, views * batch)
    assert ((ratios > 0).sum(1) == count).all()
    rungs = np.linspace(*RATIO, count + 1)
    climbing = np.sort(ratios, axis=1)[:, views * batch - count :]
    assert (climbing >= rungs[:-1]).all() and (climbing <= rungs[1:]).all()


def test_a_ratio_is_uniform_on_its_rung() -> None:
    rungs = np.linspace(*RATIO, 7)
    within = (np.sort(drawn_ratios(), axis=1)[:, 6:] - rungs[:-1]) / np.diff(rungs)
    assert np.abs(within.mean(0) - 0.5).max() < 5 / np.sqrt(12 * DRAWS)
    assert np.abs(within.std(0) - 12**-0.5).max() < 0.01
    assert np.abs(np.corrcoef(within.T) - np.eye(6)).max() < 5 / np.sqrt(DRAWS)  # rungs know nothing of one another


def test_every_crop_is_as_likely_to_be_masked_and_to_have_any_rung() -> None:
    ratios = drawn_ratios()
    assert np.abs((ratios > 0).mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(DRAWS)
    rung = np.floor((ratios - 0.1) / (0.4 / 6)).clip(-1, 5)
    for number in range(6):
        shares = (rung == number).mean(0)
        assert np.abs(shares - 1 / 12).max() < 5 * np.sqrt(1 / 12 * 11 / 12 / DRAWS)


def test_pairs_of_crops_are_masked_as_in_a_draw_without_replacement() -> None:
    masked = (drawn_ratios() > 0).astype(float)
    both = masked.T @ masked / DRAWS
    expected = 0.5 * 5 / 11
    assert np.abs(both[~np.eye(12, dtype=bool)] - expected).max() < 5 * np.sqrt(expected * (1 - expected) / DRAWS)


def test_steps_and_seeds_draw_other_ratios_and_the_same_step_the_same() -> None:
    def draw(seed: int, step: int) -> bytes:
        return mask_ratios(seed, step, views=2, batch=6, share=0.5, ratio=RATIO).tobytes()

    assert len({draw(seed, step) for seed in (-1, 0, 1) for step in range(5)}) == 15
    assert draw(1, 4) == draw(1, 4)


def test_no_share_is_no_mask() -> None:
    assert not mask_ratios(0, 0, views=2, batch=6, share=0.0, ratio=RATIO).any()


# --- blocks ---------------------------------------------------------------------------------------------------------


@cache
def drawn_masks(grid: Grid) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The patches asked for, [draws], and the masks, [draws, h, w]; ratios as evenly spread as in a batch."""
    keys = sample_keys(1, 0, np.arange(DRAWS))
    wanted = (grid[0] * grid[1] * np.linspace(*RATIO, DRAWS)).astype(int)
    masks = [block_mask(key, i % 2, grid=grid, patches=n) for i, (key, n) in enumerate(zip(keys, wanted, strict=True))]
    return wanted, np.array(masks)


def dinov2s_mask(random: Random, grid: Grid, patches: int) -> NDArray[np.bool_]:
    """masking.py as method and paper describe it, line by line."""
    rows, columns = grid
    mask, count = np.zeros(grid, dtype=bool), 0
    while count < patches:
        most, added = min(patches - count, 0.5 * rows * columns), 0
        for _ in range(10):
            area = random.uniform(4, most)
            aspect = exp(random.uniform(log(0.3), log(1 / 0.3)))
            h, w = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if w < columns and h < rows:
                top, left = random.randint(0, rows - h), random.randint(0, columns - w)
                new = h * w - int(mask[top : top + h, left : left + w].sum())
                if 0 < new <= most:
                    mask[top : top + h, left : left + w] = True
                    added = new
                    break
        if not added:
            break
        count += added
    return mask


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_mask_hides_at_most_what_it_should_and_seldom_less(grid: Grid) -> None:
    wanted, masks = drawn_masks(grid)
    lacking = wanted - masks.sum((1, 2))
    assert (lacking >= 0).all() and lacking.sum() > 0
    assert lacking.mean() < SHORTFALL[grid]
    if grid != (2, 2):
        assert (lacking <= 4).mean() > 0.999 and (lacking == 0).mean() > 0.8
        assert (masks.sum((1, 2)) > 0).mean() > 0.999


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_masks_are_distributed_as_dinov2s(grid: Grid) -> None:
    """Number of patches, neighbours that differ, masks that are one block and how long those are, whole
    rows and columns, and places."""
    wanted, ours = drawn_masks(grid)
    random = Random(0)
    theirs = np.array([dinov2s_mask(random, grid, int(n)) for n in wanted])

    def roughness(masks: NDArray[np.bool_]) -> NDArray[np.int64]:
        return (masks[:, 1:] != masks[:, :-1]).sum((1, 2)) + (masks[:, :, 1:] != masks[:, :, :-1]).sum((1, 2))

    def one_block(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return masks.sum((1, 2)) == masks.any(1).sum(1) * masks.any(2).sum(1)

    def elongation(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.abs(np.log(masks.any(1).sum(1).clip(1) / masks.any(2).sum(1).clip(1))) * one_block(masks)

    def whole_lines(masks: NDArray[np.bool_]) -> NDArray[np.int64]:
        return masks.all(1).sum(1) + masks.all(2).sum(1)

    for measure in (lambda masks: masks.sum((1, 2)), roughness, one_block, elongation, whole_lines):
        a, b = measure(ours), measure(theirs)
        assert abs(a.mean() - b.mean()) <= 4 * np.sqrt((a.var() + b.var()) / DRAWS)
    share = (ours.mean(0) + theirs.mean(0)) / 2
    assert (np.abs(ours.mean(0) - theirs.mean(0)) <= 5 * np.sqrt(2 * share * (1 - share) / DRAWS)).all()


def test_a_key_and_a_view_make_one_mask_and_others_another() -> None:
    def draw(key: int, view: int) -> bytes:
        return block_mask(np.int64(key), view, grid=(14, 14), patches=60).tobytes()

    assert len({draw(key, view) for key in (-5, 0, 7, 2**62) for view in (0, 1)}) == 8
    assert draw(-5, 1) == draw(-5, 1)


def test_nothing_asked_for_is_nothing_masked() -> None:
    assert not block_mask(np.int64(1), 0, grid=(14, 14), patches=0).any()


def test_masks_of_a_batch_are_those_of_its_crops() -> None:
    keys, ratios = sample_keys(0, 0, np.arange(3)), np.array([[0.1, 0.0, 0.5], [0.3, 0.2, 0.0]])
    masks = masks_for(keys, ratios, grid=(8, 7))
    assert masks.shape == (2, 3, 56) and masks.dtype == bool
    for view in range(2):
        for i in range(3):
            expected = block_mask(keys[i], view, grid=(8, 7), patches=int(56 * ratios[view, i]))
            assert (masks[view, i].reshape(8, 7) == expected).all()


# --- in the stream --------------------------------------------------------------------------------------------------

VIEWS = ViewsConfig(local_views=0, global_size=8, mask_share=0.5)


def stream(*, workers: int = 0, seed: int = 0, rank: int = 0, world: int = 1, start: int = 0) -> list[torch.Tensor]:
    """The masks [2, B, 16] of five steps, two of them in the second pass."""
    pixels = np.random.default_rng(0).integers(0, 256, (26, 8, 8, 3), dtype=np.uint8)
    source = ArraySource("noise", pixels, [str(i) for i in range(26)])
    part = Batches(source, VIEWS, batch=8, channels=3, seed=seed, rank=rank, world=world, grid=(4, 4))
    loader = Loader(part, mean=(0.5,) * 3, std=(0.5,) * 3, device=torch.device("cpu"), workers=workers)
    return [views.masks for views, _ in loader.steps(start, 5)]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def test_the_stream_has_the_masks_of_its_step_and_keys() -> None:
    for step, masks in enumerate(stream(seed=4)):
        ids = np.random.Generator(np.random.Philox(key=np.array([4, step // 3], np.uint64))).permutation(26)
        keys = sample_keys(4, step // 3, ids[step % 3 * 8 : step % 3 * 8 + 8])
        ratios = mask_ratios(4, step, views=2, batch=8, share=0.5, ratio=RATIO)
        assert torch.equal(masks, torch.from_numpy(masks_for(keys, ratios, grid=(4, 4))))
        assert ((masks.sum(-1) > 0) <= torch.from_numpy(ratios > 0)).all()


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_do_not_change_masks(workers: int) -> None:
    assert same(stream(workers=workers), stream())


@pytest.mark.parametrize("world", [2, 4, 8])
def test_processes_together_make_the_masks_of_one(world: int) -> None:
    parts = [stream(rank=rank, world=world) for rank in range(world)]
    assert same([torch.cat(masks, dim=1) for masks in zip(*parts, strict=True)], stream())


def test_a_resumed_stream_has_the_masks_of_the_one_before() -> None:
    assert same(stream(start=2), stream()[2:])


def test_seeds_steps_and_passes_have_other_masks() -> None:
    drawn = stream() + stream(seed=1)
    assert len({masks.numpy().tobytes() for masks in drawn}) == 10


@pytest.mark.parametrize("changes", [{"mask_share": 0.0}, {"grid": None}])
def test_without_a_share_or_a_grid_there_are_no_masks(changes: dict[str, object]) -> None:
    grid, share = changes.get("grid", (4, 4)), changes.get("mask_share", 0.5)
    source = ArraySource("grey", np.zeros((8, 8, 8, 3), dtype=np.uint8), [str(i) for i in range(8)])
    config = ViewsConfig(local_views=0, global_size=8, mask_share=share)
    assert Batches(source, config, batch=8, channels=3, seed=0, grid=grid)[0][0].masks is None


def test_splitting_views_splits_masks() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    batches = Batches(
        ArraySource("noise", pixels, [str(i) for i in range(8)]), VIEWS, batch=8, channels=3, seed=0, grid=(4, 4)
    )
    loader = Loader(batches, mean=(0.5,) * 3, std=(0.5,) * 3, device=torch.device("cpu"), workers=0)
    views, _ = next(loader.steps(0, 1))
    parts = views.split(3)
    assert [part.masks.shape[1] for part in parts] == [3, 3, 2]
    assert torch.equal(torch.cat([part.masks for part in parts], dim=1), views.masks)
