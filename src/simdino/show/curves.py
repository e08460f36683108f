"""What a report draws: which numbers, beside which others, and what good looks like."""

from __future__ import annotations

from dataclasses import dataclass

ALARM, WARNING = "#d64545", "#a87400"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One chart of a report: which number, beside which others, and what good looks like."""

    key: str
    title: str
    caption: str
    references: tuple[tuple[str, str], ...] = ()  # (key, name), drawn dashed
    start: str | None = None  # the name of a line at the value of step 0
    zones: tuple[tuple[float, float, str, str], ...] = ()  # (low, high, name, colour)
    limits: tuple[float | None, float | None] = (None, None)  # where the axis ends, whatever rounding adds
    log: bool = False  # logarithmic where values span more than a factor of thirty
    wide: bool = False


CURVES = (
    Curve(
        key="knn",
        title="k-NN accuracy, %",
        caption="Held-out images whose nearest training images carry the right label. Good: ends above the start and "
        "raw pixels, at its best.",
        references=(("knn_pixels", "raw pixels"),),
        start="random init",
        wide=True,
    ),
    Curve(
        key="alignment",
        title="Alignment",
        caption="Mean cosine between student and teacher on different views of one image. Good: rises towards 1 while "
        "the expansion fraction stays up.",
        limits=(None, 1.0),
    ),
    Curve(
        key="expansion_fraction",
        title="Expansion fraction",
        caption="Where the coding rate lies between its floor (0) and its ceiling (1). Good: stays clear of both "
        "shaded zones.",
        zones=((0.0, 0.1, "collapse", ALARM), (0.98, 1.0, "over-expansion risk", WARNING)),
        limits=(0.0, 1.0),
    ),
    Curve(
        key="rate",
        title="Coding rate",
        caption="Volume of the embeddings. Floor: all images alike; ceiling: all directions used equally. Good: leaves "
        "the floor early and settles between the two.",
        references=(("rate_ceiling", "ceiling"), ("rate_floor", "floor")),
    ),
    Curve(
        key="rate_weighted",
        title="Weighted rate",
        caption="The coding rate as it enters the loss, times gamma. Good: rises early, then stays steady.",
    ),
    Curve(
        key="effective_rank",
        title="Effective rank of the embeddings",
        caption="Directions that the embeddings really use. Good: rises and stays up; a fall to a few is collapse.",
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
    Curve(
        key="loss",
        title="Total loss",
        caption="Alignment loss minus weighted rate. Good: falls, then flattens; jumps mean an unstable run.",
    ),
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
