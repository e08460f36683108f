"""What a run takes unless told otherwise: a table that follows the images."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from simdino.config import EncoderConfig, LossConfig, OptimConfig, ProjectorConfig, RunConfig, ViewsConfig


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Everything of a run that follows from the images and the method."""

    method: str
    views: ViewsConfig
    encoder: EncoderConfig
    projector: ProjectorConfig
    loss: LossConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    batch: int
    lr: Callable[[int], float]  # the peak, from the batch
    epochs: float
    steps: int | None = None  # the length whatever the data, in place of the epochs
    imagenet: bool = False  # whether images are normalised by ImageNet's mean and std, not by their own
    follows_length: bool = False  # whether warm-up and teacher momentum follow the length of the run
    least_momentum: float = 0.0  # of a teacher whose momentum follows the length


def by_square_root(lr: float, *, at: int) -> Callable[[int], float]:
    """`lr` at the batch `at`, times the square root of the batch."""
    return lambda batch: lr * (max(1, batch) / at) ** 0.5


def linearly(lr: float, *, at: int) -> Callable[[int], float]:
    """`lr` at the batch `at`, times the batch."""
    return lambda batch: lr * batch / at


NARROW = ProjectorConfig(hidden_dim=512)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What images of a size ask for, whatever the method."""

    up_to: float  # median short side in pixels
    views: ViewsConfig
    encoder: EncoderConfig
    projector: ProjectorConfig = NARROW
    prototypes: int = 1024  # of the methods that have some
    batch: int = 64
    lr: float = 2e-3  # at batch 256
    epochs: float = 100
    quick: bool = True  # whether SimDINO takes what learns most in minutes, see `methods.simdino.ours`


# Local crops of small images see empty background and cost k-NN points (docs/log.md).
SMALL = ViewsConfig(local_views=0, global_scale=(0.8, 1.0), blur=(0.0, 0.0, 0.0), solarize=(0.0, 0.0, 0.0))

TABLE = (
    Row(
        up_to=16,
        views=replace(SMALL, global_size=8, local_size=4, flip=0.0),
        encoder=EncoderConfig(name="conv_pico", image_size=8, patch_size=4, drop_path=0.0),
    ),
    Row(
        up_to=30,
        views=replace(SMALL, global_size=28, local_size=16, global_scale=(0.6, 1.0)),
        encoder=EncoderConfig(name="conv_pico", image_size=28, patch_size=4, drop_path=0.0, pool="quarters"),
        epochs=30,
    ),
    Row(
        up_to=32,
        views=replace(SMALL, global_size=32, local_size=16, global_scale=(0.4, 1.0)),
        encoder=EncoderConfig(name="conv_pico", image_size=32, patch_size=4, drop_path=0.0),
    ),
    Row(
        up_to=48,
        views=replace(SMALL, global_size=40, local_size=20, global_scale=(0.4, 1.0)),
        encoder=EncoderConfig(name="conv_pico", image_size=40, patch_size=4, drop_path=0.0),
    ),
    Row(
        up_to=160,
        views=ViewsConfig(
            local_views=0, global_size=64, local_size=32, global_scale=(0.2, 1.0), blur_sigma=(0.1, 0.6)
        ),
        encoder=EncoderConfig(name="conv_nano", image_size=64, patch_size=16, drop_path=0.0),
    ),
    Row(
        up_to=float("inf"),
        views=ViewsConfig(),
        encoder=EncoderConfig(name="vit_small", image_size=224, patch_size=16),
        projector=ProjectorConfig(), prototypes=65_536, batch=256, lr=5e-4, quick=False,
    ),
)  # fmt: skip

PHOTOS_WITHOUT_GPU = Row(
    up_to=float("inf"),
    views=ViewsConfig(local_views=0, global_size=128, local_size=48, global_scale=(0.2, 1.0), blur_sigma=(0.1, 1.2)),
    encoder=EncoderConfig(name="conv_nano", image_size=128, patch_size=16, drop_path=0.0),
)  # fmt: skip
"""In place of the last row where there is no CUDA GPU: 224 px and twelve views of a ViT-S are minutes a step there
(docs/log.md, photographs without a GPU)."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What views of a kind of images differ in from those of photographs, and why."""

    views: dict[str, Any]
    reason: str


KINDS = {
    "natural": Kind(views={}, reason="photographs have an up, and their objects keep it in any light and colour"),
    "grey-medical": Kind(
        views={"flip": 0.0, "solarize": (0.0, 0.0, 0.0), "brightness": 0.2, "contrast": 0.2},
        reason="left and right differ, and brightness is a measurement: it changes little between crops",
    ),
    "satellite": Kind(
        views={
            "turns": True, "solarize": (0.0, 0.0, 0.0), "hue": 0.0, "grey": 0.0, "brightness": 0.2, "contrast": 0.2,
            "channel_dropout": 0.2, "noise": 0.1,
        },
        reason="nothing is up from above, and the ratio of bands tells what grows there",
    ),
    "microscopy": Kind(
        views={
            "turns": True, "solarize": (0.0, 0.0, 0.0), "hue": 0.0, "grey": 0.0, "channel_dropout": 0.3, "noise": 0.2,
        },
        reason="nothing is up, each channel is a stain, and brightness follows the exposure",
    ),
    "small": Kind(
        views={"blur": (0.0, 0.0, 0.0), "solarize": (0.0, 0.0, 0.0), "local_views": 0},
        reason="in images of few pixels a blur takes the object away, and a local crop sees none",
    ),
}  # fmt: skip
"""What --kind names. They change views alone, and what a person gives wins."""


FEW_PIXELS = 48  # a short side up to which images are small


def likely_kinds(*, channels: int, deep: bool, short_side: float) -> tuple[str, ...]:
    """The kinds that images may be of, by what can be measured: their size, their channels and their bits."""
    if short_side <= FEW_PIXELS:
        return ("small",)
    if channels not in (1, 3):
        return "satellite", "microscopy"
    return ("grey-medical", "microscopy") if channels == 1 and deep else ("natural",)


def row_for(short_side: float, *, gpu: bool) -> Row:
    """The row of the table for images with this median short side in pixels."""
    row = next(row for row in TABLE if short_side <= row.up_to)
    return PHOTOS_WITHOUT_GPU if row is TABLE[-1] and not gpu else row


EVALUATIONS = 8
"""How often a run is evaluated and saved unless its intervals are given."""


def intervals(run: RunConfig) -> RunConfig:
    """The run with intervals between log lines, evaluations and checkpoints that fit its length."""
    interval = max(1, -(-run.steps // EVALUATIONS))
    log = max(1, min(50, run.steps // 100))
    return replace(run, log_every=log, evaluate_every=interval, checkpoint_every=min(1000, interval))
