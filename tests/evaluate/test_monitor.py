"""What a run is scored by while it trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simdino.config import EncoderConfig
from simdino.contracts import Preprocess
from simdino.data.base import ArraySource, Source, subset
from simdino.data.opening import BrokenImage
from simdino.data.survey import spread_of
from simdino.evaluate.baselines import random_twin
from simdino.evaluate.classification.neighbours import knn_each
from simdino.evaluate.monitor import Monitor
from simdino.features.extract import extract, pixel_size, pixels
from simdino.models.catalogue import make_encoder
from simdino.models.encoder import Encoder
from simdino.runs.verdict import feature_rank

PREPROCESS = Preprocess(resize=8, crop=8, channels=1, mean=(0.5,), std=(0.3,))


def encoder(seed: int = 7) -> Encoder:
    torch.manual_seed(seed)
    return make_encoder(EncoderConfig(name="vit_nano", image_size=8, patch_size=4), PREPROCESS).eval()


def images(count: int, *, labels: bool = True, seed: int = 0) -> ArraySource:
    """Three classes that differ in brightness pattern."""
    random = np.random.default_rng(seed)
    kinds = np.arange(count) % 3
    patterns = np.random.default_rng(99).integers(40, 200, (3, 8, 8))
    stack = (patterns[kinds] + random.integers(-40, 40, (count, 8, 8))).clip(0, 255).astype(np.uint8)
    names = [f"{seed}/{i}" for i in range(count)]
    return ArraySource("patterns", stack, names, kinds if labels else None, ("a", "b", "c") if labels else ())


def monitor(train: Source, validation: Source, **options: Any) -> Monitor:
    chosen: dict[str, Any] = {"bank": 60, "queries": 20, "labels": True, "precision": "float32", "workers": 0} | options
    return Monitor(train, validation, **chosen)


class OneBroken(Source):
    """The images of another source; one cannot be read."""

    def __init__(self, whole: ArraySource, broken: int) -> None:
        super().__init__(whole.name, whole.names, whole.labels, whole.classes)
        self.whole, self.broken = whole, broken

    def read(self, i: int, channels: int | None = None, *, at_least: int | None = None) -> Tensor:
        if i == self.broken:
            raise BrokenImage(self.names[i], "torn")
        return self.whole.read(i, channels)


def test_the_scores_are_those_of_the_subsets() -> None:
    train, validation, model = images(100), images(50, seed=1), encoder()
    row = monitor(train, validation)(model)
    bank, queries = subset(train, 60), subset(validation, 20)
    features = extract(model, bank, precision="float32")
    assert row == {
        "feature_rank": feature_rank(features.vectors),
        "image_spread": spread_of(bank),
        "knn": knn_each(features, extract(model, queries, precision="float32"), ks=[20])[0].top1,
        "knn_pixels": knn_each(
            pixels(bank, PREPROCESS, size=pixel_size(bank)),
            pixels(queries, PREPROCESS, size=pixel_size(bank)),
            ks=[20],
        )[0].top1,
        "knn_k": 20,
        "bank": 60,
        "queries": 20,
    }


@pytest.mark.parametrize(("size", "expected"), [(1, 1), (60, 60), (100, 100), (1_000, 100)])
def test_a_subset_has_its_size_in_the_order_of_the_source(size: int, expected: int) -> None:
    source = images(100)
    part = subset(source, size)
    places = [source.names.index(name) for name in part.names]
    assert len(part) == expected and places == sorted(set(places))
    assert np.array_equal(np.asarray(part.labels), np.asarray(source.labels)[places])
    assert part.names == subset(source, size).names


def test_a_subset_is_spread_over_the_source() -> None:
    source = images(3_000)
    places = np.array([source.names.index(name) for name in subset(source, 300).names])
    assert np.histogram(places, bins=10, range=(0, 3_000))[0].min() > 10


@pytest.mark.parametrize("case", ["switched off", "train", "held out", "nothing held out"])
def test_without_labels_there_is_a_rank_and_no_knn(case: str) -> None:
    train, validation = images(40, labels=case != "train"), images(20, labels=case != "held out", seed=1)
    if case == "nothing held out":
        validation = validation.select([])
    row = monitor(train, validation, labels=case != "switched off")(encoder())
    assert set(row) == {"feature_rank", "image_spread"}


def test_a_small_bank_is_asked_for_fewer_neighbours() -> None:
    row = monitor(images(12), images(9, seed=1))(encoder())
    assert (row["knn_k"], row["bank"], row["queries"]) == (12, 12, 9)


@pytest.mark.parametrize("bank", [12, 20])
def test_a_broken_image_in_a_small_bank_does_not_end_a_run(bank: int) -> None:
    row = monitor(OneBroken(images(bank), 5), images(9, seed=1))(encoder())
    assert row["bank"] == bank - 1 and row["knn_k"] == bank - 1


def test_scoring_twice_gives_the_same_row() -> None:
    score, model = monitor(images(100), images(50, seed=1)), encoder()
    assert score(model) == score(model)


def test_scoring_touches_no_global_random_state() -> None:
    model = encoder()
    before = torch.get_rng_state()
    monitor(images(30), images(9, seed=1))(model)
    assert torch.equal(before, torch.get_rng_state())


def same_weights(a: Encoder, b: Encoder) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def test_a_random_twin_is_reproducible_and_another_encoder() -> None:
    trained = encoder()
    twin = random_twin(trained)
    torch.manual_seed(1234)
    assert same_weights(twin, random_twin(trained))
    assert not same_weights(twin, trained)
    assert not same_weights(twin, random_twin(trained, seed=1))
    assert (twin.config, twin.preprocess, twin.training) == (trained.config, trained.preprocess, False)


def test_a_random_twin_has_the_laws_of_a_fresh_encoder() -> None:
    trained = encoder()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.fill_(3.0)
    state = random_twin(trained).state_dict()
    weight = state["blocks.0.mlp.0.weight"] if "blocks.0.mlp.0.weight" in state else state["pos_embed"]
    assert abs(weight.std().item() - 0.02) < 2e-3


def test_making_a_random_twin_touches_no_global_random_state() -> None:
    trained = encoder()
    before = torch.get_rng_state()
    random_twin(trained)
    assert torch.equal(before, torch.get_rng_state())
