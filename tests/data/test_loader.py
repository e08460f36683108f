"""The stream of batches is a function of (seed, step): not of workers, processes, the start or the machine's mood."""

from __future__ import annotations

import dataclasses
import multiprocessing
import pickle
import random
import signal
import subprocess
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from simdino import rng as counters
from simdino.config import ViewsConfig
from simdino.contracts import InputError, Views
from simdino.data.base import ArraySource, Source
from simdino.data.loader import AT_ONCE, Batches, Loader
from simdino.data.opening import BrokenImage
from simdino.data.photometric import photometric
from simdino.data.views import crop_boxes, crops, decoded_side
from simdino.data.workers import serve

CONFIG = ViewsConfig(local_views=2, global_size=12, local_size=8)
CPU = torch.device("cpu")


class Damaged(Source):
    """Images of many sizes; those of some ids are broken."""

    def __init__(self, count: int, broken: set[int]) -> None:
        super().__init__("damaged", [f"{i}.jpg" for i in range(count)])
        self.broken = broken

    def read(self, i: int, channels: int | None = None, *, at_least: int | None = None) -> Tensor:
        if i in self.broken:
            raise BrokenImage(self.names[i], f"torn at byte {i}")
        size = np.random.default_rng(i).integers(5, 30, 2)
        return torch.from_numpy(np.random.default_rng(i).integers(0, 256, (channels or 3, *size), dtype=np.uint8))


def images(count: int = 23) -> ArraySource:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 16, 20, 3), dtype=np.uint8)
    return ArraySource("noise", pixels, [str(i) for i in range(count)])


def batches(source: Source, **options: int) -> Batches:
    return Batches(source, CONFIG, **({"batch": 4, "channels": 3, "seed": 0, "rank": 0, "world": 1} | options))


Stream = list[tuple[Views, dict[int, str]]]


def stream(source: Source, start: int = 0, stop: int = 7, *, workers: int = 0, **options: int) -> Stream:
    part = batches(source, **options)
    made = Loader(part, mean=(0.5,) * 3, std=(0.5,) * 3, device=CPU, workers=workers)
    return list(made.steps(start, stop))


def same(a: Views, b: Views) -> bool:
    """Bit for bit."""
    fields = [(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(Views)]
    return all((x is None and y is None) or torch.equal(x, y) for x, y in fields)


def same_streams(a: Stream, b: Stream) -> bool:
    return len(a) == len(b) and all(same(x, y) and noted == also for (x, noted), (y, also) in zip(a, b, strict=True))


def joined(parts: Sequence[Views]) -> Views:
    """Micro-batches as one batch."""
    views: dict[str, Tensor | None] = {}
    for field in dataclasses.fields(Views):
        values = [getattr(part, field.name) for part in parts]
        views[field.name] = None if values[0] is None else torch.cat(values, 1 if values[0].ndim > 1 else 0)
    return Views(**views)


@pytest.mark.parametrize("size", [1, 3, 4, 9])
def test_micro_batches_whose_colours_change_in_turn_are_the_batch(size: int) -> None:
    source, law = Damaged(23, {3, 4}), {"mean": (0.5,) * 3, "std": (0.3,) * 3, "device": CPU, "workers": 0}
    ((whole, noted),) = Loader(batches(source), **law).steps(2, 3)
    ((views, also),) = Loader(batches(source), **law, micro_batch=size).steps(2, 3)
    pieces, plain = views.split(size), whole.split(size)
    assert [piece.ids.tolist() for piece in pieces] == [piece.ids.tolist() for piece in plain]
    assert noted == also and same(joined(list(pieces)), whole) and same(joined(pieces[:2]), joined(plain[:2]))
    assert all(piece.global_views.dtype == torch.float32 for piece in pieces)
    if size < 4:
        assert views.global_views.dtype == torch.uint8, "as they are read"
        assert pieces[0].global_views.data_ptr() != pieces[0].global_views.data_ptr(), "nothing is kept of one"
        assert same(joined(views.split(None)), whole)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_workers_do_not_change_the_stream(workers: int) -> None:
    source = Damaged(23, {3, 4, 11, 20})
    assert same_streams(stream(source), stream(source, workers=workers))


@pytest.mark.slow
def test_a_batch_is_made_of_its_pass_keys_boxes_and_colours() -> None:
    source, step = images(), 7  # 23 // 4 = 5 steps a pass: the third of the second pass
    views, broken = stream(source, step, step + 1, seed=5)[0]
    ids = counters.permutation(5, 1, 23)[8:12]
    keys = counters.sample_keys(5, 1, ids)
    boxes, flips = crop_boxes(keys, np.full(4, 16), np.full(4, 20), CONFIG)

    def expected(part: slice, size: int) -> Tensor:
        pieces = [
            crops(source.read(int(i), 3), b[part], f[part], size) for i, b, f in zip(ids, boxes, flips, strict=True)
        ]
        options = {"config": CONFIG, "first": part.start, "mean": (0.5,) * 3, "std": (0.5,) * 3}
        return photometric(torch.stack(pieces, 1), torch.from_numpy(keys), **options)

    assert views.ids.tolist() == ids.tolist() and views.keys.tolist() == keys.tolist()
    assert views.indices.tolist() == [0, 1, 2, 3] and not broken
    assert views.local_views is not None
    assert torch.equal(views.global_views, expected(slice(0, 2), 12))
    assert torch.equal(views.local_views, expected(slice(2, 4), 8))


@pytest.mark.parametrize("channels", [1, 3])
def test_views_have_the_shapes_of_the_configuration(channels: int) -> None:
    part = batches(Damaged(10, set()), channels=channels)
    views, _ = next(Loader(part, mean=(0.5,) * channels, std=(0.5,) * channels, device=CPU, workers=0).steps(0, 1))
    assert views.local_views is not None
    assert views.global_views.shape == (2, 4, channels, 12, 12) and views.global_views.dtype == torch.float32
    assert views.local_views.shape == (2, 4, channels, 8, 8)
    assert (views.ids.dtype, views.keys.dtype, views.indices.dtype) == (torch.int64,) * 3


def test_without_local_views_there_are_none() -> None:
    part = Batches(images(), ViewsConfig(local_views=0, global_size=12), batch=4, channels=3, seed=0, rank=0, world=1)
    views, _ = next(Loader(part, mean=(0.5,) * 3, std=(0.5,) * 3, device=CPU, workers=0).steps(0, 1))
    assert views.local_views is None


@pytest.mark.parametrize("world", [2, 4])
def test_processes_together_make_the_batch_of_one(world: int) -> None:
    source = Damaged(23, {3, 4, 11, 20})
    whole = [batches(source, batch=8)[step] for step in range(4)]
    for step, (one, unread) in enumerate(whole):
        made = [batches(source, batch=8, rank=rank, world=world)[step] for rank in range(world)]
        parts = [part for part, _ in made]
        for name in ("ids", "keys", "indices"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(one, name))
        for name in ("global_views", "local_views"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts], dim=1), getattr(one, name))
        assert {i: why for _, broken in made for i, why in broken.items()} == unread


@pytest.mark.parametrize("world", [2, 4])
def test_processes_together_make_the_views_of_one(world: int) -> None:
    source = images()
    whole = stream(source, batch=8, stop=3)
    parts = [stream(source, batch=8, stop=3, rank=rank, world=world) for rank in range(world)]
    for step, (one, _) in enumerate(whole):
        views = [part[step][0] for part in parts]
        for name in ("global_views", "local_views"):
            together = torch.cat([getattr(view, name) for view in views], dim=1)
            torch.testing.assert_close(together, getattr(one, name), atol=5e-6, rtol=0)


@pytest.mark.parametrize("start", [1, 4, 5, 6, 11])
def test_starting_at_a_step_is_skipping_the_steps_before_it(start: int) -> None:
    source = images()  # 5 steps a pass
    assert same_streams(stream(source, 0, 13)[start:], stream(source, start, 13))


def test_steps_may_be_asked_for_in_any_order() -> None:
    part = batches(images())
    forwards = [part[step][0].ids.tolist() for step in range(12)]
    assert [part[step][0].ids.tolist() for step in reversed(range(12))] == forwards[::-1]


@pytest.mark.parametrize(("count", "batch"), [(23, 4), (24, 4), (7, 7), (9, 5)])
def test_a_pass_visits_each_image_at_most_once_and_drops_only_the_rest(count: int, batch: int) -> None:
    part, steps = batches(images(count), batch=batch), count // batch
    for pass_index in range(4):
        seen = [i for step in range(steps) for i in part.samples(pass_index * steps + step)[1].tolist()]
        assert len(seen) == count - count % batch == len(set(seen))


def test_every_image_is_dropped_in_some_passes_only() -> None:
    part, steps = batches(images(9), batch=5), 1
    seen = np.bincount(np.concatenate([part.samples(step)[1] for step in range(400 * steps)]), minlength=9)
    assert np.abs(seen / 400 - 5 / 9).max() < 5 * np.sqrt(5 / 9 * 4 / 9 / 400)


def test_seeds_of_either_sign_and_passes_give_other_orders_and_keys() -> None:
    source = images()
    first = [batches(source, seed=seed)[0][0] for seed in (0, 1, 2, -1)] + [batches(source)[5][0]]
    assert len({tuple(crops_.ids.tolist()) for crops_ in first}) == 5
    assert len({key for crops_ in first for key in crops_.keys.tolist()}) == 20


def test_an_image_gets_other_views_in_the_next_pass() -> None:
    views = {}
    for made, _ in stream(images(4), 0, 2):
        for place, i in enumerate(made.ids.tolist()):
            views.setdefault(i, []).append(made.global_views[:, place])
    assert all(len(two) == 2 and not torch.equal(*two) for two in views.values())


def test_broken_images_are_replaced_and_named_with_their_reasons() -> None:
    source = Damaged(20, {1, 6, 7})
    noted: dict[int, str] = {}
    for step, (views, broken) in enumerate(stream(source, 0, 5)):
        wanted = batches(source).samples(step)[1].tolist()
        for used, i in zip(views.ids.tolist(), wanted, strict=True):
            assert (used == i) == (i not in source.broken) and used not in source.broken
        noted |= broken
    assert noted == {i: f"torn at byte {i}" for i in (1, 6, 7)}


@pytest.mark.parametrize("lost", [1, 6, 7])
def test_a_replacement_is_what_the_key_chooses_and_shows_that_image(lost: int) -> None:
    source = Damaged(20, {1, 6, 7})
    whole, part = Damaged(20, set()), batches(source)
    step = next(step for step in range(5) if lost in part.samples(step)[1])
    place = part.samples(step)[1].tolist().index(lost)
    made, _ = part[step]
    draws = counters.uniform(made.keys[place].item(), counters.SUBSTITUTE, 16)[0]
    expected = next(int(u * 20) for u in draws if int(u * 20) not in source.broken)
    assert made.ids[place] == expected
    assert made.keys[place] == counters.sample_keys(0, 0, lost)[0]
    image = whole.read(expected, 3)
    height, width = image.shape[1:]
    boxes, flips = crop_boxes(made.keys[place : place + 1].numpy(), np.array([height]), np.array([width]), CONFIG)
    assert torch.equal(made.global_views[:, place], crops(image, boxes[0, :2], flips[0, :2], 12))


def test_one_readable_image_among_a_few_is_found() -> None:
    views, broken = stream(Damaged(4, {0, 1, 2}), 0, 1)[0]
    assert views.ids.tolist() == [3, 3, 3, 3] and set(broken) == {0, 1, 2}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_of_broken_images_ends_with_one_line(workers: int) -> None:
    with pytest.raises(InputError, match="could not be read") as caught:
        stream(Damaged(20, set(range(20))), workers=workers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"batch": 24}, "larger than the data: 23"), ({"batch": 6, "world": 4}, "not divisible by 4")],
)
def test_a_batch_that_does_not_fit_is_refused_in_one_line(options: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        batches(images(), **options)
    assert "\n" not in str(caught.value) and f"--batch {options['batch']}" in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_iterating_touches_no_global_random_state(workers: int) -> None:
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    stream(Damaged(20, {1}), workers=workers)
    after = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert all(np.array_equal(x, y) for x, y in zip(before[1], after[1], strict=True))
    assert before[2] == after[2]


def test_global_random_states_do_not_change_the_stream() -> None:
    expected = stream(images(), 0, 2)
    torch.manual_seed(123)
    random.seed(5)
    assert same_streams(expected, stream(images(), 0, 2))


def test_everything_a_worker_gets_can_be_pickled() -> None:
    """Workers are spawned, not forked, on macOS."""
    back = pickle.loads(pickle.dumps((batches(images()), serve)))
    assert torch.equal(back[0][1][0].global_views, batches(images())[1][0].global_views)


def test_crops_of_a_batch_survive_pickling() -> None:
    made = batches(Damaged(20, {1}))[0]
    back = pickle.loads(pickle.dumps(made))
    assert torch.equal(back[0].global_views, made[0].global_views) and back[1] == made[1]


def test_a_schedulers_signal_to_a_worker_does_not_end_the_stream() -> None:
    running = Loader(batches(images()), mean=(0.5,) * 3, std=(0.5,) * 3, device=CPU, workers=1).steps(0, 6)
    views = [next(running)]
    for worker in multiprocessing.active_children():
        subprocess.run(["/bin/kill", "-TERM", str(worker.pid)], check=True)  # a process that is not its parent
    views += running
    assert same_streams(views, stream(images(), 0, 6))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the signals of a process from Linux")
def test_a_worker_can_be_ended_by_its_main_process() -> None:
    """Python ends daemons at exit by SIGTERM and waits: workers that ignore it make a failed run hang for ever."""
    running = Loader(batches(images()), mean=(0.5,) * 3, std=(0.5,) * 3, device=CPU, workers=1).steps(0, 6)
    next(running)
    lines = [Path(f"/proc/{worker.pid}/status").read_text() for worker in multiprocessing.active_children()]
    running.close()  # pyright: ignore[reportAttributeAccessIssue]
    for line in "".join(lines).splitlines():
        if line.startswith("SigIgn"):
            assert not int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1


class Photos(Source):
    """Counts how many of its images are in memory at once, and what they are asked for."""

    def __init__(self, count: int) -> None:
        super().__init__("photos", [f"{i}.jpg" for i in range(count)])
        self.alive = self.most = 0
        self.asked: set[int | None] = set()

    def read(self, i: int, channels: int | None = None, *, at_least: int | None = None) -> Tensor:
        image = torch.full((channels or 3, 40, 50), i, dtype=torch.uint8)
        self.alive, self.asked = self.alive + 1, self.asked | {at_least}
        self.most = max(self.most, self.alive)
        weakref.finalize(image, self._gone)
        return image

    def _gone(self) -> None:
        self.alive -= 1


def test_a_batch_holds_few_decoded_images_at_once_and_asks_for_no_more_pixels_than_it_needs() -> None:
    source = Photos(200)
    crops, _ = batches(source, batch=100)[0]
    assert source.most <= 2 * AT_ONCE
    assert source.asked == {decoded_side(CONFIG)}
    expected = crops.ids.to(torch.uint8)[:, None, None, None]
    assert (crops.global_views == expected).all() and crops.local_views is not None
    assert (crops.local_views == expected).all()
