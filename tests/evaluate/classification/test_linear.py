"""Linear heads: many at once are what each would be alone, and the protocols are those of the papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coloured import PREPROCESS, both, colours, make
from torch import Tensor, nn
from torch.nn import functional as F

from simdino.config import Interpolation
from simdino.contracts import InputError
from simdino.data.base import ArraySource
from simdino.data.opening import BrokenImage
from simdino.data.photometric import normalise, to_unit_range
from simdino.evaluate import linear
from simdino.evaluate.classification.probe import RECIPES, Probe, Stack
from simdino.evaluate.classification.training import Length, batches, ranked, score
from simdino.features.extract import centre
from simdino.features.readout import Layers, Reader, readable
from simdino.feedback import no_bar

CPU = torch.device("cpu")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


class Damaged(ArraySource):
    """Every fifth image cannot be read."""

    def read(self, i: int, channels: int | None = None, *, at_least: int | None = None) -> Tensor:
        if int(self.names[i].split("/")[-1]) % 5 == 0:
            raise BrokenImage(self.names[i], "torn")
        return super().read(i, channels, at_least=at_least)


def damaged(source: ArraySource) -> Damaged:
    return Damaged(source.name, source.images, source.names, source.labels, source.classes)


def alone(weight: Tensor, bias: Tensor) -> nn.Linear:
    """torch's own linear layer with these weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight.clone(), "bias": bias.clone()})
    return layer


def test_stacked_heads_are_heads_trained_alone_by_torch_step_for_step() -> None:
    random = torch.Generator().manual_seed(1)
    rates, width, classes = (0.01, 0.5, 3.0), 6, 4
    stack = Stack(rates, width=width, classes=classes, device=CPU, random=random)
    heads = [alone(*pair) for pair in zip(stack.weight, stack.bias, strict=True)]
    optimizers = [torch.optim.SGD(h.parameters(), lr=r, momentum=0.9) for h, r in zip(heads, rates, strict=True)]
    for step in range(30):
        features, labels = torch.randn(9, width, generator=random), torch.randint(classes, (9,), generator=random)
        share = 1 - step / 30
        torch.testing.assert_close(stack.logits(features), torch.stack([h(features) for h in heads], dim=1))
        stack.step(features, labels, share=share)
        for head, rate, optimizer in zip(heads, rates, optimizers, strict=True):
            optimizer.zero_grad()
            optimizer.param_groups[0]["lr"] = share * rate
            F.cross_entropy(head(features), labels).backward()
            optimizer.step()
        torch.testing.assert_close(stack.weight, torch.stack([h.weight for h in heads]).detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stack.bias, torch.stack([h.bias for h in heads]).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("protocol", "number", "layers", "rate", "per_step", "resized"),
    [
        ("dinov2", 2, Layers(blocks=1), 5e-5, True, "bicubic"),
        ("dinov2", 13 + 12, Layers(blocks=1, avgpool=True), 0.1, True, "bicubic"),
        ("dinov2", 51, Layers(blocks=4, avgpool=True), 0.1, True, "bicubic"),
        ("simdinov2", 8 + 7, Layers(blocks=2, avgpool=True), 5e-2, True, "bicubic"),
        ("dino", 0, Layers(blocks=4), 1e-3, False, "bilinear"),
    ],
)
def test_a_head_of_a_protocol_is_what_plain_torch_trains(
    protocol: str, number: int, layers: Layers, rate: float, per_step: bool, resized: Interpolation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    probes: list[Probe] = []
    scored = Probe.heads
    monkeypatch.setattr(Probe, "heads", lambda probe, *a: probes.append(probe) or scored(probe, *a))
    encoder, (train, validation) = make(), both()
    epochs, batch = 3, 12
    length = Length(batch=batch, steps=epochs * (len(train) // batch), steps_per_epoch=len(train) // batch)
    found = linear(
        encoder, (train, validation), protocol=protocol, epochs=epochs, batch=batch, seed=5, precision="float32"
    )
    stacks = RECIPES[protocol]
    random = torch.Generator().manual_seed(5)
    widths = [16 * (one.blocks + one.avgpool) for one in stacks.layers]
    starts = [torch.empty(len(stacks.rates), 3, w).normal_(std=0.01, generator=random) for w in widths]
    which, place = divmod(number, len(stacks.rates))
    head = alone(starts[which][place], torch.zeros(3))
    optimizer = torch.optim.SGD(head.parameters(), lr=rate * batch / 256, momentum=0.9)
    moves = length.steps if per_step else epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, moves, eta_min=0)
    stream = batches(train, make(), length, seed=5, workers=0, broken={}, interpolation=resized)
    for step, (images, labels, _) in enumerate(stream):
        with torch.no_grad():
            tokens = encoder.last_blocks(images, 4)
            parts = [one.cls for one in tokens[4 - layers.blocks :]]
            last = tokens[-1].patches
            assert last is not None
            features = torch.cat([*parts, last.mean(1)] if layers.avgpool else parts, dim=1)
        optimizer.zero_grad()
        F.cross_entropy(head(features), labels).backward()
        optimizer.step()
        if per_step or (step + 1) % length.steps_per_epoch == 0:
            schedule.step()

    assert (found.heads[number].blocks, found.heads[number].avgpool) == (layers.blocks, layers.avgpool)
    assert found.heads[number].lr == pytest.approx(rate * batch / 256)
    with torch.no_grad():
        images = torch.stack([centre(validation.read(i, 3), PREPROCESS) for i in range(len(validation))])
        inputs = normalise(to_unit_range(images), mean=PREPROCESS.mean, std=PREPROCESS.std)
        (features,) = Reader(encoder, [layers], precision="float32")(inputs)
        right = (head(features).argmax(1).numpy() == np.asarray(validation.labels)).mean()
    assert found.heads[number].top1 == pytest.approx(100 * right)
    ours = probes[0].classifier(number, train.classes)
    torch.testing.assert_close(ours.weight, head.weight.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.bias, head.bias.detach(), rtol=1e-4, atol=1e-6)


def test_the_grids_are_those_of_the_papers() -> None:
    encoder, data = make(), both()
    heads = {name: linear(encoder, data, protocol=name, steps=1, batch=16).heads for name in RECIPES}
    assert {name: len(found) for name, found in heads.items()} == {"dino": 1, "dinov2": 52, "simdinov2": 16}
    kinds = {name: {(h.blocks, h.avgpool) for h in found} for name, found in heads.items()}
    assert kinds["dino"] == {(4, False)}
    assert kinds["dinov2"] == {(1, False), (1, True), (4, False), (4, True)}
    assert kinds["simdinov2"] == {(1, True), (2, True)}
    middle = [2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2]
    for name, rates in {"dinov2": [1e-5, 2e-5, 5e-5, 1e-4, *middle, 0.1], "simdinov2": middle}.items():
        for kind in kinds[name]:
            found = [h.lr * 256 / 16 for h in heads[name] if (h.blocks, h.avgpool) == kind]
            assert found == pytest.approx(rates)
    (mean,) = linear(encoder, data, protocol="dino", avgpool=True, steps=1, batch=16).heads
    assert (mean.blocks, mean.avgpool) == (1, True)


def test_separable_classes_are_told_apart_and_the_best_head_is_the_best() -> None:
    found = linear(make(), both(32), protocol="dinov2", steps=120, batch=16)
    assert (found.top1, found.top5) == (100, 100)
    assert found.best.top1 == max(head.top1 for head in found.heads)
    assert "chosen on these images" in str(found)
    assert found.reported_on == found.chosen_on == "validation images"
    plain = found.as_dict()
    assert plain["best"]["top1"] == 100 and len(plain["heads"]) == 52 and "classifier" not in plain


def test_the_chosen_head_is_reported_on_a_third_set_where_there_is_one() -> None:
    third = colours(9, seed=7, name="third", spread=170)
    found = linear(make(), both(), protocol="simdinov2", steps=40, batch=16, test=third)
    (top1,), (top5,) = score(
        found.classifier.each, third, found.classifier.encoder, workers=0, progress=no_bar, broken={}
    )
    assert (found.top1, found.top5, found.test_images) == (top1, top5, 27)
    assert found.top1 < 100 == found.best.top1
    assert found.reported_on == "images of third" and "chosen on these images" not in str(found)


def test_results_are_the_same_for_any_number_of_workers() -> None:
    encoder = make()
    one, two = (linear(encoder, both(), steps=4, batch=16, protocol="dino", workers=workers) for workers in (0, 2))
    assert one == two
    assert torch.equal(one.classifier.weight, two.classifier.weight)
    other = linear(encoder, both(), steps=4, batch=16, protocol="dino", seed=1)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)


def test_accuracies_are_shares_of_the_readable_images() -> None:
    source, broken = damaged(colours(10, seed=2, classes=3)), {}
    logits = torch.randn(24, 2, 7, generator=torch.Generator().manual_seed(0))
    top1, top5 = score(
        lambda _: logits, source, make(), workers=0, progress=no_bar, broken=broken
    )  # fmt: skip
    kept = [i for i in range(30) if i % 5]
    assert source.labels is not None
    for head in range(2):
        ranks = [
            sum(float(row[c]) > float(row[source.labels[i]]) for c in range(7))
            for i, row in zip(kept, logits[:, head], strict=True)
        ]
        assert top1[head] == pytest.approx(100 * np.mean([rank == 0 for rank in ranks]))
        assert top5[head] == pytest.approx(100 * np.mean([rank < 5 for rank in ranks]))
    assert broken == {f"colours/2/{i}": "torn" for i in range(0, 30, 5)}


def test_the_answer_of_a_diverged_head_is_wrong() -> None:
    logits = torch.zeros(4, 2, 3)
    logits[:, :, 1] = 1
    logits[1:, 1, 0] = float("nan")
    right = ranked(logits) == 1
    assert right[..., 0].sum(0).tolist() == right.any(-1).sum(0).tolist() == [4, 1]


def test_broken_images_are_left_out_and_named() -> None:
    train, validation = (damaged(source) for source in both())
    found = linear(make(), (train, validation), protocol="simdinov2", epochs=2, batch=16)
    assert set(found.broken.values()) == {"torn"}
    assert {name for name in found.broken if "/1/" in name} == {f"colours/1/{i}" for i in range(0, 21, 5)}
    assert {name for name in found.broken if "/0/" in name} <= {f"colours/0/{i}" for i in range(0, 48, 5)}


TIMM = pytest.param("timm:resnet10t", marks=pytest.mark.extra("timm"))


@pytest.mark.parametrize("name", ["vit", "crate_tiny", TIMM])
def test_layers_are_class_tokens_then_the_mean_patch(name: str) -> None:
    encoder, images = make(name), torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    counts = (1,) if name.startswith("timm") else (1, 2)
    wanted = [Layers(blocks=n, avgpool=mean) for n in counts for mean in (False, True)]
    with torch.no_grad():
        tokens = [encoder.last_blocks(images, n) for n in counts]
    for layers, found in zip(wanted, Reader(encoder, wanted, precision="float32")(images), strict=True):
        blocks = tokens[layers.blocks - 1]
        patches = blocks[-1].patches
        assert patches is not None
        expected = torch.cat([*(b.cls for b in blocks), *([patches.mean(1)] if layers.avgpool else [])], dim=1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "depth", "kinds"),
    [pytest.param("timm:resnet10t", 0, 2, marks=pytest.mark.extra("timm")), ("vit", 3, 2), ("vit", 4, 4)],
)
def test_what_an_encoder_has_not_is_left_out_and_said(name: str, depth: int, kinds: int) -> None:
    said: list[str] = []
    layers = readable(make(name, depth=depth), RECIPES["dinov2"].layers, log=said.append)
    assert len(layers) == kinds
    if kinds == 4:
        assert said == []
        return
    assert {one.blocks for one in layers} == {1}
    assert len(said) == 1 and "last block alone" in said[0] and "no 4 last blocks" in said[0]


@pytest.mark.parametrize(
    ("images", "given", "expected"),
    [
        (10_000, {}, (128, 780, 78)),
        (2_000, {}, (64, 310, 31)),
        (300, {}, (16, 180, 18)),
        (9, {}, (9, 10, 1)),
        (2_000, {"epochs": 2.0, "batch": 100}, (100, 40, 20)),
        (2_000, {"steps": 7}, (64, 7, 31)),
    ],
)
def test_lengths(images: int, given: dict, expected: tuple[int, int, int]) -> None:
    settings = {"epochs": None, "steps": None, "batch": None} | given
    length = Length.of(images, **settings, usual=10)
    assert (length.batch, length.steps, length.steps_per_epoch) == expected


def unlabelled(source: ArraySource) -> ArraySource:
    return ArraySource("plain", source.images, source.names)


def test_mistakes_end_with_one_line() -> None:
    encoder, (train, validation) = make(), both()
    one = train.select([0, 3, 6])
    other = colours(4, seed=1, classes=2)
    mistakes = [
        ("--protocol 'dino3' must be dino or dinov2 or simdinov2", {"protocol": "dino3"}, (train, validation)),
        ("needs labels of at least two classes", {}, (unlabelled(train), unlabelled(validation))),
        ("at least two classes: all 3 images of colours are 'blue'", {}, (one, validation)),
        ("no validation images", {}, (train, validation.select([]))),
        ("different classes.*: red", {}, (train, other)),
        ("--test: the images of colours have different classes.*red", {"test": other}, (train, validation)),
        ("one of --steps and --epochs", {"steps": 3, "epochs": 1.0}, (train, validation)),
        ("--batch 0 must be 1 or more", {"batch": 0}, (train, validation)),
        ("--batch 900 is larger than the data", {"batch": 900}, (train, validation)),
        ("--avgpool has no effect here: dinov2", {"avgpool": True}, (train, validation)),
    ]
    for message, settings, data in mistakes:
        with pytest.raises(InputError, match=message) as caught:
            linear(encoder, data, **settings)
        assert "\n" not in str(caught.value)
