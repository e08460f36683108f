"""The charts of a report: each number, what it is drawn beside, and what good looks like."""

from simdino.methods import METHODS
from simdino.methods.method import Curve
from simdino.methods.simdino import COLLAPSED

ALARM, WARNING = "#d64545", "#a87400"

HEALTH = (
    Curve(
        key="knn",
        title="k-NN accuracy, %",
        caption="Validation images whose nearest training images carry the right label. Good: ends above the start and "
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
        key="expansion_fraction",
        title="Expansion fraction",
        caption="Where the coding rate lies between its floor (0) and its ceiling (1). Good, with the rate in the "
        "loss: clear of both shaded zones. With prototypes nothing holds it up and it may lie low: it is collapse "
        "only if the targets tell nothing.",
        zones=((0.0, COLLAPSED, "collapse", ALARM), (0.98, 1.0, "over-expansion risk", WARNING)),
        zones_with="gradient_ratio",
        limits=(0.0, 1.0),
    ),
    Curve(
        key="rate",
        title="Coding rate",
        caption="Volume of the embeddings: of the student's where the rate is in the loss, of the teacher's, before "
        "the prototypes, where it is only logged. Good: leaves its start early, then settles.",
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
)

LOSS = Curve(
    key="loss",
    title="Total loss",
    caption="What is minimised: the terms below, weighted; rates count negatively. Good: falls, then flattens; "
    "jumps mean an unstable run.",
)

STEPS = (
    Curve(
        key="grad_norm",
        title="Gradient norm",
        caption="Before clipping. Good: steady after the warm-up; peaks mean a learning rate near its limit.",
        log=True,
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


def curves() -> list[Curve]:
    """Return all charts against the step, with those of each method, in the order of the page. A report leaves out
    those that no run has numbers for."""
    methods = METHODS.values()
    health = [curve for method in methods for curve in method.health]
    terms = [curve for method in methods for curve in method.terms]
    found = [*HEALTH, *health, LOSS, *terms, *STEPS]
    return list({curve.key: curve for curve in found}.values())


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
"""The charts against depth for CRATE encoders: what the blocks do to the tokens of an image."""
