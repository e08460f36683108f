"""The losses on plain tensors are those of a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from simdino.contracts import Embeddings, InputError, Logits, identity, unit
from simdino.losses import DINO, SimDINO, dino, simdino

GLOBAL, LOCAL, BATCH, DIM, PROTOTYPES = 2, 3, 12, 8, 20


def features(views: int, seed: int, width: int = DIM) -> Tensor:
    return torch.randn(views, BATCH, width, generator=torch.Generator().manual_seed(seed))


def embeddings(x: Tensor, logits: Logits | None = None) -> Embeddings:
    return Embeddings(cls=unit(x), backbone=x, indices=torch.arange(BATCH), logits=logits)


@pytest.mark.parametrize("settings", [{}, {"gamma": "released", "rate_on": "mean"}, {"gamma": 0.3}, {"lift": 0.0}])
@pytest.mark.parametrize("local", [0, LOCAL])
def test_simdino_is_the_loss_of_a_run(settings: dict[str, Any], local: int) -> None:
    student, teacher = features(GLOBAL + local, 1).requires_grad_(), features(GLOBAL, 2)
    lift = settings.get("lift", 3.0 if settings.get("gamma", "balanced") == "balanced" else 0.0)
    sizes = {"batch": BATCH, "dim": DIM, "global_views": GLOBAL, "local_views": local, "eps": 0.05**0.5}
    expected = simdino.SimDINO(**{**sizes, **settings, "lift": lift})(embeddings(student), embeddings(teacher)).total
    for given in (student, list(student)):
        found = SimDINO(**settings)(given, teacher)
        assert found.item() == pytest.approx(expected.item(), rel=1e-12)
        gradients = [torch.autograd.grad(loss, student, retain_graph=True) for loss in (found, expected)]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("centering", ["centering", "sinkhorn"])
def test_dino_is_the_loss_of_a_run_and_moves_its_center(centering: Any) -> None:
    weight = torch.randn(PROTOTYPES, DIM, generator=torch.Generator().manual_seed(3))
    run = dino.DINO(
        batch=BATCH, dim=DIM, prototypes=PROTOTYPES, global_views=GLOBAL, local_views=LOCAL, centering=centering
    )  # fmt: skip
    plain = DINO(PROTOTYPES, centering=centering)
    for step in range(3):
        s, t = unit(features(GLOBAL + LOCAL, 10 + step)).requires_grad_(), unit(features(GLOBAL, 20 + step))
        student, teacher = (embeddings(x, Logits(features=x, weight=weight)) for x in (s, t))
        ahead = run.global_statistics([teacher], None, temperature=0.04, all_reduce=identity)[0]
        expected = run(student, teacher, ahead).total
        found = plain(s @ weight.T, t @ weight.T)
        assert float(found) == pytest.approx(float(expected), rel=1e-6)
        torch.testing.assert_close(torch.autograd.grad(found, s)[0], torch.autograd.grad(expected, s)[0])
        run.update_buffers([teacher], all_reduce=identity)
        torch.testing.assert_close(plain.center, run.buffers["center"])
    before = plain.eval().center.clone()
    plain(s @ weight.T, t @ weight.T)
    assert torch.equal(before, plain.center)


@pytest.mark.parametrize("parts", [[(5, 7), (7, 12), (0, 5)]])
def test_parts_of_a_batch_in_processes_have_the_loss_of_the_batch(parts: list[tuple[int, int]]) -> None:
    student, teacher = features(GLOBAL + LOCAL, 1), features(GLOBAL, 2)
    whole = float(SimDINO()(student, teacher))
    sums: list[list[Tensor]] = []
    for _ in range(4):  # each round every process knows one more sum of all
        seen: list[list[Tensor]] = [[] for _ in parts]
        found = []
        for process, (first, last) in enumerate(parts):

            def all_reduce(x: Tensor, own: list[Tensor] = seen[process]) -> Tensor:
                own.append(x.detach())
                return sums[len(own) - 1][0] if len(own) <= len(sums) else x

            found.append(float(SimDINO(all_reduce=all_reduce)(student[:, first:last], teacher[:, first:last])))
        if len(sums) < len(seen[0]):
            at = len(sums)
            sums.append([torch.stack([one[at] for one in seen]).sum(0)])
    assert found == pytest.approx([whole] * len(parts), rel=1e-9)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [(features(2, 1)[0], features(2, 2)), (features(1, 1), features(2, 2)), (features(3, 1), features(2, 2, width=9))],
)
def test_other_shapes_are_refused_in_one_line(student: Tensor, teacher: Tensor) -> None:
    with pytest.raises(InputError, match=r"a loss takes the student's embeddings \[V, B, d\]"):
        SimDINO()(student, teacher)
    with pytest.raises(InputError, match="DINO has 4 prototypes"):
        DINO(4)(features(2, 1), features(2, 2))
