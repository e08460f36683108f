"""What a run is: frozen, keyword-only dataclasses, written to config.json and validated all at once.

Every field is decided before step 1 and nobody writes to one afterwards. `SpeedConfig` holds what changes only the
speed; everything else changes results.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from simdino.contracts import InputError

Precision = Literal["bfloat16", "float16", "float32"]
Method = Literal["simdino", "simdinov2", "dino", "dinov2"]
PositionRule = Literal["antialias", "plain", "offset"]
"""How a position embedding is brought to another grid, see `models.layers.resize_positions`."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images: where they are and how they are brought to one scale."""

    root: str
    channels: int  # 1 or 3
    mean: tuple[float, ...]  # of pixels in [0, 1], measured on the data
    std: tuple[float, ...]
    train_images: int
    labels: bool  # whether to use labels for k-NN while training, if there are any
    max_broken: float = 0.1  # share of unreadable images above which a run refuses


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """Multi-crop views as in DINO. Triples are for the first global, the second global and the local views."""

    global_views: int = 2
    local_views: int = 10
    global_size: int = 224
    local_size: int = 96
    global_scale: tuple[float, float] = (0.4, 1.0)  # shares of the image's area
    local_scale: tuple[float, float] = (0.05, 0.4)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey: float = 0.2
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels
    solarize: tuple[float, float, float] = (0.0, 0.2, 0.0)
    mask_share: float = 0.0  # of the global crops of a batch that have masked patches
    mask_ratio: tuple[float, float] = (0.1, 0.5)  # of the patches of a masked crop


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The encoder, see `models.catalogue`. An encoder `timm:NAME` has its own patch, and of what follows it reads
    nothing but the image size."""

    name: str = "vit_small"  # of `models.vit.SIZES`, or timm:NAME, or "vit" for a shape without a name
    width: int | None = None  # the name's, unless given
    depth: int | None = None
    heads: int | None = None
    image_size: int = 224  # side of the grid the position embedding is learned on, in pixels
    patch_size: int = 16
    registers: int = 0
    layer_scale: float | None = None
    drop_path: float = 0.1
    drop_path_rule: Literal["linear", "uniform"] = "linear"  # over depth: rising from 0, or the same everywhere
    mask_token: bool = False
    ffn: Literal["mlp", "swiglu"] = "mlp"
    positions: PositionRule = "antialias"
    stem: Literal["patch", "dual_norm"] = "patch"  # of a ViT; CRATE's is dual_norm, whatever stands here


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    """The MLP after the class token, and the prototypes after it."""

    hidden: int = 2048
    dim: int = 256
    prototypes: int = 0  # directions of the last layer; 0: there is none
    train_lengths: bool = False  # whether the prototypes' lengths are trained (DINOv2) or fixed at 1 (DINO)
    separate: bool = False  # whether masked patches have a head of their own


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The objective of SimDINO and SimDINOv2, see `losses.simdino` and `losses.simdinov2`."""

    eps: float = 0.05**0.5
    gamma: float | Literal["balanced", "theorem", "released"] = "balanced"
    rho: float = 1.5
    lift: float = 3.0  # with gamma "balanced": how much steeper the rate is near collapse; 0 is the paper's rate
    scope: Literal["global", "shards"] = "global"
    shard_size: int = 64
    rate_on: Literal["student", "mean"] = "student"
    patch_weight: float = 1.0  # of masked patches, in SimDINOv2
    patch_rate: float = 0.0  # weight of the rate of patches, as a multiple of the class tokens'


@dataclass(frozen=True, kw_only=True)
class PrototypeLossConfig:
    """The objective of DINO and DINOv2, see `losses.dino` and `losses.dinov2`."""

    student_temperature: float = 0.1
    center_momentum: float = 0.9
    centering: Literal["centering", "sinkhorn"] = "centering"
    patch_weight: float = 1.0  # of iBOT, in DINOv2
    koleo_weight: float = 0.1  # in DINOv2


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and the schedules, all functions of the step."""

    lr: float = 1e-3  # the peak
    final_lr: float = 1e-6
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.04
    final_weight_decay: float = 0.4
    teacher: Literal["ema", "none"] = "ema"  # none: the student as it is before the step, without its gradient
    momentum: float = 0.996  # of the teacher; rises to 1
    clip: float = 3.0  # largest gradient norm ...
    clip_per: Literal["parameter", "part"] = "parameter"  # ... of each parameter tensor, or of encoder and heads each
    layer_decay: float = 1.0  # learning rate of a layer relative to the layer after it
    patch_embed_lr: float = 1.0  # learning rate of the stem, relative to its layer's
    temperature: tuple[float, float] = (0.04, 0.04)  # of the teacher, for losses with prototypes: first and last
    temperature_warmup: float = 0.3  # share of the steps in which it goes from the first to the last
    freeze_prototypes: float = 0.01  # share of the steps, at the start, in which they are not trained
    freeze_encoder: float = 0.0  # the same for the encoder: a new projector first learns to read a trained one


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long, how much at once, and when to write something down."""

    method: Method = "simdino"
    init: str | None = None  # weights that the encoder starts from; None: random ones
    steps: int
    batch: int  # images in the global batch
    seed: int = 0
    log_every: int = 10
    evaluate_every: int = 1000
    checkpoint_every: int = 1000
    keep: int = 3  # checkpoints; the best one stays besides
    knn_bank: int = 10_000  # images compared with while training; the whole set afterwards
    knn_queries: int = 2_000


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """What must not change results beyond rounding."""

    micro_batch: int | None = None  # images of one process at once; None: all
    precision: Precision = "float32"
    compile: bool = False  # the blocks of encoders, by torch.compile
    device: str = "cpu"
    workers: int = 0
    ahead: int = 2  # batches that each worker makes before they are asked for
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    data: DataConfig
    views: ViewsConfig
    encoder: EncoderConfig
    projector: ProjectorConfig
    loss: LossConfig | PrototypeLossConfig
    optim: OptimConfig
    run: RunConfig
    speed: SpeedConfig

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, as in config.json."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Config:
        """The inverse of `as_dict`. Raises InputError for a missing or an unknown field."""
        try:
            rated = values["run"]["method"] in ("simdino", "simdinov2")
            loss = LossConfig if rated else PrototypeLossConfig
            named = {field.name: field.type for field in dataclasses.fields(Config)}
            groups: dict[str, Any] = {name: globals().get(str(kind), loss) for name, kind in named.items()}
            return Config(**{name: group(**_tuples(values[name])) for name, group in groups.items()})
        except (KeyError, TypeError) as error:
            raise InputError(f"configuration does not fit this version of simdino: {error}") from None

    def check(self) -> None:
        """Raise one InputError that lists every problem."""
        problems = [text for wrong, text in self._rules() if wrong]
        if problems:
            raise InputError("; ".join(problems))

    def _rules(self) -> list[tuple[bool, str]]:
        """What may be wrong: whether it is, and the words for it."""
        positive = {
            "steps": self.run.steps, "patch-size": self.encoder.patch_size, "lr": self.optim.lr,
            "evaluate-every": self.run.evaluate_every, "checkpoint-every": self.run.checkpoint_every,
            "keep": self.run.keep, "threads": 1 if self.speed.threads is None else self.speed.threads,
        }  # fmt: skip
        rules = [(not 0 < value < inf, f"--{name} {value} must be above 0") for name, value in positive.items()]
        rules += self._run_rules() + self._view_rules()
        return rules + (_rate_rules if isinstance(self.loss, LossConfig) else _prototype_rules)(self)

    def _run_rules(self) -> list[tuple[bool, str]]:
        data, run, speed = self.data, self.run, self.speed
        shares = {
            "drop-path": self.encoder.drop_path, "freeze-encoder": self.optim.freeze_encoder,
            "momentum": self.optim.momentum,
        }  # fmt: skip
        return [
            *((not 0 <= value < 1, f"--{name} {value} must be from 0 to below 1") for name, value in shares.items()),
            (not 0 < self.optim.layer_decay <= 1, f"--layer-decay {self.optim.layer_decay} must be above 0, at most 1"),
            (run.batch < 2, f"--batch {run.batch}: the objective of a batch needs at least 2 images"),
            (
                run.batch > data.train_images,
                f"--batch {run.batch} is larger than the data: {data.train_images} training images in {data.root}",
            ),
            (
                speed.micro_batch is not None and speed.micro_batch < 1,
                f"--micro-batch {speed.micro_batch} must be 1 or more",
            ),
            (not 0 <= data.max_broken <= 1, f"--max-broken {data.max_broken} must be a share between 0 and 1"),
            (speed.workers < 0, f"--workers {speed.workers} must be 0 or more"),
        ]

    def _view_rules(self) -> list[tuple[bool, str]]:
        views, patch = self.views, self.encoder.patch_size
        return [
            *(
                (patch > 0 and size % patch != 0, f"{name} of {size} px are not divisible by --patch-size {patch}")
                for name, size in (
                    ("--image-size: global crops", views.global_size),
                    ("local crops", views.local_size if views.local_views else patch),
                )
            ),
            *(
                (not 0 < low <= high <= 1, f"shares {low} to {high} of an image for crops must rise from above 0 to 1")
                for low, high in (views.global_scale, views.local_scale)
            ),
            (views.local_views < 0, f"--local-views {views.local_views} must be 0 or more"),
        ]


def _rate_rules(config: Config) -> list[tuple[bool, str]]:
    """Of SimDINO and SimDINOv2."""
    loss, run = config.loss, config.run
    assert isinstance(loss, LossConfig)
    return [
        *(
            (not 0 < value < inf, f"--{name} {value} must be above 0")
            for name, value in (("eps", loss.eps), ("rho", loss.rho))
        ),
        (
            loss.scope == "shards" and run.batch % loss.shard_size != 0,
            f"--batch {run.batch} is not divisible into shards of {loss.shard_size} (--scope shards)",
        ),
        (
            isinstance(loss.gamma, float | int) and not 0 <= loss.gamma < inf,
            f"--gamma {loss.gamma} must be 0 or more: below, the rate would be pushed down",
        ),
        (not 0 <= loss.lift < inf, f"--lift {loss.lift} must be 0 or more"),
        (
            not 0 <= loss.patch_rate < inf,
            f"--patch-rate {loss.patch_rate} must be 0 or more: below, the rate of patches would be pushed down",
        ),
    ]


def _prototype_rules(config: Config) -> list[tuple[bool, str]]:
    """Of DINO and DINOv2."""
    first, last = config.optim.temperature
    return [
        (config.projector.prototypes < 2, f"--prototypes {config.projector.prototypes} must be 2 or more"),
        (not (0 < first < inf and 0 < last < inf), f"--teacher-temperature {last} must be above 0"),
    ]


EVALUATIONS = 8
"""How often a run is evaluated and saved unless its intervals are given."""


def intervals(run: RunConfig) -> RunConfig:
    """The run with intervals between log lines, evaluations and checkpoints that fit its length."""
    interval = max(1, -(-run.steps // EVALUATIONS))
    return dataclasses.replace(
        run,
        log_every=max(1, min(50, run.steps // 100)),
        evaluate_every=interval,
        checkpoint_every=min(1000, interval),
    )


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists where the dataclasses have tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
