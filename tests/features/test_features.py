"""Images -> vectors against the encoder called by hand, image by image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.data.base import ArraySource, Source
from simdino.data.opening import BrokenImage
from simdino.features.extract import Features, centre, embed, extract, pixel_size, pixels
from simdino.models.catalogue import make_encoder
from simdino.models.encoder import Encoder

PREPROCESS = Preprocess(resize=20, crop=16, channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))


class Damaged(Source):
    """Images of several sizes; those of some ids are broken."""

    def __init__(self, count: int, broken: set[int], *, labels: bool = True) -> None:
        classes = ("a", "b", "c")
        given = np.arange(count) % 3 if labels else None
        super().__init__("damaged", [f"{i}.jpg" for i in range(count)], given, classes if labels else ())
        self.broken = broken

    def read(self, i: int, channels: int | None = None, *, at_least: int | None = None) -> Tensor:
        if i in self.broken:
            raise BrokenImage(self.names[i], f"torn at byte {i}")
        return photo(*((20, 30), (40, 32), (25, 25))[i % 3], channels or 3, seed=i)


def photo(height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [127 + 100 * np.sin((4 + seed % 5) * x + c) * np.cos(3 * y + seed) for c in range(channels)]
    noise = np.random.default_rng(seed).normal(0, 5, (channels, height, width))
    return torch.from_numpy((np.stack(waves) + noise).clip(0, 255).astype(np.uint8))


def encoder(preprocess: Preprocess = PREPROCESS) -> Encoder:
    torch.manual_seed(0)
    return make_encoder(EncoderConfig(name="vit_nano", image_size=16, patch_size=8), preprocess).eval()


def by_torchvision(image: Tensor, preprocess: Preprocess) -> Tensor:
    resized = tv.resize(image, [preprocess.resize], interpolation=InterpolationMode.BICUBIC, antialias=True)
    return tv.center_crop(resized, [preprocess.crop, preprocess.crop])


@torch.no_grad()
def by_hand(model: Encoder, source: Source, ids: list[int]) -> Tensor:
    rows = []
    for i in ids:
        image = by_torchvision(source.read(i, 3), model.preprocess).float() / 255
        mean, std = torch.tensor(model.preprocess.mean), torch.tensor(model.preprocess.std)
        rows.append(model(((image - mean[:, None, None]) / std[:, None, None])[None]).cls)
    return torch.cat(rows)


SHAPES = [
    (20, 30),
    (60, 40),
    (256, 256),
    (64, 333),
    (333, 64),
    (37, 41),
    (41, 37),
    (375, 500),
    (7, 9),
    (100, 299),
    (5, 5),
]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("resize", "crop"), [(36, 32), (32, 32), (33, 28), (20, 16)])
def test_centre_equals_torchvisions_resize_and_center_crop(resize: int, crop: int, channels: int) -> None:
    preprocess = Preprocess(resize=resize, crop=crop, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)
    for height, width in SHAPES:
        image = photo(height, width, channels)
        got, expected = centre(image, preprocess), by_torchvision(image, preprocess)
        assert got.shape == expected.shape == (channels, crop, crop)
        assert (got.int() - expected.int()).abs().max() <= 1, f"{height} x {width}"


def test_an_image_of_the_wanted_size_is_kept_bit_for_bit() -> None:
    preprocess = Preprocess(resize=16, crop=16, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    image = photo(16, 16)
    assert torch.equal(centre(image, preprocess), image)


def test_features_equal_the_encoder_called_image_by_image() -> None:
    source, model = Damaged(9, set()), encoder()
    got = extract(model, source, precision="float32")
    torch.testing.assert_close(got.vectors, by_hand(model, source, list(range(9))), atol=2e-5, rtol=1e-5)
    assert got.vectors.dtype == torch.float32 and got.vectors.shape == (9, model.embed_dim)
    assert got.names == source.names and got.classes == ("a", "b", "c") and not got.broken
    assert np.array_equal(np.asarray(got.labels), np.arange(9) % 3)


def test_bfloat16_features_point_where_float32_ones_do() -> None:
    source, model = Damaged(9, set()), encoder()
    exact, fast = (extract(model, source, precision=precision).vectors for precision in ("float32", "bfloat16"))
    assert fast.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact, fast).min() > 0.999


def test_broken_images_are_left_out_and_named() -> None:
    source, model = Damaged(9, {0, 4, 8}), encoder()
    got = extract(model, source, precision="float32")
    kept = [1, 2, 3, 5, 6, 7]
    assert got.names == [f"{i}.jpg" for i in kept] and len(got) == 6
    assert np.asarray(got.labels).tolist() == [i % 3 for i in kept]
    assert got.broken == {f"{i}.jpg": f"torn at byte {i}" for i in (0, 4, 8)}
    torch.testing.assert_close(got.vectors, by_hand(model, source, kept), atol=2e-5, rtol=1e-5)


def test_a_whole_batch_of_broken_images_is_passed_over() -> None:
    source, model = Damaged(260, set(range(256))), encoder()
    got = extract(model, source, precision="float32")
    assert got.names == [f"{i}.jpg" for i in range(256, 260)] and len(got.broken) == 256
    torch.testing.assert_close(got.vectors, by_hand(model, source, list(range(256, 260))), atol=2e-5, rtol=1e-5)
    assert len(pixels(source, PREPROCESS, size=PREPROCESS.crop)) == 4


@pytest.mark.parametrize("which", ["encoder", "pixels"])
def test_nothing_readable_is_refused_in_one_line(which: str) -> None:
    source = Damaged(3, {0, 1, 2})
    with pytest.raises(InputError, match="no readable image in damaged") as caught:
        extract(encoder(), source) if which == "encoder" else pixels(source, PREPROCESS, size=PREPROCESS.crop)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_workers_do_not_change_features() -> None:
    source, model = Damaged(300, {3, 270}), encoder()
    alone, helped = (extract(model, source, precision="float32", workers=workers) for workers in (0, 2))
    assert torch.equal(alone.vectors, helped.vectors)
    assert (alone.names, alone.broken) == (helped.names, helped.broken)
    assert torch.equal(
        pixels(source, PREPROCESS, size=PREPROCESS.crop).vectors,
        pixels(source, PREPROCESS, size=PREPROCESS.crop, workers=2).vectors,
    )


def test_pixels_are_normalised_centre_crops() -> None:
    source = Damaged(6, {2})
    got = pixels(source, PREPROCESS, size=PREPROCESS.crop)
    kept = [0, 1, 3, 4, 5]
    whole = replace(PREPROCESS, resize=PREPROCESS.crop)
    cut = torch.stack([by_torchvision(source.read(i, 3), whole) for i in kept]).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PREPROCESS.mean, PREPROCESS.std))
    expected = ((cut - mean) / std).flatten(1)
    torch.testing.assert_close(got.vectors, expected, atol=1.01 / 255 / min(PREPROCESS.std), rtol=0)
    assert got.vectors.shape == (5, 3 * 16 * 16)
    assert np.asarray(got.labels).tolist() == [i % 3 for i in kept]


@pytest.mark.parametrize(("shape", "size"), [((28, 28), 28), ((40, 25), 25), ((300, 200), 32)])
def test_raw_pixels_are_compared_at_the_images_own_size_up_to_32(shape: tuple[int, int], size: int) -> None:
    source = ArraySource("photos", np.zeros((2, *shape), dtype=np.uint8), ["a", "b"])
    assert pixel_size(source) == size


def test_without_labels_there_are_none() -> None:
    source = Damaged(3, set(), labels=False)
    assert extract(encoder(), source).labels is None
    assert pixels(source, PREPROCESS, size=PREPROCESS.crop).labels is None


@pytest.mark.parametrize("training", [True, False])
def test_extracting_leaves_the_encoder_as_it_was(training: bool) -> None:
    model = encoder().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    features = extract(model, Damaged(3, set()))
    assert model.training == training and not features.vectors.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_training_encoder_is_scored_without_drop_path() -> None:
    source, model = Damaged(4, set()), encoder()
    expected = extract(model, source, precision="float32").vectors
    assert torch.equal(extract(model.train(), source, precision="float32").vectors, expected)


def test_extracting_touches_no_global_random_state() -> None:
    model = encoder()
    before = torch.get_rng_state()
    extract(model, Damaged(3, set()))
    assert torch.equal(before, torch.get_rng_state())


def test_embed_takes_a_source_or_the_name_of_data() -> None:
    model = encoder(Preprocess(resize=16, crop=16, channels=1, mean=(0.5,), std=(0.3,)))
    grey = np.random.default_rng(0).integers(0, 256, (5, 16, 16), dtype=np.uint8)
    source = ArraySource("noise", grey, [str(i) for i in range(5)])
    got = embed(model, source)
    assert isinstance(got, Features) and torch.equal(got.vectors, extract(model, source).vectors)
    digits = embed(model, "digits", split="val")
    assert len(digits) == 360 and digits.classes == tuple("0123456789")
