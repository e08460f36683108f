"""The stream of batches: a pure function of (seed, step), whatever the number of workers and processes.

An epoch of N images holds N // n steps of the global batch n; its order is the source's, for one set a permutation.
Each process takes its contiguous share of every batch. Batch t can be made without the batches before it, so resuming
means starting at t."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import overload

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
from simdino.data.photometric import as_kind, photometric
from simdino.data.views import crop_boxes, crops, decoded_side
from simdino.data.workers import PREFETCH, Waiting, in_order, patient

SUBSTITUTES = 16  # images tried in place of a broken one
AT_ONCE = 16  # decoded images held in memory: large photos take megabytes each


Crops = tuple[Views, dict[int, str]]
"""Views as the workers make them, of pixels before colours are changed, and the images that could not be read: their
ids and why."""


class Batches:
    """`batches[t]` is this process's part of batch t.

    deep: whether images have more than 8 bits: views are then float32 in [0, 1], else uint8. grid: the patches (rows,
    columns) of a global crop, where crops are masked. block: how many images are shuffled together; None for all.
    whole: whether large JPEGs are decoded at full size instead of only as large as the crops need."""

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
        deep: bool = False,
        grid: tuple[int, int] | None = None,
        block: int | None = None,
        whole: bool = False,
    ) -> None:
        if batch > len(source):
            raise InputError(f"--batch {batch} is larger than the data: {len(source)} training images")
        if batch % world:
            raise InputError(f"--batch {batch} is not divisible by {world} processes")
        self.source, self.config, self.batch, self.channels, self.seed = source, config, batch, channels, seed
        self.dtype = torch.float32 if deep else torch.uint8
        self.block, self.grid, self.decoded = block, grid, None if whole else decoded_side(config)
        self.part = slice(rank * batch // world, (rank + 1) * batch // world)
        self._order: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None  # the last epoch asked for

    def samples(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the epochs that this process's images in batch `step` count for their random numbers, and their
        ids."""
        epoch, position = divmod(step, len(self.source) // self.batch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, *self.source.order(self.seed, epoch, self.block)
        here = slice(position * self.batch + self.part.start, position * self.batch + self.part.stop)
        _, epochs, ids = self._order
        return epochs[here], ids[here]

    def unread(self, step: int) -> Views:
        """Return this process's part of batch `step` with pixels that have no values yet."""
        epochs, ids = self.samples(step)
        keys, config = counters.sample_keys(self.seed, epochs, ids), self.config
        return Views(
            global_views=self._empty(config.global_views, len(ids), config.global_size),
            local_views=self._empty(config.local_views, len(ids), config.local_size) if config.local_views else None,
            ids=torch.from_numpy(ids),
            keys=torch.from_numpy(keys),
            indices=torch.arange(self.part.start, self.part.stop),
            masks=self._masks(step, keys),
        )

    def __getitem__(self, step: int) -> Crops:
        views = self.unread(step)
        ids, keys = views.ids.numpy(), views.keys.numpy()
        config, split, how = self.config, self.config.global_views, self.config.interpolation
        used: list[int] = []
        broken: dict[int, str] = {}
        for start in range(0, len(ids), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            read = [self._read(int(i), key, broken) for i, key in zip(ids[some], keys[some], strict=True)]
            heights, widths = np.array([image.shape[1:] for _, image in read]).T
            boxes, ways = crop_boxes(keys[some], heights, widths, config)
            for (i, image), box, way in zip(read, boxes, ways, strict=True):
                at = len(used)
                whole = crops(image, box[:split], way[:split], config.global_size, interpolation=how)
                views.global_views[:, at] = whole
                if views.local_views is not None:
                    part = crops(image, box[split:], way[split:], config.local_size, interpolation=how)
                    views.local_views[:, at] = part
                used.append(i)
        return replace(views, ids=torch.tensor(used)), broken

    def _empty(self, views: int, images: int, size: int) -> Tensor:
        return torch.empty(views, images, self.channels, size, size, dtype=self.dtype)

    def _masks(self, step: int, keys: NDArray[np.int64]) -> Tensor | None:
        """Return the masks of this process's global crops. Their ratios are drawn for the whole batch."""
        config = self.config
        if self.grid is None or not config.mask_share:
            return None
        views, share, ratio = config.global_views, config.mask_share, config.mask_ratio
        ratios = mask_ratios(self.seed, step, views=views, batch=self.batch, share=share, ratio=ratio)
        return torch.from_numpy(masks_for(keys, ratios[:, self.part], grid=self.grid))

    def _read(self, i: int, key: np.int64, broken: dict[int, str]) -> tuple[int, Tensor]:
        """Read image i, or for a broken one another that its key chooses. Broken images are noted in `broken`."""
        draws = counters.uniform(key, counters.SUBSTITUTE, SUBSTITUTES)[0]
        for candidate in (i, *(int(u * len(self.source)) for u in draws)):
            try:
                image = self.source.read(candidate, self.channels, at_least=self.decoded)
                return candidate, as_kind(image, self.dtype)
            except BrokenImage as error:
                broken[candidate] = error.reason
        last = next(reversed(broken))
        raise InputError(
            f"{SUBSTITUTES + 1} images in a row could not be read, the last {self.source.names[last]}: {broken[last]}"
        )


@dataclass(frozen=True, kw_only=True)
class Uncoloured(Views):
    """Views as they are read, uint8 for the most part. Their colours change, and they become float32 on the device,
    when the turn of their micro-batch comes: in float32 a large batch takes more memory than what a network keeps of a
    micro-batch."""

    coloured: Callable[[Views], Views]

    def split(self, size: int | None) -> Sequence[Views]:
        """Return micro-batches that are coloured each time they are asked for; where there is one, it is kept."""
        parts = super().split(size)
        return [self.coloured(parts[0])] if len(parts) == 1 else Coloured(parts, self.coloured)


@dataclass(frozen=True)
class Coloured(Sequence[Views]):
    """Micro-batches as the encoder takes them, each made when it is asked for."""

    parts: Sequence[Views]
    coloured: Callable[[Views], Views]

    def __len__(self) -> int:
        return len(self.parts)

    @overload
    def __getitem__(self, i: int) -> Views: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Views]: ...
    def __getitem__(self, i: int | slice) -> Views | Sequence[Views]:
        return replace(self, parts=self.parts[i]) if isinstance(i, slice) else self.coloured(self.parts[i])


class Loader:
    """Iterates over (Views on the device, broken images) for the steps [start, stop).

    workers: processes that read images, each `prefetch` batches in advance; with 0 this process reads. micro_batch: so
    many images of a batch are on the device at a time; None: all."""

    def __init__(
        self,
        batches: Batches,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
        workers: int,
        prefetch: int = PREFETCH,
        micro_batch: int | None = None,
    ) -> None:
        self.batches, self.mean, self.std, self.device = batches, mean, std, device
        self.workers, self.prefetch, self.micro_batch = workers, prefetch, micro_batch

    def steps(self, start: int, stop: int, *, waiting: Waiting = patient) -> Iterator[tuple[Views, dict[int, str]]]:
        """Yield the batches of the steps [start, stop), in order. waiting: see `data.workers.in_order`."""
        order = range(start, stop)
        stream = in_order(self.batches, order, workers=self.workers, prefetch=self.prefetch, waiting=waiting)
        if self.device.type == "cuda":
            stream = pinned(stream, self.device)
        for pixels, broken in stream:
            yield self.batch(pixels, self.micro_batch), broken
            del pixels  # before the next are read

    def batch(self, pixels: Views, micro_batch: int | None) -> Views:
        """Return the views of a batch as a step takes them: coloured, or where there are several micro-batches to be
        coloured one by one."""
        if micro_batch is None or micro_batch >= len(pixels.ids):
            return self.views(pixels)
        return Uncoloured(**vars(pixels), coloured=self.views)

    def views(self, pixels: Views) -> Views:
        """Return views of pixels on the device, with colours changed and pixels normalised."""

        def augmented(crops: Tensor, first: int) -> Tensor:
            crops, config = crops.to(self.device, non_blocking=True), self.batches.config
            return photometric(crops, pixels.keys, config=config, first=first, mean=self.mean, std=self.std)

        count, local, masks = len(pixels.global_views), pixels.local_views, pixels.masks
        return replace(
            pixels,
            global_views=augmented(pixels.global_views, 0),
            local_views=None if local is None else augmented(local, count),
            masks=None if masks is None else masks.to(self.device, non_blocking=True),
        )


def pinned(stream: Iterator[Crops], device: torch.device) -> Iterator[Crops]:
    """Yield the batches in page-locked memory, so that copies to a GPU overlap with computation. A thread fills it one
    batch in advance."""

    def take() -> Crops | None:
        for views, broken in stream:
            local = None if views.local_views is None else views.local_views.pin_memory()
            return replace(views, global_views=views.global_views.pin_memory(), local_views=local), broken
        return None

    with ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(device,)) as thread:
        following = thread.submit(take)
        while (crops_ := following.result()) is not None:
            following = thread.submit(take)
            yield crops_
