"""What a report draws: which numbers, beside which others, and what good looks like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ALARM, WARNING = "#d64545", "#a87400"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One chart of a report: which number, beside which others, and what good looks like."""

    key: str
    title: str
    caption: str
    along: Literal["step", "layer"] = "step"  # what the number is drawn against
    references: tuple[tuple[str, str], ...] = ()  # (key, name), drawn dashed
    start: bool = False  # a line at the value of step 0
    zones: tuple[tuple[float, float, str, str], ...] = ()  # (low, high, name, colour)
    zones_with: str | None = None  # the zones are for runs that have this number
    limits: tuple[float | None, float | None] = (None, None)  # where the axis ends, whatever rounding adds
    log: bool = False  # logarithmic where values span more than a factor of thirty
    wide: bool = False


HEALTH = (
    Curve(
        key="knn",
        title="k-NN accuracy, %",
        caption="Held-out images whose nearest training images carry the right label. Good: ends above the start and "
        "raw pixels, at its best.",
        references=(("knn_pixels", "raw pixels"),),
        start=True,
        wide=True,
    ),
    Curve(
        key="alignment",
        title="Alignment",
        caption="Mean cosine between student and teacher on different views of one image. Good: rises towards 1 "
        "without a collapse, which the next chart would show.",
        limits=(None, 1.0),
    ),
    Curve(
        key="target_entropy",
        title="What the targets tell",
        caption="Solid: the mean entropy of an image's target; dashed: the entropy of the mean target, so how many "
        "prototypes are in use; both as shares of log K. What lies between them is what targets tell of the image. "
        "Good: dashed near 1, a gap that grows; lines that meet are collapse.",
        references=(("prototype_use", "prototype use"),),
    ),
    Curve(
        key="expansion_fraction",
        title="Expansion fraction",
        caption="Where the coding rate lies between its floor (0) and its ceiling (1). Good, with the rate in the "
        "loss: clear of both shaded zones. With prototypes nothing holds it up and it may lie low: it is collapse "
        "only if the targets tell nothing.",
        zones=((0.0, 0.1, "collapse", ALARM), (0.98, 1.0, "over-expansion risk", WARNING)),
        zones_with="gradient_ratio",
        limits=(0.0, 1.0),
    ),
    Curve(
        key="rate",
        title="Coding rate",
        caption="Volume of the embeddings: of the student's where the rate is in the loss, of the teacher's, before "
        "the prototypes, where it is watched only. Good: leaves its start early, then settles.",
    ),
    Curve(
        key="effective_rank",
        title="Effective rank of the embeddings",
        caption="Directions that the embeddings really use. Good: rises and stays up; a fall to a few is collapse "
        "where the rate is in the loss.",
    ),
    Curve(
        key="feature_rank",
        title="Effective rank of the features",
        caption="The same for the encoder's own features, at each evaluation. Good: ends above where it started.",
    ),
    Curve(
        key="gradient_ratio",
        title="Gradient ratio, rho",
        caption="Gradient of the rate over gradient of the alignment. Good: steady, near 1 to 3; from about 8 on, "
        "expansion swamps alignment.",
        log=True,
    ),
)

TERMS = (
    Curve(
        key="loss",
        title="Total loss",
        caption="What is minimised: the terms below, weighted; rates count negatively. Good: falls, then flattens; "
        "jumps mean an unstable run.",
    ),
    Curve(
        key="distance",
        title="Distance of views",
        caption="Half the squared distance between student and teacher on different views of one image: 1 minus the "
        "alignment. Good: falls while the rate holds.",
        limits=(0.0, None),
    ),
    Curve(
        key="rate_weighted",
        title="Weighted rate",
        caption="The coding rate as it enters the loss, times gamma. Good: rises early, then stays steady.",
    ),
    Curve(
        key="patch_distance",
        title="Distance of masked patches",
        caption="The same distance between what the student makes of a hidden patch and what the teacher sees there. "
        "Good: falls, but less far than the distance of views: a hidden patch cannot be known exactly.",
        limits=(0.0, None),
    ),
    Curve(
        key="patch_rate_weighted",
        title="Weighted rate of patches",
        caption="The coding rate of masked patches as it enters the loss. Good: rises early, then stays steady.",
    ),
    Curve(
        key="cross_entropy",
        title="Cross-entropy of views",
        caption="How well the student predicts the teacher's target from another view, in nats. Good: falls, but not "
        "to 0, where all images have the same target; at log K targets say nothing.",
    ),
    Curve(
        key="patch_cross_entropy",
        title="Cross-entropy of masked patches",
        caption="The same for hidden patches, whose targets the teacher sees. Good: falls; jumps where the targets "
        "change.",
    ),
    Curve(
        key="koleo",
        title="KoLeo",
        caption="Minus the log of the distance to the nearest image of the batch, summed over global views. Good: "
        "falls, so that images keep apart; a rise means that some come to lie on each other.",
    ),
    Curve(
        key="grad_norm",
        title="Gradient norm",
        caption="Before clipping. Good: steady after the warm-up; peaks mean a learning rate near its limit.",
        log=True,
    ),
)

SCHEDULES = (
    Curve(
        key="lr",
        title="Learning rate",
        caption="Follows the step alone. Good: a warm-up, then a smooth decay.",
        limits=(0.0, None),
    ),
    Curve(
        key="momentum",
        title="Teacher momentum",
        caption="How slowly the teacher follows the student. Good: rises smoothly towards 1.",
    ),
)

CURVES = (*HEALTH, *TERMS, *SCHEDULES)
"""Against the step, in the order of the page; a report leaves out those that no run has numbers for."""

LAYERS = (
    Curve(
        key="after",
        title="Rate in the subspaces, Rᶜ",
        caption="Coding rate of an image's tokens in the subspaces of each block, summed over them: dashed before its "
        "attention, solid after it. Good: attention lowers it, which is compression, and it falls with depth.",
        along="layer",
        references=(("before", "before"),),
    ),
    Curve(
        key="nonzero",
        title="Share of entries that are not 0",
        caption="Of the tokens that leave each block, which is a sparse code. Good: falls with depth.",
        along="layer",
        limits=(0.0, 1.0),
    ),
    Curve(
        key="rate",
        title="Coding rate of the tokens, R",
        caption="Volume of all tokens of an image after each block. Good: stays up while Rᶜ falls.",
        along="layer",
    ),
)
"""Against the depth, of CRATE encoders: what the blocks do to the tokens of an image."""
