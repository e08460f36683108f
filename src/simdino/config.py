"""What a run is: frozen, keyword-only dataclasses, written to config.json.

Every field is decided before step 1 and nobody writes to one afterwards; it declares its help, its range and its word
on the command line (`settings.setting`). `SpeedConfig` holds what changes only the speed; everything else changes
results. The settings of a loss are declared by its method, and `methods.check_config` validates all of them at once.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from simdino.settings import SEEDS, SHARE, VALUES, Range, Values, setting

Precision = Literal["bfloat16", "float16", "float32"]
Interpolation = Literal["bicubic", "bilinear"]
Ramp = Literal["ahead", "inclusive", "exclusive"]
"""When a warm-up of W steps, counted from 0, reaches its end: "ahead" in step W - 1 and starts a W-th above its start;
"inclusive" in step W - 1 from the start itself (DINO, DINOv2); "exclusive" in step W (SimDINOv2)."""
Schedule = Literal["cosine", "wsd"]
"""What the learning rate does after its warm-up: it falls along half a cosine over the whole run; or it stays and falls
in a cool-down at the end alone ("warm-up, stable, decay"), so that the length can still change."""
PositionRule = Literal["antialias", "plain", "offset"]
"""How a position embedding is brought to another grid, see `models.layers.resize_positions`."""

PART = Range(at_least=0, below=1)  # a share that is never all
SEEN = Range(above=0, at_most=1)
SOME = Range(above=0)
FACTOR = Range(0, 10)  # of a colour's strength
BATCH = Range(2, 2**20)
BLOCK = Range(32, 10**9)  # of fewer, every image is a run of its own
SHARDS = Range(1, 2**20)  # images of one
PIXELS = Range(1, 2**16)
COUNT = Range(1, 10**9)
SCALE = Range(0, 10**6)
TEMPERATURE = Range(above=0, at_most=100)
RATE = Range(0, 10)  # of learning, of decay; a standard deviation
LOCAL, JITTER, BLUR = (("views." + name, SOME) for name in ("local_views", "jitter", "blur"))
"""What other settings need to be above 0 to have an effect."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images: where they are, which of them are held out, and how they are brought to one scale."""

    root: str = setting(text="The images.", fixed=False, found=True)
    train: str | None = setting(
        None, "Folder of training images in DATA.  [default: as the folders' names tell]", word="train"
    )
    val: str | None = setting(None, "Folder of validation images in DATA.", word="val")
    class_depth: int | None = setting(
        None, "Folders below the split that name a class; -1: the one an image is in, wherever it lies.  [default: 1]",
        Range(-100, 100), word="class-depth",
    )  # fmt: skip
    channels: int = setting(
        text="Channels of the images: 1 for grey, 3 for colour, or as many as they have.", range=Range(1, 1024),
        word="channels",
    )  # fmt: skip
    mean: tuple[float, ...] = setting(text="Mean of the pixels in [0, 1], for each channel.", range=Range(-10, 10))
    std: tuple[float, ...] = setting(
        text="Standard deviation of the pixels, for each channel.", range=Range(above=0, at_most=10)
    )
    values: Values | None = setting(
        None, "Lowest and highest value of images of more than 8 bits, which become black and white.  [default: as the "
        "images tell]", VALUES, word="values",
    )  # fmt: skip
    train_images: int = setting(text="How many there are to train on.", range=COUNT, found=True)
    labels: bool = setting(True, "Use labels, where there are any, for k-NN while training.", word="labels")
    shuffle: int | None = setting(
        None, "Images that are shuffled together: so many in a row come from 16 places, as shards are read fast.  "
        "[default: all]", BLOCK, word="shuffle",
    )  # fmt: skip
    max_broken: float = setting(0.1, "Share of unreadable images that a run accepts.", SHARE, word="max-broken")


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """Multi-crop views as in DINO. Triples are for the first global, the second global and the local views."""

    global_views: int = setting(2, "Global crops per image.", Range(2, 1000))
    local_views: int = setting(10, "Local crops per image.", Range(0, 1000), word="local-views")
    global_size: int = setting(224, "Side of global crops in pixels.", PIXELS, word="image-size")
    local_size: int = setting(96, "Side of local crops in pixels.", PIXELS, only=LOCAL)
    global_scale: tuple[float, float] = setting(
        (0.4, 1.0), "Smallest and largest share of the image's area that global crops show.", SEEN
    )
    local_scale: tuple[float, float] = setting(
        (0.05, 0.4), "Smallest and largest share of the image's area that local crops show.", SEEN, only=LOCAL
    )
    interpolation: Interpolation = setting("bicubic", "How crops are brought to their size.")
    turns: bool = setting(
        False, "Turn crops by quarter turns, for images that have no up: from above, through a microscope."
    )
    noise: float = setting(
        0.0,
        "Largest std of the noise on a crop, in stds of the training images; each crop draws its own.",
        Range(0, 100),
    )
    channel_dropout: float = setting(
        0.0, "How likely a crop loses one of its channels, which is then at the mean of all images.", SHARE
    )
    flip: float = setting(0.5, "How likely a crop is mirrored.", SHARE)
    jitter: float = setting(0.8, "How likely a crop's colours are changed.", SHARE)
    brightness: float = setting(0.4, "How much brightness changes at most.", FACTOR, only=JITTER)
    contrast: float = setting(0.4, "How much contrast changes at most.", FACTOR, only=JITTER)
    saturation: float = setting(0.2, "How much saturation changes at most.", FACTOR, only=JITTER)
    hue: float = setting(0.1, "How far hue turns at most, as a share of the colour circle.", Range(0, 0.5), only=JITTER)
    grey: float = setting(0.2, "How likely a crop loses its colours.", SHARE)
    blur: tuple[float, float, float] = setting(
        (1.0, 0.1, 0.5), "How likely a crop is blurred: first global, second global, local.", SHARE
    )
    blur_sigma: tuple[float, float] = setting(
        (0.1, 2.0), "Smallest and largest sigma of the blur in pixels.", Range(above=0, at_most=1000), only=BLUR
    )
    blur_radius: int | None = setting(
        None, "Radius of the blur in pixels; three of the largest sigma unless given.", Range(1, 3000), only=BLUR
    )
    blur_edges: Literal["repeat", "reflect"] = setting(
        "repeat", "What lies beyond the edges of a blurred crop.", only=BLUR
    )
    solarize: tuple[float, float, float] = setting(
        (0.0, 0.2, 0.0), "How likely a crop is solarized: first global, second global, local.", SHARE
    )
    mask_share: float = setting(
        0.0, "Share of the global crops of a batch that have masked patches.", SHARE, part="masks"
    )
    mask_ratio: tuple[float, float] = setting(
        (0.1, 0.5),
        "Smallest and largest share of the patches of a masked crop.",
        SHARE,
        part="masks",
        only=("views.mask_share", SOME),
    )


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The encoder, see `models.catalogue`. An encoder `timm:NAME` has its own patch, and of what follows it reads
    nothing but the image size."""

    name: str = setting(
        "vit_small",
        "A name of simdino.list_encoders(), such as vit_tiny, vit_small, crate_small; bag:NAME for one that sees each "
        "channel alone; or a model of timm.",
        word="encoder",
    )
    embed_dim: int | None = setting(None, "Width of the tokens; the name's unless given.", Range(1, 2**16))
    depth: int | None = setting(None, "Number of blocks; the name's unless given.", Range(1, 1000))
    num_heads: int | None = setting(None, "Heads of attention; the name's unless given.", Range(1, 1000))
    image_size: int = setting(224, "Side of the grid that positions are learned on, in pixels.", PIXELS)
    patch_size: int = setting(16, "Side of a patch in pixels.", Range(1, 1024), word="patch-size")
    registers: int = setting(0, "Register tokens.", Range(0, 1000))
    layer_scale: float | None = setting(
        None, "Where the scales of the blocks' outputs start; null: the blocks have none.", Range(0, 1000)
    )
    token_std: float = setting(0.02, "Standard deviation of class and register tokens at the start.", RATE)
    drop_path: float = setting(0.1, "Stochastic depth of the student.", PART, word="drop-path")
    drop_path_rule: Literal["linear", "uniform"] = setting(
        "linear",
        "Stochastic depth over the blocks: rising from 0, or the same everywhere.",
        only=("encoder.drop_path", SOME),
    )
    mask_token: bool = setting(False, "Whether patches can be masked.", part="masks")
    pool: Literal["mean", "quarters"] = setting(
        "mean",
        "What a ConvNet's class token is made of: the mean of its places, or those of the image's quarters, which tell "
        "more where objects lie in the middle.",
    )
    ffn: Literal["mlp", "swiglu"] = setting("mlp", "Feed-forward network of a block.")
    positions: PositionRule = setting(
        "antialias", "How positions go to another grid; as the weights say, unless given.", word="positions"
    )
    patch_embed: Literal["patch", "dual_norm"] = setting(
        "patch",
        "Patch embedding of a ViT; dual_norm: layer norms around it (CRATE's own, whatever stands here).",
        word="patch-embed",
    )


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    """The MLP after the class token, and the prototypes after it."""

    layers: int = setting(
        3, "Linear layers of the projector; 0: there is none, the loss sees the class tokens themselves.", Range(0, 100)
    )
    hidden_dim: int = setting(
        2048, "Width of the projector's hidden layers.", Range(1, 2**20), only=("projector.layers", Range(2, 100))
    )
    out_dim: int = setting(
        256, "Dimension of the embeddings.", Range(1, 2**20), only=("projector.layers", Range(1, 100))
    )
    prototypes: int = setting(
        0, "Number of prototypes, directions of the last layer; 0: there is none.", Range(0, 2**26),
        word="prototypes", part="prototypes",
    )  # fmt: skip
    train_lengths: bool = setting(
        False, "Whether the prototypes' lengths are trained (DINOv2) or fixed at 1 (DINO).", part="prototypes"
    )
    separate: bool = setting(
        False, "Whether masked patches have a head of their own.", part="masks", only=("views.mask_share", SOME)
    )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The settings of a loss. Each method declares its own, see `simdino.methods`."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and the schedules, all functions of the step."""

    optimizer: Literal["adamw", "muon"] = setting(
        "adamw", "adamw; or muon for the weights of the encoder's layers, and adamw for the rest.",
        word="optimizer",
    )  # fmt: skip
    lr: float = setting(1e-3, "Peak learning rate.", Range(above=0, at_most=10), word="lr")
    first_lr: float = setting(0.0, "Learning rate where it starts to rise.", RATE)
    final_lr: float = setting(1e-6, "Learning rate at the end.", RATE)
    warmup: float = setting(0.1, "Share of the steps in which the learning rate rises.", SHARE)
    schedule: Schedule = setting(
        "cosine", "What the learning rate does after that: cosine falls until the end; wsd is stable, so that the run "
        "can be prolonged, and falls in a cool-down.", word="schedule",
    )  # fmt: skip
    cooldown: float = setting(
        0.2, "Share of the steps, at the end, in which the learning rate falls.", SHARE,
        only=("optim.schedule", ("wsd",)),
    )  # fmt: skip
    ramp: Ramp = setting("ahead", "In which step the learning rate and the temperature have risen, see docs/parity.md.")
    weight_decay: float = setting(0.04, "Weight decay at the start; with --schedule wsd, always.", RATE)
    final_weight_decay: float = setting(0.4, "Weight decay at the end.", RATE, only=("optim.schedule", ("cosine",)))
    teacher: Literal["ema", "none"] = setting(
        "ema", "ema: the teacher is a moving average of the student; none: the student itself, without its gradient.",
        word="teacher",
    )  # fmt: skip
    momentum: float = setting(
        0.996,
        "Teacher momentum at the start; it rises to 1, but not with --schedule wsd.",
        PART,
        word="momentum",
        only=("optim.teacher", ("ema",)),
    )
    clip: float = setting(3.0, "Largest norm of the gradient.", Range(above=0, at_most=10**9))
    clip_per: Literal["parameter", "part"] = setting(
        "parameter", "Whose gradient is clipped to that norm: each parameter's, or the encoder's and each head's."
    )
    layer_decay: float = setting(
        1.0, "Learning rate of a layer relative to the layer after it.", Range(above=0, at_most=1), word="layer-decay"
    )
    patch_embed_lr: float = setting(1.0, "Learning rate of the patch embedding, relative to its layer's.", SCALE)
    temperature: tuple[float, float] = setting(
        (0.04, 0.04), "Temperature of the targets, before and after its warm-up.", TEMPERATURE, part="prototypes",
    )  # fmt: skip
    temperature_warmup: float = setting(
        0.3, "Share of the steps in which the temperature goes from the first to the last.", SHARE, part="prototypes"
    )
    freeze_prototypes: float = setting(
        0.01, "Share of the steps, at the start, in which prototypes are not trained.", SHARE, part="prototypes"
    )
    frozen_prototypes: Literal["no_gradient", "no_rate"] = setting(
        "no_gradient",
        "How prototypes are frozen: with no_rate their gradient counts in the norm and moves Adam's moments.",
        part="prototypes",
        only=("optim.freeze_prototypes", SOME),
    )
    freeze_encoder: float = setting(
        0.0, "Share of the run in which only the projector learns: a new one first learns to read a trained encoder, "
        "whose learning rate then rises from 0 in as many steps as the warm-up has.", PART, word="freeze-encoder",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long, how much at once, and when to write something down."""

    method: str = setting("simdino", "What is minimised, and with which heads.", word="method", heading="method")
    init: str | None = setting(
        None,
        "Weights to start from: a run, an encoder file, an official .pth, timm:NAME, hf:NAME.",
        word="init",
        heading="method",
    )
    guard: int = setting(
        4, "With --init: the run stops after so many evaluations in a row that are below the given weights' (without "
        "labels: that show collapse or over-expansion); 0: it never does.", Range(0, 10**6), word="guard",
        fixed=False, heading="method",
    )  # fmt: skip
    stop_below: tuple[str, ...] | None = setting(
        None, "The run ends where it is below this mark: 'knn 40 at 2000' is k-NN under 40 % at the first evaluation "
        "from step 2000 on; or feature_rank. Several are separated by commas. never: there is none.",
        word="stop-below", fixed=False,
    )  # fmt: skip
    steps: int = setting(text="Length in steps.", range=COUNT, word="steps")
    batch: int = setting(text="Images in the global batch.", range=BATCH, word="batch", heading="optimisation")
    seed: int = setting(0, "Seed of weights, order and views.", SEEDS, word="seed")
    log_every: int = setting(10, "Steps between lines of metrics.jsonl.", COUNT, fixed=False)
    evaluate_every: int = setting(1000, "Steps between evaluations.", COUNT, word="evaluate-every", fixed=False)
    checkpoint_every: int = setting(1000, "Steps between checkpoints.", COUNT, word="checkpoint-every", fixed=False)
    keep: int = setting(3, "Newest checkpoints that stay, beside the best.", COUNT, word="keep", fixed=False)
    knn_bank: int = setting(10_000, "Images compared with while training; the whole set afterwards.", COUNT)
    knn_queries: int = setting(
        2_000, "Validation images compared while training.", COUNT, only=("data.labels", (True,))
    )


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """What must not change results beyond rounding."""

    micro_batch: int | None = setting(
        None, "Images of one process at once; the result is the same.", Range(1, 2**20),
        word="micro-batch", fixed=False,
    )  # fmt: skip
    precision: Precision = setting(
        "float32",
        "Number format that the networks compute in.  [default: the fastest that the device does well]",
        word="precision",
        fixed=False,
    )
    parallel: Literal["ddp", "fsdp"] = setting(
        "ddp", "What several processes share. ddp: the gradient; fsdp: weights and moments too, each process holding a "
        "part, for networks that do not fit one device.", word="parallel", fixed=False,
    )  # fmt: skip
    recompute: bool = setting(
        False, "Keep no activations inside of the encoder's blocks, and compute them again for the gradient: less "
        "memory, a third more work, the same result.", word="recompute", fixed=False,
    )  # fmt: skip
    compile: bool = setting(
        False, "Compile the encoder's blocks: a wait before step 1, then faster steps.", word="compile", fixed=False
    )
    device: str = setting("cpu", "Where the run is computed: auto, cpu, cuda, cuda:1, mps.", word="device", fixed=False)
    workers: int = setting(0, "Processes that read images.", Range(0, 1024), word="workers", fixed=False)
    prefetch: int = setting(
        2,
        "Batches that each worker makes before they are asked for.",
        Range(1, 1000),
        fixed=False,
        only=("speed.workers", SOME),
    )
    threads: int | None = setting(
        None, "Threads of this process; as torch has them unless given.", Range(1, 1024), word="threads", fixed=False
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    data: DataConfig
    views: ViewsConfig
    encoder: EncoderConfig
    projector: ProjectorConfig
    loss: LossConfig
    optim: OptimConfig
    run: RunConfig
    speed: SpeedConfig

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, as in config.json."""
        return dataclasses.asdict(self)
