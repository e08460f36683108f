"""Stochastic depth: a function of an image's key, with the right probabilities."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from torch import Tensor

from encoders import made
from simdino.contracts import Views
from simdino.models.layers import Block, DropPathRows
from simdino.models.projector import Embedder, Projector
from simdino.models.vit import ViT
from simdino.rng import sample_keys

DEPTH, RATE = 4, 0.6
RATES = [0.0, 0.2, 0.4, 0.6]


def make_vit(drop_path: float = RATE) -> ViT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = made(
            ViT, image_size=4, patch_size=2, in_chans=1, embed_dim=8, depth=DEPTH, num_heads=2, drop_path=drop_path
        )
        for parameter in vit.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape)
    return vit.double()


def keys(count: int, *, seed: int = 0) -> Tensor:
    return torch.from_numpy(sample_keys(seed, 0, range(count)))


def images(count: int, size: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 1, size, size, generator=generator, dtype=torch.float64)


def dense(kept: DropPathRows | None, count: int) -> Tensor:
    """The factor of every image."""
    if kept is None:
        return torch.ones(count, dtype=torch.float64)
    return torch.zeros(count, dtype=torch.float64).index_fill(0, kept.rows, kept.factor)


def factors(vit: ViT, some_keys: Tensor) -> Tensor:
    """What the blocks are told to multiply their branches with, [depth, 2, N]."""
    seen: list[Tensor] = []

    def look(_: object, __: object, kwargs: dict[str, list[DropPathRows | None]]) -> None:
        seen.append(torch.stack([dense(kept, len(some_keys)) for kept in kwargs["kept"]]))

    hooks = [block.register_forward_pre_hook(look, with_kwargs=True) for block in vit.blocks]
    with torch.no_grad():
        vit(images(1).expand(len(some_keys), -1, -1, -1), keys=some_keys, patches=False)
    for hook in hooks:
        hook.remove()
    return torch.stack(seen)


def test_branches_are_kept_with_their_probability_and_scaled_by_its_inverse() -> None:
    count = 4096
    kept = factors(make_vit(), keys(count))
    assert kept.shape == (DEPTH, 2, count)
    for block, rate in enumerate(RATES):
        keep = 1 - rate
        allowed = torch.tensor([0.0, 1 / keep] if rate else [1.0], dtype=torch.float64)
        torch.testing.assert_close(kept[block].unique(), allowed)
        for branch in range(2):
            share = (kept[block, branch] > 0).double().mean().item()
            assert abs(share - keep) <= 4 * sqrt(keep * rate / count)


def test_branches_of_blocks_images_and_seeds_are_independent() -> None:
    count = 4096
    kept = torch.cat([factors(make_vit(), keys(count, seed=seed))[1:].flatten(0, 1) for seed in (0, 1)])
    correlations = torch.corrcoef(torch.cat([kept, kept.roll(1, dims=1)])) - torch.eye(2 * len(kept))
    assert correlations.abs().max() < 5 / sqrt(count)


def test_mean_over_keys_is_the_branch_itself() -> None:
    """E[x + branch * factor] = x + branch, the point of the scaling: exact in one block."""
    kept = factors(make_vit(), keys(4096))
    assert (kept.mean(-1) - 1).abs().max() < 4 * sqrt(RATE / (1 - RATE) / 4096)


def test_only_the_key_decides() -> None:
    vit, x, own = make_vit(), images(16), keys(16)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = vit(x, keys=own).cls
        torch.testing.assert_close(vit(x[order], keys=own[order]).cls, whole[order], rtol=0, atol=1e-12)
        pieces = torch.cat([vit(a, keys=b).cls for a, b in zip(x.split(5), own.split(5), strict=True)])
        torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-12)
        torch.manual_seed(1)
        assert torch.equal(vit(x, keys=own).cls, whole)
        other = vit(x, keys=keys(16, seed=1)).cls
    assert (other - whole).abs().max() > 0.01


def test_equal_keys_drop_equal_branches() -> None:
    kept = factors(make_vit(), keys(1).expand(8))
    assert torch.equal(kept, kept[..., :1].expand_as(kept))


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_dropped_without_keys_or_without_a_rate(training: bool) -> None:
    dropping, plain = make_vit().train(training), make_vit(0.0).train(training)
    x = images(6)
    with torch.no_grad():
        expected = plain(x).cls
        assert torch.equal(dropping(x).cls, expected)
        assert torch.equal(plain(x, keys=keys(6)).cls, expected)
        assert not torch.allclose(dropping(x, keys=keys(6)).cls, expected)


@pytest.mark.parametrize("queries", [None, 1])
@pytest.mark.parametrize("rows", [([1, 2], [2]), ([0, 1, 2], []), ([], [0])])
def test_a_factor_scales_its_own_branch_of_its_own_image(
    rows: tuple[list[int], list[int]], queries: int | None
) -> None:
    block = Block(embed_dim=8, num_heads=2, layer_scale=0.5).double()
    x = torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    kept = [DropPathRows(rows=torch.tensor(some, dtype=torch.int64), factor=2.0 + i) for i, some in enumerate(rows)]
    first, second = (dense(some, 3)[:, None, None] for some in kept)
    after = x + first * block.ls1(block.attn(block.norm1(x)))
    expected = (after + second * block.ls2(block.mlp(block.norm2(after))))[:, :queries]
    out = block(x, kept=kept, queries=queries)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    leaves = [x, *block.parameters()]
    ours, theirs = (torch.autograd.grad(y.square().sum(), leaves, retain_graph=True) for y in (out, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_the_dropped_are_not_computed() -> None:
    block, seen = Block(embed_dim=8, num_heads=2, layer_scale=None), []
    block.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    block.attn.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    kept = [DropPathRows(rows=torch.tensor(rows), factor=1.5) for rows in ([0, 4], [1, 2, 3])]
    block(torch.randn(5, 3, 8), kept=kept)
    assert seen == [2, 3]


# --- views --------------------------------------------------------------------------------------------------------


def embedder() -> Embedder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Embedder(make_vit(), Projector(embed_dim=8, hidden_dim=16, out_dim=4).double())


def views(count: int) -> Views:
    """The same pixels in every view, so that only drop path tells them apart."""
    own = keys(count)
    return Views(
        global_views=images(count).expand(2, -1, -1, -1, -1), local_views=images(count, 2).expand(3, -1, -1, -1, -1),
        ids=torch.arange(count), keys=own, indices=torch.arange(count),
    )  # fmt: skip


def test_every_view_of_an_image_draws_its_own_branches() -> None:
    batch = views(32)
    with torch.no_grad():
        out, plain = embedder()(batch).backbone, embedder()(batch, student=False).backbone
    assert len(plain) == 2 and torch.equal(plain[0], plain[1])
    for first, second in ((0, 1), (2, 3), (3, 4)):
        differs = (out[first] - out[second]).abs().amax(-1) > 1e-9
        assert 0.5 < differs.double().mean() <= 1


def test_splitting_a_batch_of_views_leaves_its_embeddings() -> None:
    batch, network = views(12), embedder()
    with torch.no_grad():
        whole, parts = network(batch), [network(part) for part in batch.split(5)]
    for name, axis in (("cls", 1), ("backbone", 1), ("indices", 0)):
        joined = torch.cat([getattr(part, name) for part in parts], dim=axis)
        torch.testing.assert_close(joined, getattr(whole, name), rtol=0, atol=1e-12)
