"""Linear probes: heads on frozen features of random crops, the protocols of DINO, DINOv2 and SimDINOv2, see
`probe.RECIPES`.

SGD with momentum 0.9 and no weight decay on the cross-entropy of random crops and flips; the learning rate falls to 0
along a cosine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from simdino.config import Precision
from simdino.evaluate.layouts import LABELLED, Data, Labelled
from simdino.evaluate.protocol import as_protocol
from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.keywords import ABOVE_0, Batch, ClassifierFile, Option, Seed, Steps, Workers
from simdino.result import Result

if TYPE_CHECKING:
    from simdino.evaluate.classification.classifier import Classifier
    from simdino.evaluate.classification.probe import HeadScore
    from simdino.models.encoder import Encoder

Heads = Literal["dino", "dinov2", "simdinov2"]


@dataclass(frozen=True, kw_only=True)
class LinearResult(Result):
    """What linear heads reach. Accuracies in percent; `top1` and `top5` are the best head's on `reported_on`."""

    protocol: Heads
    top1: float
    top5: float
    best: HeadScore
    heads: list[HeadScore]
    chosen_on: str
    reported_on: str
    train_images: int
    validation_images: int
    test_images: int | None
    batch: int
    steps: int
    broken: dict[str, str]
    classifier: Classifier = field(repr=False, compare=False)

    def __str__(self) -> str:
        chosen = f"best of {len(self.heads)} heads: {self.best}" if len(self.heads) > 1 else str(self.best)
        same = self.reported_on == self.chosen_on and len(self.heads) > 1
        return (
            f"linear, {self.protocol}, {self.steps} steps of {self.batch} images: {self.top1:.2f} % (top-5 "
            f"{self.top5:.2f} %) on {self.reported_on}; {chosen}{', chosen on these images' if same else ''}"
        )


@as_protocol(LABELLED, example="linear runs/photos --data photos/ --out classifier.safetensors")
def linear(
    encoder: Encoder, data: Labelled, *,
    protocol: Annotated[Heads, Option("dino: 1 head on 4 blocks; dinov2: a grid of 52; simdinov2: of 16.")] = "dinov2",
    avgpool: Annotated[bool, Option("dino: the last block's class token and mean patch instead.")] = False,
    epochs: Annotated[float | None, Option("Training epochs.", ABOVE_0, "100 for dino, 10 for grids")] = None,
    steps: Steps = None,
    batch: Batch = None,
    test: Annotated[Data | None, Option("Further labelled images, on which the chosen head is reported.")] = None,
    seed: Seed = 0, out: ClassifierFile = None, workers: Workers = 0,
    precision: Precision | None = None, log: Log = to_stderr, progress: Progress = no_bar,
) -> LinearResult:  # fmt: skip
    """Linear heads on frozen features of random crops, scored on validation images.

    An encoder without so many blocks, or without patches, is read as far as it goes, and a line tells so. The best
    head of a grid is chosen on the validation images and reported on the same ones, as DINOv2 does: a little too well.
    test: images of the same classes. precision: arithmetic of the encoder; heads are float32. The encoder is left in
    eval mode.

    Raises InputError where `avgpool` is asked of another protocol or of an encoder without patches."""
    from simdino.evaluate.classification.classifier import check_place, save_classifier
    from simdino.evaluate.classification.probe import RECIPES, Probe, layers_of
    from simdino.evaluate.classification.training import Length, batches, score
    from simdino.evaluate.labels import check_classes

    check_place(out)
    recipe = RECIPES[protocol]
    layers = layers_of(encoder, protocol, avgpool=avgpool, log=log)
    train, validation = data.both(task="linear", log=log)
    tested = None if test is None else Labelled(test).all(task="--test")
    if tested is not None:
        check_classes(tested, train.classes, task="--test", name=f"the images of {tested.name}")
    length = Length.of(len(train), epochs=epochs, steps=steps, batch=batch, usual=recipe.epochs)
    probe = Probe(encoder, layers, recipe, classes=len(train.classes), length=length, seed=seed, precision=precision)

    broken: dict[str, str] = {}
    stream = batches(
        train, encoder, length, seed=seed, workers=workers, broken=broken, interpolation=recipe.interpolation
    )
    for step, (images, labels, _) in enumerate(progress(stream, f"linear heads on {train.name}", length.steps)):
        probe.step(images, labels, step)
    heads = probe.heads(*score(probe.logits, validation, encoder, workers=workers, progress=progress, broken=broken))
    number = max(range(len(heads)), key=lambda i: heads[i].top1)
    best, classifier = heads[number], probe.classifier(number, train.classes)
    top1, top5 = best.top1, best.top5
    if tested is not None:
        (top1,), (top5,) = score(classifier.each, tested, encoder, workers=workers, progress=progress, broken=broken)
    save_classifier(classifier, out)
    return LinearResult(
        protocol=protocol, top1=top1, top5=top5, best=best, heads=heads,
        chosen_on="validation images",
        reported_on="validation images" if tested is None else f"images of {tested.name}",
        train_images=len(train), validation_images=len(validation), test_images=None if tested is None else len(tested),
        batch=length.batch, steps=length.steps, broken=broken, classifier=classifier,
    )  # fmt: skip
