"""Is a run healthy? A verdict in words from what was logged, without labels.

Two ways to fail, and with labels a third. Collapse: the views of all images become one vector and the rate falls to
its floor, or with prototypes, the targets of all images become one distribution or their features one. Over-expansion,
of losses with a rate: it sits at its ceiling because the features of an image's own views are pushed apart with the
rest; alignment falls and, with labels, k-NN turns down. And k-NN may end under where it began, as when trained weights
are wrecked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor

from simdino.data.survey import ALIKE
from simdino.features.spectra import rank_me

COLLAPSED = 0.1  # expansion fraction below which a run with a rate has collapsed
UNINFORMED = 0.01  # what the targets tell of the image, as a share of log K, below which one with prototypes has
ALONE = 1.5  # effective rank of the features below which one with prototypes has: all images have one feature
EXPANDED = 0.6  # expansion fraction above which the rate has won ...
UNALIGNED = 0.3  # ... if the mean cosine between views is below this
FALLEN = 2.0  # points of k-NN under its best that count as turning down


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the numbers say."""

    status: Literal["healthy", "collapse", "over-expansion", "worse than at the start", "too early"]
    sentence: str

    @property
    def alarm(self) -> bool:
        """Whether a person should do something."""
        return self.status in ("collapse", "over-expansion", "worse than at the start")


def judge(rows: Sequence[dict[str, Any]]) -> Verdict:
    """The verdict on a run from the lines of its metrics.jsonl, on the medians of the last tenth of the training
    lines (three at least)."""
    training = [row for row in rows if "expansion_fraction" in row]
    if len(training) < 3:
        return Verdict(status="too early", sentence="Too early to tell: fewer than three lines logged.")
    recent = training[-max(3, len(training) // 10) :]
    now = {name: median(row[name] for row in recent) for name in recent[-1] if all(name in row for row in recent)}
    fraction, alignment, rank = (now[name] for name in ("expansion_fraction", "alignment", "effective_rank"))
    scores = [row["knn"] for row in rows if row.get("knn") is not None]
    numbers = f"expansion {fraction:.2f} of its range, alignment {alignment:.2f}, effective rank {rank:.0f}"
    collapsed = fraction < COLLAPSED
    if "prototype_use" in now:
        information = now["prototype_use"] - now["target_entropy"]
        numbers = f"targets tell {100 * information:.1f} % of what they could, {numbers}"
        collapsed = information < UNINFORMED or rank < ALONE
    if collapsed:
        spread = next((row["image_spread"] for row in rows if row.get("image_spread") is not None), None)
        why = same_images(spread) or why_collapsed(now)
        return Verdict(status="collapse", sentence=f"Collapse ({numbers}): {why}")
    turned = len(scores) > 2 and scores[-1] < max(scores) - FALLEN
    if fraction > EXPANDED and alignment < UNALIGNED and "gradient_ratio" in now:
        fallen = f" k-NN has fallen {max(scores) - scores[-1]:.1f} points from its best." if turned else ""
        return Verdict(
            status="over-expansion",
            sentence=f"Over-expansion ({numbers}, rate gradient {now['gradient_ratio']:.1f} times alignment's): views "
            f"of one image are pushed apart with the rest.{fallen} Lower --rho (or --gamma); then fewer --local-views.",
        )
    if len(scores) > 1 and scores[-1] < scores[0] - margin(rows, scores[0]):
        return Verdict(
            status="worse than at the start",
            sentence=f"Worse than at the start: k-NN has gone from {scores[0]:.1f} to {scores[-1]:.1f} % ({numbers}). "
            f"Lower --lr (after --init also --layer-decay), or give more steps; then other --local-views or "
            f"--image-size.",
        )
    note = (
        f" k-NN is {max(scores) - scores[-1]:.1f} points under its best: see encoder-best.safetensors."
        if turned
        else ""
    )
    return Verdict(status="healthy", sentence=f"Healthy: {numbers}.{note}")


def margin(rows: Sequence[dict[str, Any]], score: float) -> float:
    """How many points k-NN must lose to be worse: FALLEN, or two standard errors where there are few queries."""
    queries = next((row["queries"] for row in rows if row.get("queries")), 10_000)
    return max(FALLEN, 2 * (score * (100 - score) / queries) ** 0.5)


def same_images(spread: float | None) -> str | None:
    """The cause of a collapse that is none of the training: images that differ by less than a level. spread: see
    `data.survey.Spread`."""
    if spread is None or spread >= ALIKE:
        return None
    return (
        f"the images themselves are alike (where they differ most, by {255 * spread:.2f} of 255 levels), so their "
        f"features are. `simdino inspect DATA --sheet FILE` shows what is read; give other images."
    )


def why_collapsed(now: dict[str, float]) -> str:
    """The likely cause of a collapse and the next thing to try, from a run's latest numbers.

    Losses with a rate collapse where it is too weak; those with prototypes where the targets of all images become one
    prototype (their mean has no entropy) or all prototypes alike (every target has all of it)."""
    if "gradient_ratio" in now:
        return (
            "all images get nearly the same feature, because the rate is too weak against alignment. Raise --rho (or "
            "--gamma), or lower --eps; then a lower --lr."
        )
    if now["prototype_use"] < 0.1:
        return (
            "all images have the same prototype for their target. Raise --teacher-temperature, or balance the targets "
            "with --centering sinkhorn; then a lower --lr, or --teacher ema if it was none."
        )
    return (
        "all images get nearly the same feature and the targets say next to nothing. Lower --teacher-temperature, "
        "raise --momentum; then a lower --lr, or --teacher ema if it was none."
    )


def feature_rank(vectors: Tensor) -> float:
    """RankMe (Garrido et al. 2023) of features [N, D], on the first 4,096: exp of the entropy of the normalised
    singular values, between 1 and min(N, D)."""
    return rank_me(torch.linalg.svdvals(vectors[:: -(-len(vectors) // 4096)].double()))
