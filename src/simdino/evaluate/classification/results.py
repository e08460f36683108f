"""What the classification protocols find, and the constants that their signatures and their mathematics share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from simdino.result import Result
from simdino.text import readable

if TYPE_CHECKING:
    from torch import Tensor


TEMPERATURE = 0.07


@dataclass(frozen=True, kw_only=True)
class KnnResult(Result):
    """Accuracies in percent."""

    top1: float
    top5: float
    k: int
    bank: int  # images compared with
    queries: int  # images classified

    def __str__(self) -> str:
        return (
            f"{self.k}-NN {self.top1:.2f} % (top-5 {self.top5:.2f} %), {self.queries} queries in a bank of {self.bank}"
        )


GRID = 45

DRAWS = 5


@dataclass(frozen=True, kw_only=True)
class LogisticFit(Result):
    """Accuracies in percent on the validation images, of the fit on all training images."""

    top1: float
    top5: float
    C: float
    chosen: float  # accuracy of that C on the images it was chosen on, of a fit without them
    limited: int  # fits, of the grid and the last one, that the limit of 1,000 iterations ended
    train_images: int
    validation_images: int
    weight: Tensor = field(repr=False, compare=False)  # float32 [K, D]
    bias: Tensor = field(repr=False, compare=False)  # float32 [K]
    classes: tuple[str, ...]  # K names, of those that training images have

    def __str__(self) -> str:
        return (
            f"logistic regression: {self.top1:.2f} % (top-5 {self.top5:.2f} %) of {self.validation_images} validation "
            f"images, C {self.C:.3g} chosen on a tenth of {self.train_images} training images"
        )


@dataclass(frozen=True, kw_only=True)
class FewLabels(Result):
    """Logistic regression on a few of the training images. Accuracies in percent, on all validation images."""

    labels: str  # how many: "5 per class" or "10 %"
    images: int
    top1: float  # mean over the draws
    interval: float | None  # half the width of its 95 % interval by Student's t; None for a single draw
    draws: list[float]

    def __str__(self) -> str:
        spread = "" if self.interval is None else f" ± {self.interval:.2f}"
        return f"{self.labels}: {self.top1:.2f}{spread} %, {self.images} images, {len(self.draws)} draws"


Heads = Literal["dino", "dinov2", "simdinov2"]


@dataclass(frozen=True, kw_only=True)
class HeadScore:
    """One head of a grid. Accuracies in percent, on the validation images."""

    blocks: int  # whose class tokens it reads
    avgpool: bool  # and the mean patch
    lr: float  # its own at the start: the protocol's times batch / 256
    top1: float
    top5: float

    def __str__(self) -> str:
        read = "last block" if self.blocks == 1 else f"last {self.blocks} blocks"
        return f"{read}{' and mean patch' if self.avgpool else ''}, lr {self.lr:.3g}"


TOP = 5  # classes of an image that are told


@dataclass(frozen=True, kw_only=True)
class Predictions(Result):
    """The likeliest classes of the readable images of a source, in its order."""

    names: list[str]
    classes: tuple[str, ...]
    ranked: Tensor  # int64 [N, k], positions in `classes`, the likeliest first; k is 5, or all of fewer classes
    probabilities: Tensor  # float32 [N, k], of a softmax over all classes
    broken: dict[str, str]  # names of the images left out, and why
    out: str | None = None  # where they were written to

    def __len__(self) -> int:
        return len(self.names)

    def counts(self) -> dict[str, int]:
        """How many images each class is the likeliest of."""
        first = self.ranked[:, 0].tolist()
        return {name: first.count(i) for i, name in enumerate(self.classes)}

    def __str__(self) -> str:
        found = sorted(self.counts().items(), key=lambda pair: -pair[1])
        said = f"{len(self)} images: " + ", ".join(f"{count} {readable(name)}" for name, count in found[:TOP] if count)
        return f"{said}; written to {self.out}" if self.out else said

    def as_dict(self) -> dict[str, Any]:
        """Plain values: how many images of each class, and what was left out."""
        counted = {"images": len(self), "predicted": self.counts(), "broken": self.broken}
        return {"out": self.out, **counted} if self.out else counted
