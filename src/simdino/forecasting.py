"""What a run would cost before it is begun: hours, memory, operations, here and on GPUs.

Nothing heavy is imported before it is needed: the command line reads the declaration of `forecast`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any

from simdino.feedback import Log, to_stderr
from simdino.keywords import Option, checked
from simdino.options import Options
from simdino.peaks import gpu_named, peak_of, published
from simdino.result import Result
from simdino.settings import Range
from simdino.text import duration, with_prefix

if TYPE_CHECKING:
    from simdino.config import Config
    from simdino.timing import Costs, Tried

GPUS = (1, 8, 64)
FASTER = 1.05  # speed over the run's own from which on another micro-batch is recommended

Gpu = Annotated[str, Option("The GPU whose hours are estimated, such as A100, H100, B200, L40S, 'RTX 4090'.")]
Utilisation = Annotated[float, Option("The MFU that is assumed there.", Range(above=0, at_most=1))]


@dataclass(frozen=True, kw_only=True)
class Forecast(Result):
    """What a run would cost.

    seconds: until the last evaluation, and what they consist of: the start with the evaluation before step 1, steps,
    the other evaluations. memory_mb: the most that this
    process needs while it trains, of the GPU where there is one. flops: operations of all steps, of an epoch and for an
    image, two for a product and its sum. mfu: the share of peak_flops, which peak tells the origin of; None where the
    peak is not known. micro_batch: what the run needs where its batch does not fit. tried: the speed of steps without
    reading with micro-batches. on_gpus: seconds of the steps by the number of GPUs, None for more than there are images
    in a batch; assumed: under which assumptions."""

    seconds: float
    start_seconds: float
    step_seconds: float
    evaluation_seconds: float
    epoch_seconds: float
    steps: int
    epochs: float
    evaluations: int
    images: int
    memory_mb: float
    flops: float
    flops_per_epoch: float
    flops_per_image: float
    images_per_second: float
    mfu: float | None
    peak_flops: float | None
    peak: str | None
    batch: int
    micro_batch: int | None
    workers: int
    tried: tuple[Tried, ...]
    on_gpus: dict[str, float | None]
    assumed: str
    config: Config

    @property
    def faster(self) -> Tried | None:
        """The fastest micro-batch, where it is clearly faster than the run's own."""
        best = max(self.tried, key=lambda one: one.images_per_second)
        return best if best.images_per_second > FASTER * self.tried[0].images_per_second else None

    def lines(self) -> list[str]:
        """Return what it says, for a person."""
        peak = self.peak_flops
        mfu = "" if self.mfu is None or peak is None else f", MFU {self.mfu:.0%} of {with_prefix(peak, 'FLOP/s')} "
        image, epoch, whole = (
            with_prefix(flops, "FLOP") for flops in (self.flops_per_image, self.flops_per_epoch, self.flops)
        )
        return [
            f"time      {duration(self.seconds)}: {duration(self.start_seconds)} to start, {self.steps} steps of "
            f"{self.step_seconds:.3g} s, {self.evaluations} evaluations of {self.evaluation_seconds:.3g} s; an epoch "
            f"takes {duration(self.epoch_seconds)}",
            f"memory    {self.memory_mb:,.0f} MB at most, of this process",
            f"work      {image} an image, {epoch} an epoch, {whole} in all: matrix products and convolutions of "
            f"student and teacher, forward and backward",
            f"speed     {self.images_per_second:,.0f} images/s{mfu}{f'({self.peak})' if mfu else ''}",
            f"take      {self.advice()}",
            f"GPUs      {self.hours()}",
            f"assumed   {self.assumed}",
        ]

    def advice(self) -> str:
        """Return which batch, micro-batch and workers to take, and what was tried."""
        own, others = self.tried[0], self.tried[1:]
        best = self.faster
        micro = self.micro_batch if best is None else best.micro_batch
        parts = f"--micro-batch {micro}" if micro else "no --micro-batch"
        said = ", ".join(
            f"{one.images_per_second / own.images_per_second:.2f} x with {one.micro_batch}" for one in others
        )
        tried = f" (steps alone: {own.images_per_second:,.0f} images/s; {said})" if others else " (no other was tried)"
        return f"--batch {self.batch}, {parts}{tried}, --workers {self.workers}"

    def hours(self) -> str:
        """Return the time on GPUs."""
        return ", ".join(f"{count}: {on_gpu(seconds)}" for count, seconds in self.on_gpus.items())


def on_gpu(seconds: float | None) -> str:
    """Return seconds on GPUs as people write them."""
    if seconds is None:
        return "more than a batch has images"
    return "under 1 s" if seconds < 1 else duration(seconds)


def forecast(
    data: Any, *,
    gpu: Gpu = "H100", utilisation: Utilisation = 0.2, settings: Mapping[str, Any] | None = None,
    log: Log = to_stderr, **words: Any,
) -> Forecast:  # fmt: skip
    """Say what a run on DATA would cost, after a few steps on this machine: hours, memory, operations and MFU, which
    micro-batch and workers to take, and the hours on 1, 8 and 64 GPUs. Nothing is written.

    data, settings, words: as `pretrain` takes them; the run is the one that it would make. gpu, utilisation: the GPU
    and the MFU of the hours on GPUs.
    Raises InputError as `pretrain` does before step 1, and for an unknown GPU."""
    from simdino.plan import decided

    asked = checked(forecast, {"gpu": gpu, "utilisation": utilisation})
    name = gpu_named(asked["gpu"])
    planned = decided(data, Options(settings, **words), measure=True, log=log)
    assert planned.costs is not None
    return of_costs(planned.config, planned.costs, gpu=name, utilisation=asked["utilisation"])


def of_costs(config: Config, costs: Costs, *, gpu: str, utilisation: float) -> Forecast:
    """Return the forecast of a run from what was measured of it."""
    run, speed = config.run, config.speed
    per_epoch, evaluations = config.data.train_images // run.batch, ceil(run.steps / run.evaluate_every)
    start = costs.start + costs.first_evaluation * (1 if run.init is None else 2)  # random weights are scored too
    peak, rate = peak_of(speed.device, speed.precision), run.batch / costs.step
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    on_gpus, assumed = projected(config, costs.flops * run.steps, gpu=gpu, utilisation=utilisation)
    return Forecast(
        seconds=start + run.steps * costs.step + evaluations * costs.evaluation, start_seconds=start,
        step_seconds=costs.step, evaluation_seconds=costs.evaluation, epoch_seconds=per_epoch * costs.step,
        steps=run.steps, epochs=run.steps / per_epoch, evaluations=evaluations, images=run.steps * run.batch,
        memory_mb=costs.memory_mb, flops=costs.flops * run.steps, flops_per_epoch=costs.flops * per_epoch,
        flops_per_image=costs.flops / run.batch, images_per_second=rate,
        mfu=None if peak is None else costs.flops / costs.step / (peak.flops * processes),
        peak_flops=None if peak is None else peak.flops * processes, peak=None if peak is None else peak.source,
        batch=run.batch, micro_batch=speed.micro_batch, workers=speed.workers, tried=costs.tried, on_gpus=on_gpus,
        assumed=assumed, config=config,
    )  # fmt: skip


def projected(
    config: Config, flops: float, *, gpu: str, utilisation: float
) -> tuple[dict[str, float | None], str]:  # fmt: skip
    """Return the seconds that operations take on GPUS many GPUs, and what is assumed."""
    peak, batch = published(gpu, "bfloat16") or published(gpu, "float16"), config.run.batch
    assert peak is not None
    seconds = {
        str(count): flops / (utilisation * peak.flops * count) if count <= batch else None for count in GPUS
    }  # fmt: skip
    return seconds, (
        f"each {gpu} at {utilisation:.0%} of {with_prefix(peak.flops, 'FLOP/s')} ({peak.source}); the same steps of "
        f"{batch} images, divided evenly; no time for data, evaluations and what GPUs tell each other"
    )
