"""The order of images: every one once an epoch in any layout and after any resume, blocks from few places, mixtures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from simdino import rng
from simdino.config import ViewsConfig
from simdino.contracts import InputError
from simdino.data.base import ArraySource, Source
from simdino.data.loader import Batches
from simdino.data.mixtures import Mixture, shares
from simdino.data.sources import DataPath, open_dataset, open_splits
from simdino.data.workers import in_order

VIEWS = ViewsConfig(global_size=8, local_size=4, local_views=0)
BATCH = 840  # what 1 to 8 processes divide
SIZE = 3 * BATCH + 100


def images(count: int, name: str = "noise", shade: int = 0) -> ArraySource:
    pixels = np.full((count, 4, 4), shade, dtype=np.uint8)
    return ArraySource(name, pixels, [f"{i}.png" for i in range(count)], np.arange(count) % 2, ("a", "b"))


def mixture(counts: tuple[int, ...] = (400, SIZE - 400), weights: tuple[float, ...] | None = (0.5, 0.5)) -> Mixture:
    parts = [images(count, shade=k) for k, count in enumerate(counts)]
    return Mixture("mixed", parts, [f"set{k}" for k in range(len(counts))], weights)


class Drawn:
    """What a process's batches are made of, without making them."""

    def __init__(self, source: Source, *, rank: int, world: int, block: int | None) -> None:
        self.batches = Batches(source, VIEWS, batch=BATCH, channels=1, seed=7, rank=rank, world=world, block=block)

    def __getitem__(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.batches.samples(step)


def drawn(source: Source, layouts: list[tuple[int, int, int]], *, block: int | None) -> list[tuple[int, int]]:
    """Epoch and id of every sample of a run, each part of which has (last step, processes, workers) of its own. The
    last process has its workers; what these change in the others is the same."""
    found, first = [], 0
    for last, world, workers in layouts:
        parts = [
            list(in_order(Drawn(source, rank=rank, world=world, block=block), range(first, last), workers=reading))
            for rank, reading in enumerate([*[0] * (world - 1), workers])
        ]
        for step in zip(*parts, strict=True):
            found += [pair for epochs, ids in step for pair in zip(epochs.tolist(), ids.tolist(), strict=True)]
        first = last
    return found


SOURCES = {
    "all": lambda: (images(SIZE), None),
    "blocks": lambda: (images(SIZE), 160),
    "a mixture": lambda: (mixture(), None),
    "a mixture in blocks": lambda: (mixture(), 64),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("world", range(1, 9))
def test_the_stream_is_the_same_in_any_layout_and_after_three_resumes(kind: str, world: int) -> None:
    source, block = SOURCES[kind]()
    alone = drawn(source, [(6, 1, 0)], block=block)
    for workers in range(5) if kind == "all" else [world % 5]:
        other = [(1, world, workers), (3, 9 - world, 4 - workers), (4, world % 8 + 1, 1), (6, world, workers)]
        assert drawn(source, other, block=block) == alone, workers
    assert len(set(alone)) == len(alone)  # no image comes twice with the same random numbers
    if isinstance(source, Mixture):
        return
    for epoch in (0, 1):
        ids = [i for its, i in alone if its == epoch]
        assert len(ids) == len(set(ids)) == SIZE // BATCH * BATCH  # all but those of the batch that is not full


@pytest.mark.parametrize(
    ("size", "block"), [(1000, 64), (1000, 100), (999, 33), (50, 32), (31, 32), (1, 32), (5000, 640)]
)
def test_an_order_in_blocks_has_every_sample_once(size: int, block: int) -> None:
    orders = [rng.block_permutation(3, epoch, size, block) for epoch in range(3)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(size))
    assert np.array_equal(orders[1], rng.block_permutation(3, 1, size, block))
    assert size < 50 or not np.array_equal(orders[0], orders[1])
    if block >= size:
        assert np.array_equal(orders[2], rng.permutation(3, 2, size))


def test_a_block_comes_from_few_places_and_its_samples_from_any() -> None:
    size, block = 100_000, 1600
    runs = [
        len(set((part // 100).tolist()))
        for part in rng.block_permutation(0, 0, size, block)[:96_000].reshape(-1, block)
    ]
    assert max(runs) <= 2 * rng.RUNS + 2  # a run of 100 lies in two hundreds
    everywhere = rng.permutation(0, 0, size)[:block] // 100
    assert len(set(everywhere.tolist())) > 500
    order = rng.block_permutation(0, 0, size, block)
    assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 0.1  # 62 blocks in any order: a std of .13 / 16 places
    assert np.mean(np.abs(np.diff(order)) == 1) < 0.01


def test_an_epoch_of_a_mixture_has_the_shares_of_its_weights() -> None:
    mixed = mixture((100, 300, 600), (3, 1, 1))
    for epoch in range(4):
        _, ids = mixed.order(0, epoch)
        assert np.bincount(np.searchsorted([100, 400], ids, side="right")).tolist() == [600, 200, 200]
        first = np.searchsorted([100, 400], ids[:500], side="right")
        assert abs(np.mean(first == 0) - 0.6) < 0.1  # and not one set after the other


def test_a_set_of_a_mixture_runs_through_its_own_epochs() -> None:
    """The same by counting: draw by draw, the lowest count of a set's images is at most one below the highest."""
    mixed = mixture((7, 20, 33), (0.5, 0.3, 0.2))
    counts = np.zeros(60, dtype=int)
    for epoch in range(9):
        for own, i in zip(*mixed.order(5, epoch), strict=True):
            assert own == counts[i]  # the epoch of its random numbers
            counts[i] += 1
            for part in (counts[:7], counts[7:27], counts[27:]):
                assert part.max() - part.min() <= 1
    assert counts[:7].sum() == 9 * 30 and counts[7:27].sum() == 9 * 18


def test_sets_of_one_size_have_orders_of_their_own() -> None:
    _, ids = mixture((50, 50), (1, 1)).order(0, 0)
    assert ids[ids < 50].tolist() != (ids[ids >= 50] - 50).tolist()


def test_shares_are_whole_and_sum_to_all() -> None:
    assert shares([1, 1, 1], 100) == [34, 33, 33] and shares([0.7, 0.3], 10) == [7, 3]
    assert shares([1e-9, 1], 10) == [0, 10]
    with pytest.raises(InputError, match="the weight of set0 in mixed is so small"):
        mixture((5, 5), (1e-9, 1)).order(0, 0)


def test_without_weights_a_mixture_is_its_sets_together() -> None:
    both = mixture((30, 20), None)
    assert np.array_equal(both.order(1, 2)[1], rng.permutation(1, 2, 50))


def test_a_mixture_gives_the_images_names_and_labels_of_its_sets() -> None:
    mixed = mixture((30, 20), (1, 1))
    assert (
        mixed.names[29:31] == ["set0/29.png", "set1/0.png"]
        and list(mixed.names)[-1] == mixed.names[-1] == "set1/19.png"
    )
    assert mixed.labels is not None and mixed.labels[28:32].tolist() == [0, 1, 0, 1] and mixed.classes == ("a", "b")
    assert torch.equal(mixed.read(29), torch.zeros(1, 4, 4, dtype=torch.uint8)) and mixed.read(
        30
    ).unique().tolist() == [1]
    some = mixed.select([45, 2]).select([0])
    assert some.names == ["set1/15.png"] and some.read(0).unique().tolist() == [1]
    assert some.labels is not None and some.labels.tolist() == [1]
    assert mixed.sizes() == [16] * 50 and some.sizes() == [16] and some.sides(0) == (4, 4)
    assert np.array_equal(some.order(0, 0)[1], [0])


def test_a_file_lists_a_mixture(tmp_path: Path) -> None:
    (tmp_path / "sets.mix").write_text("# two sets\n\ndigits  0.25\nscattered-digits, 0.75\n")
    train, val = open_splits(str(tmp_path / "sets.mix"))
    single = [open_splits(name) for name in ("digits", "scattered-digits")]
    assert isinstance(train, Mixture) and train.name == "sets"
    assert len(train) == sum(len(one.train) for one in single) and len(val) == sum(len(one.val) for one in single)
    assert train.shares is not None and train.shares[0] == round(0.25 * len(train))
    assert train.contents is not None and "digits 25.0%, scattered-digits 75.0%" in train.contents.splits
    assert torch.equal(train.read(3), single[0].train.read(3)) and train.classes == single[0].train.classes
    assert open_dataset(tmp_path / "sets.mix", "val").fingerprint() == val.fingerprint()


WRONG = {
    "": "names 0 sets; give two or more",
    "digits 1\n": "names 1 sets",
    "digits 1\ndigits 2\n": "line 2 of .* names 'digits', twice",
    "digits 1\nother.mix 2\n": "names 'other.mix', a mixture: give its lines",
    "digits 1\nscattered-digits\n": "gives 'scattered-digits' no weight",
    "digits -1\nscattered-digits 1\n": "line 1 of .* has the weight -1; give a number above 0",
    "digits 1e\nscattered-digits 1\n": "line 1 of .* has the weight 1e; give",
    "digitz 1\nscattered-digits 1\n": "did you mean the built-in set 'digits'",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_mixture_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "sets.mix").write_text(text)
    with pytest.raises(InputError, match=WRONG[text]):
        open_dataset(tmp_path / "sets.mix")


def test_a_mixture_has_no_split_folders_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "sets.mix").write_text("digits 1\nscattered-digits 1\n")
    with pytest.raises(InputError, match="have splits of their own"):
        open_dataset(DataPath(root=str(tmp_path / "sets.mix"), train="x"))
