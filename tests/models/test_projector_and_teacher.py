"""Embeddings are unit vectors in view order; the teacher is a moving average that never trains."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from encoders import made
from simdino.contracts import Views, unit
from simdino.models.projector import Embedder, Projector, UnitRows, make_teacher, update_teacher
from simdino.models.vit import ViT


def make_embedder() -> Embedder:
    encoder = made(ViT, image_size=8, patch_size=4, in_chans=1, embed_dim=16, depth=2, num_heads=2, drop_path=0.5)
    return Embedder(encoder, Projector(embed_dim=16, hidden_dim=24, out_dim=6))


def make_views(*, local: bool = True) -> Views:
    return Views(
        global_views=torch.randn(2, 5, 1, 8, 8), local_views=torch.randn(3, 5, 1, 4, 4) if local else None,
        ids=torch.arange(5), keys=torch.arange(5) * 2**40, indices=torch.arange(5) + 10,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_projector_gives_unit_vectors_in_float32_or_better(dtype: torch.dtype) -> None:
    projector = Projector(embed_dim=16, hidden_dim=32, out_dim=8).to(dtype)
    z = projector(torch.randn(3, 4, 16, dtype=dtype))
    assert z.shape == (3, 4, 8)
    assert z.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(3, 4, dtype=z.dtype), rtol=0, atol=1e-6)


def test_projector_gives_unit_float32_vectors_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = Projector(embed_dim=16, hidden_dim=32, out_dim=8)(torch.randn(3, 16))
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(3), rtol=0, atol=1e-6)


def test_a_zero_vector_stays_zero_with_a_finite_gradient() -> None:
    z = torch.zeros(2, 3, requires_grad=True)
    unit(z).sum().backward()
    assert not unit(z).any() and z.grad.isfinite().all()


def test_projector_is_linear_gelu_three_times_without_the_last_gelu() -> None:
    projector = Projector(embed_dim=4, hidden_dim=8, out_dim=3)
    x = torch.randn(5, 4)
    first, second, third = (layer for layer in projector.layers if isinstance(layer, nn.Linear))
    gelu = nn.functional.gelu
    expected = gelu(gelu(x @ first.weight.T + first.bias) @ second.weight.T + second.bias) @ third.weight.T + third.bias
    torch.testing.assert_close(projector(x), expected / expected.norm(dim=-1, keepdim=True))
    assert len(projector.layers) == 5


@pytest.mark.parametrize(
    ("layers", "shapes"), [(1, [(3, 4)]), (2, [(8, 4), (3, 8)]), (4, [(8, 4), *[(8, 8)] * 2, (3, 8)])]
)
def test_a_projector_has_as_many_layers_as_said(layers: int, shapes: list[tuple[int, int]]) -> None:
    projector = Projector(embed_dim=4, hidden_dim=8, out_dim=3, layers=layers)
    assert [tuple(p.shape) for p in projector.parameters() if p.ndim > 1] == shapes
    assert len(projector.layers) == 2 * layers - 1
    x = torch.randn(5, 4)
    if layers == 1:
        linear = x @ projector.layers[0].weight.T + projector.layers[0].bias
        torch.testing.assert_close(projector(x), linear / linear.norm(dim=-1, keepdim=True))


def test_a_projector_without_layers_gives_the_class_tokens_unit_length() -> None:
    x, projector = torch.randn(3, 4, 16), Projector(embed_dim=16, hidden_dim=32, out_dim=8, layers=0)
    assert not list(projector.parameters())
    torch.testing.assert_close(projector(x), F.normalize(x, dim=-1))


def test_embeddings_keep_the_order_of_views_and_images() -> None:
    network, views = make_embedder(), make_views()
    with torch.no_grad():
        out = network(views)
        assert out.cls.shape == (5, 5, 6) and out.backbone.shape == (5, 5, 16)
        assert torch.equal(out.indices, views.indices)
        for v, image in ((0, 3), (1, 0), (2, 4), (4, 1)):
            pixels = views.global_views[v, image] if v < 2 else views.local_views[v - 2, image]
            keys = views.keys[image : image + 1] + v
            alone = network.encoder(pixels[None], keys=keys).cls[0]
            torch.testing.assert_close(out.backbone[v, image], alone, rtol=0, atol=1e-5)
            torch.testing.assert_close(out.cls[v, image], network.projector(alone), rtol=0, atol=1e-5)


def test_a_teacher_sees_global_views_only_and_drops_nothing() -> None:
    network, views = make_embedder(), make_views()
    with torch.no_grad():
        out = network(views, student=False)
        assert out.cls.shape == (2, 5, 6)
        plain = network.encoder(views.global_views.flatten(0, 1)).cls.unflatten(0, (2, 5))
        torch.testing.assert_close(out.backbone, plain, rtol=0, atol=1e-6)


def test_embeddings_without_local_views() -> None:
    assert make_embedder()(make_views(local=False)).cls.shape == (2, 5, 6)


# --- teacher ------------------------------------------------------------------------------------------------------


def test_teacher_is_a_frozen_copy_in_eval_mode() -> None:
    student = make_embedder().train()
    teacher = make_teacher(student)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    assert student.training and all(p.requires_grad for p in student.parameters())
    for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        assert torch.equal(mine, theirs) and mine.data_ptr() != theirs.data_ptr()


def test_teacher_after_k_updates_is_the_closed_form() -> None:
    """With a student at rest, teacher_k = m^k teacher_0 + (1 - m^k) student."""
    student, momentum, k = make_embedder().double(), 0.9, 7
    teacher = make_teacher(make_embedder().double())
    start = [p.clone() for p in teacher.parameters()]
    for _ in range(k):
        update_teacher(teacher, student, momentum=momentum)
    for mine, before, theirs in zip(teacher.parameters(), start, student.parameters(), strict=True):
        expected = momentum**k * before + (1 - momentum**k) * theirs
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-14)
        assert mine.grad is None and not mine.requires_grad


@pytest.mark.parametrize(("momentum", "follows"), [(1.0, False), (0.0, True)])
def test_momentum_one_stays_and_momentum_zero_copies(momentum: float, follows: bool) -> None:
    student, teacher = make_embedder(), make_teacher(make_embedder())
    start = [p.clone() for p in teacher.parameters()]
    update_teacher(teacher, student, momentum=momentum)
    for mine, before, theirs in zip(teacher.parameters(), start, student.parameters(), strict=True):
        assert torch.equal(mine, theirs if follows else before)


def test_a_teacher_with_batch_norm_keeps_statistics_of_its_own() -> None:
    student = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    teacher = make_teacher(student, batch_norm=True)
    assert teacher[1].training and not any(p.requires_grad for p in teacher.parameters())
    student(torch.randn(8, 2) + 3)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    update_teacher(teacher, student, momentum=0.5)
    assert teacher[1].num_batches_tracked == 0
    teacher(torch.randn(8, 2) - 3)
    assert teacher[1].num_batches_tracked == 1
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_unit_rows_are_those_of_normalize_with_its_gradient() -> None:
    torch.manual_seed(0)
    rows, towards = torch.randn(5000, 7, dtype=torch.float64), torch.randn(5000, 7, dtype=torch.float64)
    ours, theirs = (rows.clone().requires_grad_() for _ in range(2))
    for found, of in ((UnitRows.apply(ours), ours), (F.normalize(theirs, dim=-1), theirs)):
        assert torch.allclose(found, rows / rows.square().sum(1, keepdim=True).sqrt(), atol=1e-14)
        (found * towards).sum().backward()
        assert of.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-12, rtol=0)
