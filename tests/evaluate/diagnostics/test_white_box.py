"""Layer-wise rates against closed forms and direct formulas."""

from __future__ import annotations

import json
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from encoders import made
from simdino.contracts import InputError, Preprocess
from simdino.data.base import ArraySource
from simdino.evaluate.diagnostics.white_box import keep_layer_rates, layer_rates, layer_row, mean_rate
from simdino.losses.coding_rate import rate_ceiling, rate_floor
from simdino.models.crate import CRATE
from simdino.models.encoder import Encoder
from simdino.models.starting import compile_blocks
from simdino.models.vit import ViT
from simdino.runs.evaluations import FILE

SHAPE = {"image_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 3, "num_heads": 3}


def random_encoder(kind: type[CRATE] | type[ViT], **options: int) -> CRATE | ViT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = made(kind, in_chans=1, **(SHAPE | options))
        for parameter in encoder.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return encoder.eval()


def images(count: int) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def by_hand(z: Tensor, eps: float) -> float:
    """½ logdet(I + d/(n eps²) ZᵀZ) of unit tokens [n, d], through their n x n products."""
    z = z.double() / z.double().norm(dim=-1, keepdim=True)
    n, d = z.shape
    return 0.5 * torch.linalg.slogdet(torch.eye(n) + d / (n * eps**2) * z @ z.T).logabsdet.item()


# --- closed forms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.1, 0.5])
def test_orthonormal_tokens_reach_the_ceiling_and_equal_ones_the_floor(eps: float) -> None:
    orthonormal = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).double()).Q
    lengths = torch.arange(1.0, 7.0)[:, None]
    ceiling, floor = rate_ceiling(d=6, n=6, eps=eps), rate_floor(d=6, n=6, eps=eps)
    assert mean_rate((lengths * orthonormal)[None, None], eps=eps) == pytest.approx(ceiling, rel=1e-12)
    assert mean_rate((lengths * orthonormal[:1])[None, None], eps=eps) == pytest.approx(floor, rel=1e-12)


def test_subspaces_are_summed_and_images_averaged() -> None:
    eye, equal = torch.eye(4), torch.ones(4, 4)
    z = torch.stack([torch.stack([eye, equal]), torch.stack([equal, equal])])  # [2 images, 2 subspaces, 4, 4]
    ceiling, floor = rate_ceiling(d=4, n=4, eps=0.3), rate_floor(d=4, n=4, eps=0.3)
    assert mean_rate(z, eps=0.3) == pytest.approx((ceiling + 3 * floor) / 2, rel=1e-12)


def test_tokens_of_zero_have_no_rate() -> None:
    assert mean_rate(torch.zeros(1, 1, 3, 5), eps=0.1) == 0


def orthonormal_block() -> CRATE:
    """One block whose subspaces are the coordinate axes, whose attention adds nothing and whose dictionary is the
    identity."""
    crate = random_encoder(CRATE, depth=1, num_heads=3)
    block = crate.blocks[0]
    with torch.no_grad():
        block.attn.subspaces.weight.copy_(torch.eye(12))
        block.attn.proj.weight.zero_()
        block.attn.proj.bias.zero_()
        block.ista.dictionary.copy_(torch.eye(12))  # Dᵀ(y - Dy) = 0: soft thresholding at 0.01 remains
    return crate


def test_attention_that_adds_nothing_leaves_the_rate_and_an_orthogonal_dictionary_thresholds() -> None:
    crate, x = orthonormal_block(), images(4)
    with torch.no_grad():
        tokens = stream(crate, x)[0]
        y = crate.blocks[0].norm2(tokens[0])
    (row,) = layer_rates(crate, x)
    assert row["before"] == row["after"]
    assert row["nonzero"] == pytest.approx((y > 0.01).double().mean().item(), abs=1e-12)


def test_attention_to_likes_compresses() -> None:
    crate, x = orthonormal_block(), images(4)
    with torch.no_grad():
        crate.blocks[0].attn.subspaces.weight.mul_(2.0)
        crate.blocks[0].attn.proj.weight.copy_(torch.eye(12))
    (row,) = layer_rates(crate, x)
    assert row["after"] < row["before"]


# --- direct formulas ----------------------------------------------------------------------------------------------


def stream(encoder: CRATE | ViT, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Input and output of every block."""
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [b.register_forward_hook(lambda _, inputs, output: seen.append((*inputs, output))) for b in encoder.blocks]
    with torch.no_grad():
        encoder(x)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("eps", [0.1, 0.7])
@pytest.mark.parametrize("kind", [CRATE, ViT])
def test_rates_of_all_tokens_are_the_formula(kind: type[CRATE] | type[ViT], eps: float) -> None:
    encoder, x = random_encoder(kind, registers=2), images(3)
    rows, seen = layer_rates(encoder, x, eps=eps), stream(encoder, x)
    assert len(rows) == 3 and seen[0][1].shape == (3, 7, 12)
    for row, (_, output) in zip(rows, seen, strict=True):
        assert row["rate"] == pytest.approx(sum(by_hand(z, eps) for z in output) / 3, rel=1e-9)
        assert ("before" in row) == (kind is CRATE)


def test_compression_and_sparsity_are_the_formulas() -> None:
    crate, x = random_encoder(CRATE), images(3)
    for row, (tokens, output), block in zip(layer_rates(crate, x), stream(crate, x), crate.blocks, strict=True):
        with torch.no_grad():
            after = tokens + block.attn(block.norm1(tokens))
            expected = []
            for z in (tokens, after):
                bases = block.attn.subspaces.weight.split(4)  # U_kᵀ, [4, 12] each
                expected.append(sum(by_hand(image @ u.T, 0.1) for image in block.norm1(z) for u in bases) / 3)
        assert row["before"] == pytest.approx(expected[0], rel=1e-5)  # the projection itself is in float32
        assert row["after"] == pytest.approx(expected[1], rel=1e-5)
        assert row["nonzero"] == output.count_nonzero().item() / output.numel()
        assert 0 < row["nonzero"] < 1


def test_rows_of_a_batch_are_means_over_its_images() -> None:
    crate, x = random_encoder(CRATE), images(3)
    whole, alone = layer_rates(crate, x), [layer_rates(crate, image[None]) for image in x]
    for i, row in enumerate(whole):
        assert row["rate"] == pytest.approx(sum(rows[i]["rate"] for rows in alone) / 3, rel=1e-6)


# --- manners ------------------------------------------------------------------------------------------------------


def test_the_encoder_is_left_as_it_was() -> None:
    crate = random_encoder(CRATE, registers=1).train()
    layer_rates(crate, images(2))
    assert crate.training and not any(block._forward_hooks for block in crate.blocks)
    assert all(p.grad is None and p.requires_grad for p in crate.parameters())
    with pytest.raises(RuntimeError):
        layer_rates(crate, torch.zeros(2, 3, 8, 8))  # three channels
    assert crate.training and not any(block._forward_hooks for block in crate.blocks)


def test_what_cannot_be_measured_is_refused() -> None:
    class Blockless(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

    with pytest.raises(InputError, match="Blockless has none"):
        layer_rates(Blockless(), images(1))
    with pytest.raises(ValueError, match="eps > 0, got 1 images and eps 0"):
        layer_rates(random_encoder(CRATE), images(1), eps=0)
    with pytest.raises(ValueError, match="got 0 images"):
        layer_rates(random_encoder(CRATE), images(0))


def grey_source(count: int) -> ArraySource:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    return ArraySource("noise", pixels, [str(i) for i in range(count)])


def prepared_encoder(kind: type[CRATE] | type[ViT]) -> CRATE | ViT:
    encoder = random_encoder(kind)
    encoder.preprocess = Preprocess(resize=8, crop=8, channels=1, mean=(0.5,), std=(0.25,))
    return encoder


@pytest.mark.parametrize(("count", "measured"), [(5, 5), (70, 64)])
def test_a_row_holds_the_rates_of_prepared_images(count: int, measured: int) -> None:
    encoder, source = prepared_encoder(CRATE), grey_source(count)
    assert isinstance(encoder, CRATE)
    row = layer_row(encoder, source)
    assert (row["data"], row["settings"]) == ("noise", {"images": measured, "eps": 0.1})
    assert [layer["layer"] for layer in row["results"]] == [1, 2, 3]
    if count == measured:
        inputs = (torch.stack([source.read(i) for i in range(count)]) / 255 - 0.5) / 0.25
        for layer, expected in zip(row["results"], layer_rates(encoder, inputs), strict=True):
            assert layer["rate"] == pytest.approx(expected["rate"], rel=1e-6)
            assert layer["before"] == pytest.approx(expected["before"], rel=1e-6)
            assert layer["after"] == pytest.approx(expected["after"], rel=1e-6)
            assert layer["nonzero"] == pytest.approx(expected["nonzero"])


def test_the_rates_of_a_crate_are_kept_in_its_run_and_of_no_other_encoder(tmp_path: Path) -> None:
    keep_layer_rates(tmp_path, prepared_encoder(ViT), grey_source(3), root="noise/")
    assert not (tmp_path / FILE).exists()
    for _ in range(2):
        keep_layer_rates(tmp_path, prepared_encoder(CRATE), grey_source(3), root="noise/")
    (row,) = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert (row["protocol"], row["root"], len(row["results"])) == ("white-box", "noise/", 3)


@pytest.mark.slow
def test_a_compiled_encoder_is_measured_as_it_is_without(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whether hooks are called is decided by the tracing; what a C++ compiler then makes of it takes half a minute.
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    encoder = random_encoder(CRATE)
    expected = layer_rates(encoder, images(2))
    said: list[str] = []
    compile_blocks([encoder], autocast=torch.autocast("cpu", enabled=False), log=said.append)
    with torch.no_grad():
        encoder(images(2))  # compiled without hooks, so that code without them lies ready
    assert layer_rates(encoder, images(2)) == expected
    assert encoder.compiled and said == []
