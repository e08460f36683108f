"""The segmentation head: loss, gradient, padding and schedule against their definitions in float64."""

from __future__ import annotations

import pytest
import torch
from coloured import make
from planted import Planted
from torch import Tensor
from torch.nn import functional as F

from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.evaluate.segmentation import head as segment_head
from simdino.evaluate.segmentation.head import (
    Segmenter,
    enlarged,
    loss_and_gradient,
    make_head,
    padded,
    poly,
    train_head,
)
from simdino.models.catalogue import make_encoder

pytestmark = pytest.mark.usefixtures("one_thread")


def slow_bilinear(x: Tensor, height: int, width: int) -> Tensor:
    """Of [h, w], align_corners False, a pixel at a time."""

    def places(new: int, old: int) -> list[tuple[int, int, float]]:
        found = []
        for i in range(new):
            at = max(0.0, (i + 0.5) * old / new - 0.5)
            low = min(int(at), old - 1)
            found.append((low, min(low + 1, old - 1), min(at - low, 1.0)))
        return found

    result = torch.empty(height, width, dtype=x.dtype)
    for i, (top, bottom, down) in enumerate(places(height, x.shape[0])):
        for j, (left, right, across) in enumerate(places(width, x.shape[1])):
            upper = (1 - across) * x[top, left] + across * x[top, right]
            lower = (1 - across) * x[bottom, left] + across * x[bottom, right]
            result[i, j] = (1 - down) * upper + down * lower
    return result


def test_logits_are_enlarged_to_the_padded_image_and_the_padding_is_cut() -> None:
    logits = torch.randn(1, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = enlarged(logits, (11, 13), 4)  # of images padded to 12 x 16: 0 above, 1 below, 1 left, 2 right
    expected = torch.stack([slow_bilinear(one, 12, 16)[0:11, 1:14] for one in logits[0]])
    torch.testing.assert_close(found[0], expected)


def test_images_are_padded_by_zeros_as_much_on_each_side() -> None:
    image = torch.ones(1, 1, 11, 13)
    found = padded(image, 4)[0, 0]
    assert tuple(found.shape) == (12, 16)
    assert found[:11, 1:14].all() and found.sum() == 11 * 13
    assert torch.equal(padded(torch.ones(1, 1, 8, 12), 4), torch.ones(1, 1, 8, 12))


def written_out(logits: Tensor, masks: Tensor, patch: int) -> Tensor:
    """Minus log softmax of the true class, summed over pixels with a class, over the number of all pixels."""
    total = logits.new_zeros(())
    for image, mask in zip(enlarged(logits, (masks.shape[1], masks.shape[2]), patch), masks, strict=True):
        log_p = image - image.exp().sum(0).log()
        for y in range(mask.shape[0]):
            for x in range(mask.shape[1]):
                if mask[y, x] != 255:
                    total = total - log_p[mask[y, x], y, x]
    return total / masks.numel()


@pytest.mark.parametrize("at_once", [2**26, 1])
def test_the_loss_is_the_mean_over_all_pixels_ignored_ones_included(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_head, "LOGITS", at_once)
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 2, 2, dtype=torch.float64, generator=draw, requires_grad=True)
    masks = torch.randint(4, (3, 7, 8), generator=draw)
    masks[0, :4], masks[2] = 255, 255
    loss, gradient = loss_and_gradient(logits, masks, 4)
    expected = written_out(logits, masks, 4)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])
    known = F.cross_entropy(enlarged(logits, (7, 8), 4), masks, ignore_index=255)
    share = float((masks != 255).double().mean())
    torch.testing.assert_close(loss, share * known.detach())
    assert not gradient[2].any()


def test_what_is_ignored_changes_nothing() -> None:
    logits = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    masks = torch.full((1, 8, 8), 255)
    loss, gradient = loss_and_gradient(logits, masks, 4)
    assert float(loss) == 0 and not gradient.any()


def test_the_rate_is_that_of_mmcv() -> None:
    for step in (0, 1, 700, 1499, 1500, 20_000, 39_999):
        share = 1 - step / 40_000
        if step < 1500:
            k = (1 - step / 1500) * (1 - 1e-6)
            share *= 1 - k
        assert poly(step, 40_000) == pytest.approx(share, rel=1e-12)
    assert poly(0, 40_000) == pytest.approx(1e-6)
    assert 1e-3 * poly(1500, 40_000) == pytest.approx(9.625e-4)  # as a public log of the protocol has it
    assert poly(40_000, 40_000) == 0
    assert poly(0, 1) == 1  # too short to warm up


def test_the_head_is_batch_norm_and_a_convolution_that_starts_small() -> None:
    norm, convolution = make_head(300, 20, seed=1)
    assert isinstance(norm, torch.nn.BatchNorm2d) and isinstance(convolution, torch.nn.Conv2d)
    assert tuple(convolution.weight.shape) == (20, 300, 1, 1)
    assert float(convolution.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert convolution.bias is not None and not convolution.bias.any()
    again, other = make_head(300, 20, seed=1)[1], make_head(300, 20, seed=2)[1]
    assert torch.equal(again.weight, convolution.weight) and not torch.equal(other.weight, convolution.weight)


def test_the_head_reads_the_patch_tokens_of_the_last_blocks_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make()
    images = torch.randn(5, 3, 10, 13, generator=torch.Generator().manual_seed(0))
    model = Segmenter(encoder, classes=3, layers=2, size=8, seed=0, precision="float32")
    expected = [one.patches for one in encoder.last_blocks(padded(images, 4), 2)]
    grids = [x.detach().transpose(1, 2).reshape(5, 16, 3, 4) for x in expected if x is not None]
    torch.testing.assert_close(model.features(images), torch.cat(grids, 1))
    monkeypatch.setattr(segment_head, "PATCHES", 24)  # two images at once
    torch.testing.assert_close(model.features(images), torch.cat(grids, 1))
    assert tuple(model(images).shape) == (5, 3, 3, 4)


def test_training_changes_the_head_alone_and_follows_adamw() -> None:
    encoder = make()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    model = Segmenter(encoder, classes=3, layers=1, size=8, seed=0, precision="float32")
    head = make_head(16, 3, seed=0)
    draw = torch.Generator().manual_seed(0)
    data = [(torch.randn(4, 3, 8, 8, generator=draw), torch.randint(3, (4, 8, 8), generator=draw)) for _ in range(30)]
    loss = train_head(model, data, steps=30)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-4)
    expected = torch.tensor(0.0)
    for step, (images, masks) in enumerate(data):
        optimizer.param_groups[0]["lr"] = 1e-3 * poly(step, 30)
        logits = F.interpolate(head(model.features(images)), (8, 8), mode="bilinear")
        expected = F.cross_entropy(logits, masks)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(dict(model.head.state_dict()), dict(head.state_dict()), atol=1e-5, rtol=1e-4)
    assert not model.head.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in encoder.parameters())


@pytest.mark.extra("timm")
def test_encoders_without_patches_or_so_many_blocks_or_with_broken_weights_are_refused() -> None:
    preprocess = Preprocess(resize=32, crop=32, channels=3, mean=(0.5,) * 3, std=(0.3,) * 3)
    convolutions = make_encoder(EncoderConfig(name="timm:resnet18", image_size=32), preprocess)
    with pytest.raises(InputError, match="has no patches"):
        Segmenter(convolutions, classes=2, layers=1, size=32, seed=0)
    with pytest.raises(InputError, match="has no 9 last blocks"):
        Segmenter(make(), classes=2, layers=9, size=8, seed=0)
    planted = Planted(noise=float("nan"))
    model = Segmenter(planted, classes=2, layers=1, size=8, seed=0)
    with pytest.raises(InputError, match="the patch tokens of encoder vit_nano are not all finite"):
        train_head(model, [(torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64))], steps=1)
