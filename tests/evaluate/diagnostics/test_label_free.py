"""Health without labels, of small encoders on images in memory."""

from __future__ import annotations

import json
from dataclasses import replace
from math import nan
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from run_metadata import write_metadata
from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.data.base import ArraySource, Source
from simdino.data.opening import BrokenImage
from simdino.evaluate import health
from simdino.evaluate.diagnostics.monitors import (
    patch_rank,
    random_views,
    verdict,
    view_law,
    view_layers,
)
from simdino.features.extract import extract
from simdino.features.spectra import spectrum
from simdino.models.catalogue import make_encoder
from simdino.models.encoder import Encoder
from simdino.models.weights import save_encoder
from simdino.runs.evaluations import FILE

PREPROCESS = Preprocess(resize=16, crop=16, channels=3, mean=(0.5,) * 3, std=(0.3,) * 3)
FEW = {"images": 12, "view_images": 6, "views": 3}


def source(count: int = 20) -> ArraySource:
    pixels = np.random.default_rng(0).integers(0, 255, (count, 20, 24, 3), dtype=np.uint8)
    return ArraySource("noise", pixels, [f"{i}.png" for i in range(count)])


class Torn(Source):
    """The same images, some of which are broken."""

    def __init__(self, count: int, whole: set[int]) -> None:
        self.pixels, self.whole = source(count), whole
        super().__init__("torn", self.pixels.names)

    def read(self, i: int, channels: int | None = None, *, at_least: int | None = None) -> Tensor:
        name = self.names[i]
        if int(name.partition(".")[0]) not in self.whole:
            raise BrokenImage(name, "torn")
        return self.pixels.read(list(self.pixels.names).index(name), channels)


def vit(name: str = "vit_toy", **words: int) -> Encoder:
    torch.manual_seed(0)
    return make_encoder(EncoderConfig(name=name, image_size=16, patch_size=4, **words), PREPROCESS).eval()


def test_health_joins_the_spectrum_of_images_and_the_scatter_of_views() -> None:
    encoder, data = vit(depth=3), source(12)
    found = health(encoder, data, **FEW)
    vectors = extract(encoder, data, precision="float32").vectors
    assert found.spectrum == spectrum(vectors, eps=0.05**0.5)
    assert (found.view_images, found.views, len(found.between_view_share)) == (6, 3, 3)
    assert all(0 < share < 1 for share in found.between_view_share)
    assert 1 <= found.lidar <= 5.001
    assert found == health(encoder, data, **FEW)  # nothing is left to chance
    assert found.lidar != health(encoder, data, **FEW, seed=1).lidar
    json.dumps(found.as_dict(), allow_nan=False)
    assert "RankMe" in str(found) and found.sentence in str(found)


def test_layers_are_those_of_the_class_tokens_of_the_views() -> None:
    encoder, data = vit(depth=2), source(5)
    seen = torch.cat(list(random_views(data, PREPROCESS, views=3, seed=4)))
    assert seen.shape == (5, 3, 3, 16, 16)
    with torch.no_grad():
        cls = encoder(seen.flatten(0, 1)).cls.double().unflatten(0, (5, 3))
    last = view_layers(encoder, data, views=3, seed=4)[-1]
    assert torch.allclose(last.between, torch.cov(cls.mean(1).T), atol=1e-6)
    spread = cls - cls.mean(1, keepdim=True)
    assert torch.allclose(last.within, torch.einsum("nqd,nqe->de", spread, spread) / (5 * 2), atol=1e-6)


def test_views_do_not_depend_on_how_many_images_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.cat(list(random_views(source(7), PREPROCESS, views=2, seed=0)))
    monkeypatch.setattr("simdino.evaluate.diagnostics.monitors.IN_CACHE", 4)
    assert torch.equal(torch.cat(list(random_views(source(7), PREPROCESS, views=2, seed=0))), whole)


def test_all_views_of_an_image_have_one_law() -> None:
    law = view_law(replace(PREPROCESS, crop=224), views=6)
    assert (law.global_views, law.local_views, law.global_size) == (6, 0, 224)
    assert law.blur == pytest.approx((0.55,) * 3) and law.solarize == pytest.approx((0.1,) * 3)


def test_patch_rank_is_the_mean_over_images() -> None:
    encoder, data = vit(), source(4)
    ranks = []
    for i in range(4):
        one = data.select([i])
        ranks.append(patch_rank(encoder, one))
    assert patch_rank(encoder, data) == pytest.approx(np.mean(ranks))
    with torch.no_grad():
        from simdino.features.extract import patch_features, prepared

        images = next(iter(prepared(data.select([0]), PREPROCESS)))[1]
        sigma = np.linalg.svd(patch_features(encoder, images)[0].flatten(0, 1).double(), compute_uv=False)
    p = sigma / sigma.sum()
    assert ranks[0] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)


@pytest.mark.slow
@pytest.mark.extra("timm")
def test_an_encoder_without_blocks_of_tokens_is_measured_at_its_output() -> None:
    torch.manual_seed(0)
    encoder = make_encoder(EncoderConfig(name="timm:resnet18", image_size=32), replace(PREPROCESS, resize=32, crop=32))
    found = health(encoder.eval(), source(), **FEW)
    assert len(found.between_view_share) == 1 and found.patch_rank is None


def test_broken_images_are_named_and_left_out() -> None:
    found = health(vit(), Torn(8, {0, 2, 3, 5, 7}), **FEW)
    assert found.broken == {"1.png": "torn", "4.png": "torn", "6.png": "torn"}
    assert (found.spectrum.images, found.view_images) == (5, 5)


def test_one_readable_image_is_refused() -> None:
    with pytest.raises(InputError, match="1 readable image"):
        health(vit(), Torn(8, {3}), **FEW)


@pytest.mark.parametrize(
    "words", [{"images": 1}, {"view_images": 1}, {"views": 1}, {"eps": 0.0}, {"eps": nan}, {"eps": 1e-9}]
)
def test_numbers_out_of_range_are_refused(words: dict) -> None:
    with pytest.raises(InputError, match="--"):
        health(vit(), source(), **FEW | words)


def test_weights_that_are_not_finite_are_named() -> None:
    encoder = vit()
    with torch.no_grad():
        next(encoder.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="not all finite"):
        health(encoder, source(), **FEW)


def test_the_verdict_follows_its_thresholds() -> None:
    generator = torch.Generator().manual_seed(0)
    wide, one = torch.randn(200, 16, generator=generator), torch.ones(16)
    assert verdict(spectrum(wide, eps=0.2))[0] == "healthy"
    status, sentence = verdict(spectrum(30 * one + wide, eps=0.2))
    assert status == "collapsed" and "0.98" in sentence and "--rho" in sentence
    status, sentence = verdict(spectrum(wide * torch.tensor([1.0] * 3 + [0.05] * 13), eps=0.2))
    assert status == "low rank" and "under 5 directions" in sentence
    assert verdict(spectrum(torch.zeros(50, 16), eps=0.2))[0] == "collapsed"
    assert "--rho" in verdict(spectrum(torch.zeros(50, 16), eps=0.2), spread=0.1)[1]
    alike = verdict(spectrum(torch.zeros(50, 16), eps=0.2), spread=0.001)[1]
    assert "images themselves are alike" in alike and "--rho" not in alike
    assert verdict(spectrum(wide[:4], eps=0.2))[0] == "healthy"  # of three directions that there can be, most


def test_the_result_of_a_run_is_kept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    save_encoder(vit(), run / "encoder.safetensors")
    write_metadata(run, "digits")
    found = health(str(run), **FEW)
    row = json.loads((run / FILE).read_text())
    assert (row["protocol"], row["data"], row["trained_on"]) == ("health", "digits", True)
    assert row["results"] == json.loads(json.dumps(found.as_dict()))
    assert row["settings"] == FEW | {"eps": 0.05**0.5, "checkpoints": False}
