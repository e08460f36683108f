"""Config -> the objects of a run, the same on every process."""

from __future__ import annotations

from collections.abc import Callable

import torch

from simdino.config import Config
from simdino.contracts import InputError, Objective, Preprocess
from simdino.data.base import Splits
from simdino.data.loader import Batches, Loader
from simdino.data.sources import DataPath, open_splits
from simdino.evaluate.monitor import Monitor
from simdino.methods import make_loss, make_student
from simdino.models.starting import compile_blocks, starting_encoder
from simdino.precision import make_autocast
from simdino.train.loop import Training
from simdino.train.memory import keep_freed_memory
from simdino.train.parallel import Processes, own_device
from simdino.train.state import State

Log = Callable[[str], None]


def build(
    config: Config, among: Processes, *, data: Splits | None = None, fresh: bool = True, log: Log = lambda _: None
) -> Training:
    """Everything a run needs. data: its images, opened here unless given. fresh: its weights come from no checkpoint of
    its own. Raises InputError where the images are not those that the configuration was made for."""
    device = own_device(config.speed.device)
    if device.type == "cpu":
        keep_freed_memory()
    data = images_of(config, data or open_splits(DataPath.of(config.data)))
    loader, monitor = readers(config, among, data, device)
    loss = make_loss(config, device)
    state = first_state(config, among, loss, device, fresh=fresh, log=log)
    return Training(
        config=config, processes=among, data=data, loader=loader, loss=loss, state=state, monitor=monitor
    )  # fmt: skip


def images_of(config: Config, data: Splits) -> Splits:
    """The images, scaled as the run was planned. Raises InputError where their number has changed since."""
    if len(data.train) != config.data.train_images:
        raise InputError(
            f"{config.data.root} has changed: {len(data.train)} training images, {config.data.train_images} when the "
            f"run was planned"
        )
    return Splits(*(source.with_bits(config.data.bits) for source in data))


def readers(config: Config, among: Processes, data: Splits, device: torch.device) -> tuple[Loader, Monitor]:
    """What reads images while training, at the speed of the configuration, with the threads that it leaves."""
    views, run, speed = config.views, config.run, config.speed
    if speed.threads is not None:
        torch.set_num_threads(speed.threads)
    side = views.global_size // config.encoder.patch_size
    batches = Batches(
        data.train, views, batch=run.batch, channels=config.data.channels, seed=run.seed, rank=among.rank,
        world=among.world, grid=(side, side),
    )  # fmt: skip
    loader = Loader(
        batches,
        mean=config.data.mean,
        std=config.data.std,
        device=device,
        workers=speed.workers,
        prefetch=speed.prefetch,
    )
    monitor = Monitor(
        data.train, data.val, bank=run.knn_bank, queries=run.knn_queries, labels=config.data.labels,
        precision=speed.precision, workers=speed.workers,
    )  # fmt: skip
    return loader, monitor


def first_state(
    config: Config, among: Processes, loss: Objective, device: torch.device, *, fresh: bool, log: Log
) -> State:
    """The state before step 1: the encoder with its heads, the teacher and the optimizer, on the device."""
    speed = config.speed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        encoder = starting_encoder(config, preprocessing(config), fresh=fresh)
        student = among.synchronised(make_student(config, encoder).to(device))
    state = State.create(student, optim=config.optim, buffers=loss.buffers, device=device, precision=speed.precision)
    if speed.compile:
        networks = [student.encoder, state.teacher.encoder]
        compile_blocks(networks, autocast=make_autocast(speed.device, speed.precision), log=log)
    return state


def preprocessing(config: Config) -> Preprocess:
    """Images as large as global crops; from 96 px on, cut from the centre of 256/224 of that, as DINO evaluates."""
    size, data = config.views.global_size, config.data
    resize = round(size * 256 / 224) if size >= 96 else size
    return Preprocess(resize=resize, crop=size, channels=data.channels, mean=data.mean, std=data.std, bits=data.bits)
