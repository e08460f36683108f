"""Fine-tuning: the whole encoder and a linear head, trained on labels.

The recipe that BEiT and MAE made usual: AdamW, learning rates that fall by layer towards the patch embedding,
warm-up and cosine, label smoothing, drop path. Random crops (8 % of the area and up) and flips, cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from simdino.config import EncoderConfig, OptimConfig, Precision
from simdino.errors import InputError
from simdino.evaluate.layouts import LABELLED, Labelled
from simdino.evaluate.protocol import as_protocol
from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.keywords import ABOVE_0, Batch, ClassifierFile, Option, Seed, Steps, Workers, range_of
from simdino.result import Result
from simdino.settings import Range

if TYPE_CHECKING:
    from simdino.evaluate.classification.classifier import Classifier
    from simdino.models.encoder import Encoder

EPOCHS = 30
BELOW_1 = Range(at_least=0, below=1)
LR, LAYER_DECAY, WEIGHT_DECAY = (range_of(OptimConfig, name) for name in ("lr", "layer_decay", "weight_decay"))


@dataclass(frozen=True, kw_only=True)
class FinetuneResult(Result):
    """What a fine-tuned encoder reaches on the validation images after the last step. Accuracies in percent."""

    top1: float
    top5: float
    loss: float  # the smoothed cross-entropy of the last batch
    train_images: int
    validation_images: int
    batch: int
    steps: int
    lr: float  # of the head at its peak
    layer_decay: float
    drop_path: float
    broken: dict[str, str]
    classifier: Classifier = field(repr=False, compare=False)

    def __str__(self) -> str:
        return (
            f"fine-tuned: {self.top1:.2f} % (top-5 {self.top5:.2f} %) of {self.validation_images} validation images "
            f"after {self.steps} steps of {self.batch} of the {self.train_images} training images"
        )


@as_protocol(LABELLED, example="finetune runs/photos --data photos/ --out classifier.safetensors")
def finetune(
    encoder: Encoder, data: Labelled, *,
    epochs: Annotated[float | None, Option("Training epochs.", ABOVE_0, str(EPOCHS))] = None,
    steps: Steps = None,
    batch: Batch = None,
    lr: Annotated[float, Option("Of the head at its peak, times batch / 256.", LR)] = 1e-3,
    layer_decay: Annotated[float, Option("Of the learning rate, by layer.", LAYER_DECAY)] = 0.75,
    weight_decay: Annotated[float, Option("Of matrices and tokens.", WEIGHT_DECAY)] = 0.05,
    label_smoothing: Annotated[float, Option("Share of a label given to all classes.", BELOW_1)] = 0.1,
    drop_path: Annotated[
        float, Option("Of the last block, from 0 at the first.", range_of(EncoderConfig, "drop_path"))
    ] = 0.1,
    seed: Seed = 0, out: ClassifierFile = None, workers: Workers = 0,
    warmup: float = 0.1, precision: Precision | None = None, log: Log = to_stderr, progress: Progress = no_bar,
) -> FinetuneResult:  # fmt: skip
    """Train the whole encoder and a head on labels, scored on validation images.

    A copy of the encoder is trained; the last step's weights are scored, none are chosen. warmup: share of the steps
    until the learning rate's peak. precision: the fastest on the encoder's device unless given. Models of timm have no
    drop path.

    Raises InputError when the loss is no longer finite."""
    import copy

    from simdino.device import fastest
    from simdino.evaluate.classification import training
    from simdino.evaluate.classification.classifier import Classifier, check_place, save_classifier
    from simdino.features.readout import Layers

    check_place(out)
    if warmup not in BELOW_1:
        raise InputError(f"warmup {warmup} must be {BELOW_1}")
    train, validation = data.both(task="finetune", log=log)
    length = training.Length.of(len(train), epochs=epochs, steps=steps, batch=batch, usual=EPOCHS)
    tuned = copy.deepcopy(encoder)
    model = training.EncoderWithHead(tuned, classes=len(train.classes), seed=seed).to(encoder.device).train()
    drop_path = training.set_drop_path(tuned, drop_path, log=log)
    lr *= length.batch / 256
    broken: dict[str, str] = {}
    stream = training.batches(train, tuned, length, seed=seed, workers=workers, broken=broken)
    loss = training.fine_tune(
        model, progress(stream, f"fine-tuning on {train.name}", length.steps), length, lr=lr, layer_decay=layer_decay,
        weight_decay=weight_decay, warmup=round(warmup * length.steps), label_smoothing=label_smoothing,
        precision=precision or fastest(str(encoder.device)),
    )  # fmt: skip
    classifier = Classifier(
        encoder=tuned.eval(), layers=Layers(), classes=train.classes,
        weight=model.head.weight.detach(), bias=model.head.bias.detach(),
    )  # fmt: skip
    scored = training.score(classifier.each, validation, tuned, workers=workers, progress=progress, broken=broken)
    (top1,), (top5,) = scored
    save_classifier(classifier, out)
    return FinetuneResult(
        top1=top1, top5=top5, loss=loss, train_images=len(train), validation_images=len(validation),
        batch=length.batch, steps=length.steps, lr=lr, layer_decay=layer_decay, drop_path=drop_path,
        broken=broken, classifier=classifier,
    )  # fmt: skip
