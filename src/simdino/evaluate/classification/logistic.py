"""Logistic regression on frozen class tokens, with all labels and with few: the protocol of DINOv2 and DINOv3, see
`regression`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from simdino.evaluate.layouts import LABELLED, Labelled
from simdino.evaluate.protocol import as_protocol
from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.keywords import AT_LEAST_1, ClassifierFile, Option, Seed, Workers
from simdino.result import Result
from simdino.settings import Range

if TYPE_CHECKING:
    from simdino.evaluate.classification.classifier import Classifier
    from simdino.evaluate.classification.regression import FewLabels, LogisticFit
    from simdino.models.encoder import Encoder

DRAWS = 5
MANY = Range(at_least=1, at_most=10_000)


@dataclass(frozen=True, kw_only=True)
class LogisticResult(Result):
    """The fit with all labels, and those with few."""

    fit: LogisticFit
    few: list[FewLabels]
    broken: dict[str, str]  # images left out, and why
    classifier: Classifier = field(repr=False, compare=False)  # of the fit with all labels

    @property
    def top1(self) -> float:
        """Accuracy in percent with all labels."""
        return self.fit.top1

    def __str__(self) -> str:
        return "\n".join(map(str, [self.fit, *self.few]))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, without the weights."""
        return {"all": self.fit.as_dict(), "few": [one.as_dict() for one in self.few]}


@as_protocol(LABELLED, example="logistic runs/photos --data photos/ --shots 1,5 --percent 1,10")
def logistic(
    encoder: Encoder, data: Labelled, *,
    grid: Annotated[int, Option("Strengths of the penalty that are tried, from 1e-6 to 1e5.", MANY)] = 45,
    shots: Annotated[tuple[int, ...], Option("Images of each class, such as 1,2,5,10.", AT_LEAST_1)] = (),
    percent: Annotated[
        tuple[float, ...], Option("Shares of the training images, such as 1,10.", Range(above=0, at_most=100))
    ] = (),
    draws: Annotated[int, Option("Draws of each of --shots and --percent.", MANY)] = DRAWS,
    seed: Seed = 0, out: ClassifierFile = None, workers: Workers = 0,
    log: Log = to_stderr, progress: Progress = no_bar,
) -> LogisticResult:  # fmt: skip
    """Logistic regression on class tokens, with all labels and with few."""
    from simdino.evaluate.classification.classifier import Classifier, check_place, save_classifier
    from simdino.evaluate.classification.regression import few_labels, fit_logistic
    from simdino.features.extract import extract
    from simdino.features.readout import Layers

    check_place(out)
    both = data.both(task="logistic", log=log)
    bank, query = (extract(encoder, source, workers=workers, progress=progress) for source in both)
    shares = [share / 100 for share in percent]
    few: list[FewLabels] = []
    if draws != DRAWS and not (shots or shares):
        log("--draws has no effect without --shots or --percent: all labels are used once")
    if shots or shares:  # first: too many shots are known at once
        few = few_labels(
            bank, query, shots=shots, shares=shares, draws=draws, grid=grid, seed=seed, log=log, progress=progress
        )
    fit = fit_logistic(bank, query, grid=grid, seed=seed, progress=progress)
    classifier = Classifier(encoder=encoder, layers=Layers(), classes=fit.classes, weight=fit.weight, bias=fit.bias)
    save_classifier(classifier, out)
    return LogisticResult(fit=fit, few=few, broken=bank.broken | query.broken, classifier=classifier)
