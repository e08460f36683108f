"""An encoder with a linear head, and the file that it is kept in."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from simdino.config import Precision
from simdino.contracts import InputError
from simdino.features.readout import Layers, Reader
from simdino.files import check_file
from simdino.models.encoder import Encoder
from simdino.models.official import read_tensors
from simdino.models.weights import CLASSIFIER, HEAD, KEY, built, described, read_own, write
from simdino.settings import Range, from_json, problems, setting
from simdino.text import encodable, readable

WEIGHT, BIAS = HEAD + "weight", HEAD + "bias"


class Classifier(nn.Module):
    """An encoder and a linear head on its tokens.

    encoder: prepared images -> Tokens. layers: what the head reads. classes: K names. weight, bias: float32
    [K, width] and [K]. Called with images [N, C, H, W] as the encoder's `preprocess` wants them, it gives logits
    float32 [N, K]; no gradient flows.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self, *, encoder: Encoder, layers: Layers, classes: tuple[str, ...], weight: Tensor, bias: Tensor
    ) -> None:
        super().__init__()
        self.encoder, self.layers, self.classes = encoder, layers, classes
        device = encoder.device
        self.register_buffer("weight", weight.float().to(device))
        self.register_buffer("bias", bias.float().to(device))

    def forward(self, images: Tensor, *, precision: Precision | None = None) -> Tensor:
        """See above. precision: arithmetic of the encoder; the fastest on its device unless given."""
        (features,) = Reader(self.encoder, [self.layers], precision=precision)(images)
        return torch.addmm(self.bias, features, self.weight.T)

    def each(self, images: Tensor) -> Tensor:
        """[N, 1, K]: the only one of its kind."""
        return self(images)[:, None]


def save_classifier(classifier: Classifier, path: str | Path | None) -> None:
    """Write head, class names, encoder and preprocessing into one safetensors file, aside first and then renamed; with
    no path, nothing. `load_encoder` reads the encoder of such a file.

    Raises InputError where it cannot be written."""
    if path is None:
        return
    path = Path(path)
    about = {
        "classes": list(map(readable, classifier.classes)),
        "blocks": classifier.layers.blocks,
        "avgpool": classifier.layers.avgpool,
    }
    tensors = {**classifier.encoder.state_dict(), WEIGHT: classifier.weight, BIAS: classifier.bias}
    write(tensors, {CLASSIFIER: about, KEY: described(classifier.encoder)}, path, option="--out")


def check_place(path: Path | None) -> None:
    """Raise InputError for a file that no classifier can be written to: before the training, not after it."""
    if path is None:
        return
    if path.suffix != ".safetensors":
        raise InputError(f"--out {path} must end in .safetensors")
    if encodable(str(path)) != str(path):
        raise InputError(f"--out {path} has bytes that are no UTF-8, which safetensors refuses: give another name")
    check_file(path, option="--out")


@dataclass(frozen=True, kw_only=True)
class Head:
    """What the metadata of a classifier's file say of its head."""

    classes: tuple[str, ...] = setting(text="Names, in the order of the rows of its weight.")
    blocks: int = setting(text="Last blocks whose class tokens it reads.", range=Range(at_least=1, at_most=1000))
    avgpool: bool = setting(text="Whether it reads the mean patch of the last block too.")


def read_head(text: str, path: Path) -> Head:
    """The head that JSON describes. Raises InputError that names each field that cannot be."""
    try:
        head = from_json(Head, json.loads(text), where="head")
        if found := problems(head, named=lambda field: f"head.{field.name}"):
            raise InputError("; ".join(found))
    except (ValueError, RecursionError) as error:
        raise InputError(f"the metadata {CLASSIFIER!r} of {path} cannot be used: {error}") from None
    return head


def load_classifier(path: str | Path) -> Classifier:
    """The classifier in a file that `save_classifier` wrote, on the CPU and in eval mode.

    Raises InputError for any other file, and names an encoder's."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no classifier at {path}: give a file that `simdino evaluate ... --out` wrote")
    about, tensors = read_tensors(path)
    if CLASSIFIER not in about or KEY not in about:
        what = "an encoder without a head" if KEY in about else "no file of ours"
        raise InputError(
            f"{path} is {what}: give a classifier, which `simdino evaluate linear ENCODER --out FILE` writes"
        )
    encoder = built(read_own(path))
    head = read_head(about[CLASSIFIER], path)
    weight, bias = (tensors.get(name) for name in (WEIGHT, BIAS))
    if weight is None or bias is None:
        raise InputError(f"the head in {path} is damaged: it has no {WEIGHT if weight is None else BIAS}")
    layers, classes = Layers(blocks=head.blocks, avgpool=head.avgpool), head.classes
    if head.blocks > encoder.depth:
        raise InputError(f"the head in {path} is damaged: it reads {head.blocks} blocks of {encoder.depth}")
    if weight.ndim != 2 or weight.shape[0] != len(classes) or bias.shape != weight.shape[:1]:
        shapes = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        raise InputError(f"the head in {path} is damaged: {shapes} for {len(classes)} classes")
    return Classifier(encoder=encoder, layers=layers, classes=classes, weight=weight, bias=bias).eval()
