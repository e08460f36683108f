"""Config -> the objects of a run, the same on every process, and the memory that its steps need."""

import os
from copy import deepcopy
from itertools import pairwise

import torch

from simdino.config import Config
from simdino.contracts import InputError, Preprocess
from simdino.data.base import Splits
from simdino.data.loader import Batches, Loader
from simdino.data.sources import DataPath, open_splits
from simdino.device import keep_freed_memory, make_autocast, refuse_beyond_memory
from simdino.evaluate.monitor import Monitor
from simdino.feedback import Log
from simdino.losses.objective import Objective
from simdino.methods import make_loss, make_student
from simdino.models.catalogue import kind_of
from simdino.models.projector import Embedder
from simdino.models.starting import compile_blocks, recompute_blocks, starting_encoder
from simdino.train.loop import Training
from simdino.train.parallel import Processes, own_device
from simdino.train.state import State


def build(
    config: Config, among: Processes, *, data: Splits | None = None, fresh: bool = True, log: Log = lambda _: None
) -> Training:
    """Return everything that a run needs. data: its images, opened here unless given. fresh: its weights come from no
    checkpoint of its own. Raises InputError where the images are not those that the configuration was made for."""
    device = own_device(config.speed.device)
    if device.type == "cpu":
        keep_freed_memory()
    data = images_of(config, data or open_splits(DataPath.of(config.data)))
    loader, monitor = readers(config, among, data, device)
    loss = make_loss(config, device)
    state = first_state(config, among, loss, device, fresh=fresh, log=log)
    return Training(config=config, processes=among, data=data, loader=loader, loss=loss, state=state, monitor=monitor)


def images_of(config: Config, data: Splits) -> Splits:
    """Return the images, scaled as the run was planned. Raises InputError where their number has changed since."""
    if len(data.train) != config.data.train_images:
        raise InputError(
            f"{config.data.root} has changed: {len(data.train)} training images, {config.data.train_images} when the "
            f"run was planned"
        )
    return Splits(*(source.with_values(config.data.values) for source in data))


def readers(config: Config, among: Processes, data: Splits, device: torch.device) -> tuple[Loader, Monitor]:
    """Return what reads images while training, at the speed of the configuration, with the threads that it leaves."""
    views, run, speed, about = config.views, config.run, config.speed, config.data
    if speed.threads is not None:
        torch.set_num_threads(speed.threads)
    side = views.global_size // config.encoder.patch_size
    batches = Batches(
        data.train, views, batch=run.batch, channels=about.channels, seed=run.seed, rank=among.rank,
        world=among.world, deep=about.values is not None, grid=(side, side),
        block=about.shuffle,
    )  # fmt: skip
    loader = Loader(
        batches, mean=about.mean, std=about.std, device=device, workers=speed.workers, prefetch=speed.prefetch,
        micro_batch=speed.micro_batch,
    )  # fmt: skip
    monitor = Monitor(
        data.train, data.val, bank=run.knn_bank, queries=run.knn_queries, labels=about.labels,
        precision=speed.precision, workers=speed.workers,
    )  # fmt: skip
    return loader, monitor


def first_state(
    config: Config, among: Processes, loss: Objective, device: torch.device, *, fresh: bool, log: Log
) -> State:
    """Return the state before step 1: the encoder with its heads, the teacher and the optimizer, on the device."""
    speed = config.speed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        encoder = starting_encoder(config, preprocessing(config), fresh=fresh)
        student = among.synchronised(make_student(config, encoder).to(device))
    divided = speed.parallel == "fsdp" and among.world > 1
    spare = deepcopy(student.encoder).cpu() if divided and among.first else None

    def prepare(student: Embedder, teacher: Embedder) -> None:
        if speed.recompute:
            recompute_blocks(student.encoder)
        if speed.compile:
            networks = [student.encoder, teacher.encoder]
            compile_blocks(networks, autocast=make_autocast(speed.device, speed.precision), log=log)
        for network in (student, teacher) if divided else ():
            among.divide(network, network.encoder.stages())

    state = State.create(
        student, optim=config.optim, buffers=loss.buffers, device=device, precision=speed.precision, prepare=prepare
    )
    state.spare = spare
    return state


def preprocessing(config: Config) -> Preprocess:
    """Return how images are prepared: as large as global crops; from 96 px on, cut from the centre of 256/224 of that,
    as DINO evaluates."""
    size, data = config.views.global_size, config.data
    resize = round(size * 256 / 224) if size >= 96 else size
    return Preprocess(
        resize=resize, crop=size, channels=data.channels, mean=data.mean, std=data.std, values=data.values
    )


def check_memory(config: Config) -> None:
    """Raise InputError where one step of this process cannot fit in the memory of its device."""
    views, speed = config.views, config.speed
    words = f"--batch {config.run.batch}, --image-size {views.global_size}, --local-views {views.local_views}"
    if config.projector.prototypes:
        words += f", --prototypes {config.projector.prototypes}"
    refuse_beyond_memory(step_bytes(config), device=speed.device, words=words, instead="give less, or a --micro-batch")


def step_bytes(config: Config) -> dict[str, float]:
    """Return the bytes that a step needs at least, by what needs them: views as they are read and, of the images that
    go through the network at once, as float32; the student's activations kept for the gradient (four numbers of the
    embedding width a token, where blocks keep some fourteen; on a CPU also attention, except in the last block; with
    --recompute one number, and no attention); and this process's part of student, teacher, gradient and AdamW's two
    moments. For timm's encoders only the views are counted."""
    views, encoder, heads, speed = config.views, config.encoder, config.projector, config.speed
    world = int(os.environ.get("WORLD_SIZE", "1"))
    images = config.run.batch // world
    kinds = ((views.global_views, views.global_size), (views.local_views, views.local_size))
    pixels = config.data.channels * sum(count * size**2 for count, size in kinds)  # of an image
    kind = kind_of(encoder.name)
    shape = kind.complete(encoder)
    width, depth, attention = shape.embed_dim or 0, shape.depth or 0, shape.num_heads or 0
    channels = config.data.channels if kind.joins else 1  # of which each is an image of its own
    at_once, number = min(images, speed.micro_batch or images), 4 if speed.precision == "float32" else 2
    grids = [(channels * at_once * count, (size // encoder.patch_size) ** 2) for count, size in kinds]
    kept = (1.0 if speed.recompute else 4.0) * depth * width * sum(images * tokens for images, tokens in grids)
    if speed.device == "cpu" and not speed.recompute:
        kept += (depth - 1) * attention * sum(images * tokens**2 for images, tokens in grids)
    parameters = depth * kind.block_size * width**2 + width * (encoder.image_size // encoder.patch_size) ** 2
    hidden = [*[heads.hidden_dim] * (heads.layers - 1), heads.out_dim] if heads.layers else []
    dims = [width * channels, *hidden, heads.prototypes]
    parameters += sum(a * b for a, b in pairwise(dims))
    number_read = 1 if config.data.values is None else 4
    weights = 20.0 * parameters / (world if speed.parallel == "fsdp" else 1)
    return {"views": (4.0 * at_once + number_read * images) * pixels, "activations": number * kept, "weights": weights}
