"""The stream of batches: a pure function of (seed, step), whatever the number of workers and processes.

An epoch of N images holds N // n steps of the global batch n; its order is one permutation. Each process takes its
contiguous share of every batch. Batch t can be made without the batches before it, so resuming means starting at t."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simdino import rng as counters
from simdino.config import ViewsConfig
from simdino.contracts import InputError, Views
from simdino.data.base import Source
from simdino.data.masks import mask_ratios, masks_for
from simdino.data.opening import BrokenImage
from simdino.data.photometric import photometric
from simdino.data.views import crop_boxes, crops, decoded_side
from simdino.data.workers import PREFETCH, Waiting, in_order, patient

SUBSTITUTES = 16  # images tried in place of a broken one
AT_ONCE = 16  # decoded images held in memory: large photos take megabytes each


@dataclass(frozen=True, kw_only=True)
class Crops:
    """One process's part of a batch as the workers make it: uint8 crops, before colours are changed."""

    global_crops: Tensor  # uint8 [G, B, C, H, W]
    local_crops: Tensor | None  # uint8 [M, B, C, h, w]
    ids: Tensor  # int64 [B], of the images used
    keys: Tensor  # int64 [B]
    indices: Tensor  # int64 [B]
    masks: Tensor | None  # bool [G, B, P]
    broken: dict[int, str]  # ids that could not be read, and why

    def pin_memory(self) -> Crops:
        """Return the crops in page-locked memory, so that copies to a GPU overlap with computation."""
        local = None if self.local_crops is None else self.local_crops.pin_memory()
        return Crops(
            global_crops=self.global_crops.pin_memory(),
            local_crops=local,
            ids=self.ids,
            keys=self.keys,
            indices=self.indices,
            masks=self.masks,
            broken=self.broken,
        )


class Batches:
    """`batches[t]` is this process's part of batch t.

    grid: the patches (rows, columns) of a global crop, where crops are masked. whole: whether large JPEGs are decoded
    at full size instead of only as large as the crops need."""

    def __init__(
        self,
        source: Source,
        config: ViewsConfig,
        *,
        batch: int,
        channels: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        grid: tuple[int, int] | None = None,
        whole: bool = False,
    ) -> None:
        if batch > len(source):
            raise InputError(f"--batch {batch} is larger than the data: {len(source)} training images")
        if batch % world:
            raise InputError(f"--batch {batch} is not divisible by {world} processes")
        self.source, self.config, self.batch, self.channels, self.seed = source, config, batch, channels, seed
        self.grid, self.decoded = grid, None if whole else decoded_side(config)
        self.part = slice(rank * batch // world, (rank + 1) * batch // world)
        self._order: tuple[int, NDArray[np.int64]] | None = None  # the last epoch asked for, and its order

    def samples(self, step: int) -> tuple[int, NDArray[np.int64]]:
        """Return the epoch that batch `step` belongs to, and the ids of this process's images in it."""
        pass_index, position = divmod(step, len(self.source) // self.batch)
        if self._order is None or self._order[0] != pass_index:
            self._order = pass_index, counters.permutation(self.seed, pass_index, len(self.source))
        start = position * self.batch
        return pass_index, self._order[1][start : start + self.batch][self.part]

    def __getitem__(self, step: int) -> Crops:
        pass_index, ids = self.samples(step)
        keys = counters.sample_keys(self.seed, pass_index, ids)
        broken: dict[int, str] = {}
        config, count, how = self.config, self.config.global_views, self.config.interpolation
        globals_ = self._empty(count, len(ids), config.global_size)
        locals_ = self._empty(config.local_views, len(ids), config.local_size)
        used = []
        for start in range(0, len(ids), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            read = [self._read(int(i), key, broken) for i, key in zip(ids[part], keys[part], strict=True)]
            used += [i for i, _ in read]
            heights, widths = np.array([image.shape[1:] for _, image in read]).T
            boxes, flips = crop_boxes(keys[part], heights, widths, config)
            for at, (_, image) in enumerate(read):
                box, flip = boxes[at], flips[at]
                globals_[:, start + at] = crops(image, box[:count], flip[:count], config.global_size, interpolation=how)
                if config.local_views:
                    locals_[:, start + at] = crops(
                        image, box[count:], flip[count:], config.local_size, interpolation=how
                    )
        return Crops(
            global_crops=globals_,
            local_crops=locals_ if config.local_views else None,
            ids=torch.tensor(used),
            keys=torch.from_numpy(keys),
            indices=torch.arange(self.part.start, self.part.stop),
            masks=self._masks(step, keys),
            broken=broken,
        )

    def _empty(self, views: int, images: int, size: int) -> Tensor:
        return torch.empty(views, images, self.channels, size, size, dtype=torch.uint8)

    def _masks(self, step: int, keys: NDArray[np.int64]) -> Tensor | None:
        """Return the masks of this process's global crops. Their ratios are drawn for the whole batch."""
        config = self.config
        if self.grid is None or not config.mask_share:
            return None
        ratios = mask_ratios(
            self.seed,
            step,
            views=config.global_views,
            batch=self.batch,
            share=config.mask_share,
            ratio=config.mask_ratio,
        )
        return torch.from_numpy(masks_for(keys, ratios[:, self.part], grid=self.grid))

    def _read(self, i: int, key: np.int64, broken: dict[int, str]) -> tuple[int, Tensor]:
        """Read image i, or for a broken one another that its key chooses. Broken images are noted in `broken`."""
        draws = counters.uniform(key, counters.SUBSTITUTE, SUBSTITUTES)[0]
        for candidate in (i, *(int(u * len(self.source)) for u in draws)):
            try:
                return candidate, self.source.read(candidate, self.channels, at_least=self.decoded)
            except BrokenImage as error:
                broken[candidate] = error.reason
        last = next(reversed(broken))
        raise InputError(
            f"{SUBSTITUTES + 1} images in a row could not be read, the last {self.source.names[last]}: {broken[last]}"
        )


class Loader:
    """Iterates over (Views on the device, broken images) for the steps [start, stop).

    workers: processes that read images, each `prefetch` batches in advance; with 0 this process reads."""

    def __init__(
        self,
        batches: Batches,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
        workers: int,
        prefetch: int = PREFETCH,
    ) -> None:
        self.batches, self.mean, self.std, self.device = batches, mean, std, device
        self.workers, self.prefetch = workers, prefetch

    def steps(self, start: int, stop: int, *, waiting: Waiting = patient) -> Iterator[tuple[Views, dict[int, str]]]:
        """Yield the batches of the steps [start, stop), in order. waiting: see `data.workers.in_order`."""
        stream = in_order(
            self.batches, range(start, stop), workers=self.workers, prefetch=self.prefetch, waiting=waiting
        )
        if self.device.type == "cuda":
            stream = pinned(stream, self.device)
        for crops_ in stream:
            yield self.views(crops_), crops_.broken

    def views(self, crops_: Crops) -> Views:
        """Return views of the crops on the device, with colours changed and pixels normalised."""
        globals_ = self._augment(crops_.global_crops, crops_.keys, first=0)
        locals_ = None
        if crops_.local_crops is not None:
            locals_ = self._augment(crops_.local_crops, crops_.keys, first=len(globals_))
        masks = None if crops_.masks is None else crops_.masks.to(self.device, non_blocking=True)
        return Views(
            global_views=globals_,
            local_views=locals_,
            ids=crops_.ids,
            keys=crops_.keys,
            indices=crops_.indices,
            masks=masks,
        )

    def _augment(self, crops_: Tensor, keys: Tensor, *, first: int) -> Tensor:
        crops_ = crops_.to(self.device, non_blocking=True)
        config = self.batches.config
        return photometric(crops_, keys, config=config, first=first, mean=self.mean, std=self.std)


def pinned(stream: Iterator[Crops], device: torch.device) -> Iterator[Crops]:
    """Yield the batches in page-locked memory, which a thread fills one batch in advance."""

    def take() -> Crops | None:
        crops_ = next(stream, None)
        return None if crops_ is None else crops_.pin_memory()

    with ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(device,)) as thread:
        following = thread.submit(take)
        while (crops_ := following.result()) is not None:
            following = thread.submit(take)
            yield crops_
