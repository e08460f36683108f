"""Is a run healthy? A verdict in words from what was logged, without labels.

Each method knows how it fails (`Method.diagnose`). With labels, k-NN tells more: it may turn down, and it may end under
where it began, as when trained weights are wrecked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor

from simdino.data.survey import ALIKE
from simdino.features.spectra import rank_me
from simdino.methods.method import Method

FALLEN = 2.0  # points of k-NN under its best that count as turning down


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The judgement of a run, and the sentence that gives its reason."""

    status: Literal[
        "healthy", "collapse", "over-expansion", "worse than at the start", "stopped by the guard",
        "stopped below a mark", "too early",
    ]  # fmt: skip
    sentence: str

    @property
    def alarm(self) -> bool:
        """Whether a person should do something."""
        return self.status not in ("healthy", "too early")


def judge(rows: Sequence[dict[str, Any]], method: Method) -> Verdict:
    """Return the verdict on a run from the lines of its metrics.jsonl, on the medians of the last tenth of the training
    lines (three at least) and the latest evaluation."""
    training = [row for row in rows if row.get("loss") is not None]
    if len(training) < 3:
        return Verdict(status="too early", sentence="Too early to tell: fewer than three lines logged.")
    now = latest(rows, "feature_rank") | recent(training)
    scores = [row["knn"] for row in rows if row.get("knn") is not None]
    best = max(scores, default=0.0)
    turned = len(scores) > 2 and scores[-1] < best - FALLEN
    numbers, found = ", ".join(method.numbers(now)), method.diagnose(now)
    if found is not None and found.status == "collapse":
        why = same_images(latest(rows, "image_spread").get("image_spread")) or found.sentence
        return Verdict(status="collapse", sentence=f"Collapse ({numbers}): {why}")
    if found is not None:
        fallen = f" k-NN has fallen {best - scores[-1]:.1f} points from its best." if turned else ""
        sentence = f"{found.status.capitalize()} ({numbers}): {found.sentence}{fallen}"
        return Verdict(status=found.status, sentence=sentence)
    if len(scores) > 1 and scores[-1] < scores[0] - margin(rows, scores[0]):
        return Verdict(
            status="worse than at the start",
            sentence=f"Worse than at the start: k-NN has gone from {scores[0]:.1f} to {scores[-1]:.1f} % ({numbers}). "
            f"Lower --lr (after --init also --layer-decay), or give more steps; then other --local-views or "
            f"--image-size.",
        )
    note = f" k-NN is {best - scores[-1]:.1f} points under its best: see encoder-best.safetensors." if turned else ""
    return Verdict(status="healthy", sentence=f"Healthy: {numbers}.{note}")


def recent(training: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the medians of what all of the last tenth of the training lines have."""
    lines = training[-max(3, len(training) // 10) :]
    return {name: median(row[name] for row in lines) for name in lines[-1] if all(name in row for row in lines)}


def latest(rows: Sequence[dict[str, Any]], name: str) -> dict[str, float]:
    """Return the last value of a number by its name; nothing where there is none."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return {name: values[-1]} if values else {}


def margin(rows: Sequence[dict[str, Any]], score: float) -> float:
    """Return how many points k-NN must lose to be worse: FALLEN, or two standard errors where there are few queries."""
    queries = next((row["queries"] for row in rows if row.get("queries")), None)
    return max(FALLEN, 2 * standard_error(score, queries))


def standard_error(score: float, queries: int | None) -> float:
    """Return the standard error, in points, of a share of so many images (10,000 unless known) that is right."""
    return (score * (100 - score) / (queries or 10_000)) ** 0.5


def same_images(spread: float | None) -> str | None:
    """Return the cause of a collapse that is none of the training: images that differ by less than a level. spread: see
    `data.survey.Spread`."""
    if spread is None or spread >= ALIKE:
        return None
    return (
        f"the images themselves are alike (where they differ most, by {255 * spread:.2f} of 255 levels), so their "
        f"features are. `simdino inspect DATA --sheet FILE` shows what is read; give other images."
    )


def feature_rank(vectors: Tensor) -> float:
    """Return RankMe (Garrido et al. 2023) of features [N, D], on the first 4,096: exp of the entropy of the normalised
    singular values, between 1 and min(N, D)."""
    return rank_me(torch.linalg.svdvals(vectors[:: -(-len(vectors) // 4096)].double()))
