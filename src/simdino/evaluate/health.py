"""Is a run healthy? A verdict in words from what was logged, without labels.

Two ways to fail. Collapse: the views of all images become one vector, the rate falls to its floor. Over-expansion:
the rate sits at its ceiling because the features of an image's own views are pushed apart with the rest; alignment
falls and, with labels, k-NN turns down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor

COLLAPSED = 0.1  # expansion fraction below which a run has collapsed
EXPANDED = 0.6  # expansion fraction above which the rate has won ...
UNALIGNED = 0.3  # ... if the mean cosine between views is below this
FALLEN = 2.0  # points of k-NN under its best that count as turning down


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the numbers say."""

    status: Literal["healthy", "collapse", "over-expansion", "too early"]
    sentence: str

    @property
    def alarm(self) -> bool:
        """Whether a person should do something."""
        return self.status in ("collapse", "over-expansion")


def judge(rows: Sequence[dict[str, Any]]) -> Verdict:
    """The verdict on a run from the lines of its metrics.jsonl, on the medians of the last tenth of the training
    lines (three at least)."""
    training = [row for row in rows if "expansion_fraction" in row]
    if len(training) < 3:
        return Verdict(status="too early", sentence="Too early to tell: fewer than three lines logged.")
    recent = training[-max(3, len(training) // 10) :]
    fraction, alignment, rank, ratio = (
        median(row[name] for row in recent)
        for name in ("expansion_fraction", "alignment", "effective_rank", "gradient_ratio")
    )
    scores = [row["knn"] for row in rows if row.get("knn") is not None]
    numbers = f"expansion {fraction:.2f} of its range, alignment {alignment:.2f}, effective rank {rank:.0f}"
    if fraction < COLLAPSED:
        return Verdict(
            status="collapse",
            sentence=f"Collapse ({numbers}): all images get nearly the same feature, because the rate is too weak "
            f"against alignment. Raise --rho (or --gamma), or lower --eps; then a lower --lr.",
        )
    turned = len(scores) > 2 and scores[-1] < max(scores) - FALLEN
    if fraction > EXPANDED and alignment < UNALIGNED:
        fallen = f" k-NN has fallen {max(scores) - scores[-1]:.1f} points from its best." if turned else ""
        return Verdict(
            status="over-expansion",
            sentence=f"Over-expansion ({numbers}, rate gradient {ratio:.1f} times alignment's): views of one image "
            f"are pushed apart with the rest.{fallen} Lower --rho (or --gamma); then fewer --local-views.",
        )
    note = (
        f" k-NN is {max(scores) - scores[-1]:.1f} points under its best: see encoder-best.safetensors."
        if turned
        else ""
    )
    return Verdict(status="healthy", sentence=f"Healthy: {numbers}.{note}")


def feature_rank(vectors: Tensor) -> float:
    """RankMe (Garrido et al. 2023) of features [N, D], on the first 4,096: exp of the entropy of the normalised
    singular values, between 1 and min(N, D)."""
    values = torch.linalg.svdvals(vectors[:: -(-len(vectors) // 4096)].double())
    p = values / values.sum() + 1e-7
    return float(torch.special.entr(p).sum().exp())
