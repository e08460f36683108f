"""The cross-entropy in chunks: the numbers and gradients of the whole at once, and no tensor larger than a chunk."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from written_out import FixedTargets, Largest

from simdino.contracts import Logits
from simdino.losses import cross_entropy
from simdino.losses.cross_entropy import Centred, chunks, cross_entropy_sum

G, V, N, DIM, K = 2, 5, 13, 7, 11


def make(dtype: torch.dtype = torch.float64) -> tuple[Logits, Centred]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    student = Logits(features=draw(V, N, DIM).requires_grad_(), weight=draw(K, DIM).requires_grad_())
    teacher = Logits(features=draw(G, N, DIM), weight=draw(K, DIM))
    return student, Centred(logits=teacher, center=draw(K), temperature=0.5)


def textbook(student: Logits, targets: Tensor, *, across: bool, weights: Tensor | None) -> Tensor:
    logs = F.log_softmax(student.features @ student.weight.T / 0.1, dim=-1)
    weights = torch.ones(N, dtype=logs.dtype) if weights is None else weights
    pairs = [(g, v) for g in range(len(targets)) for v in range(len(logs)) if (g != v if across else g == v)]
    return -sum((weights[:, None] * targets[g] * logs[v]).sum() for g, v in pairs)


@pytest.mark.parametrize("at_once", [1, 3 * V * K, 5 * V * K, 10_000])
@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_value_and_gradients_are_the_textbooks_whatever_the_chunks(
    monkeypatch: pytest.MonkeyPatch, at_once: int, across: bool, weighted: bool
) -> None:
    monkeypatch.setitem(cross_entropy.AT_ONCE, "cpu", at_once)
    student, targets = make()
    if not across:
        student = Logits(features=student.features[:G].detach().requires_grad_(), weight=student.weight)
    weights = torch.rand(N, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) if weighted else None
    leaves = [student.features, student.weight]
    ours = cross_entropy_sum(student, targets, temperature=0.1, across=across, weights=weights)
    theirs = textbook(student, targets.of(slice(None)), across=across, weights=weights)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    mine, expected = (torch.autograd.grad(3 * total, leaves) for total in (ours, theirs))
    torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-12)


def test_chunks_cover_every_row_once() -> None:
    rows = list(range(100))
    found = [row for part in chunks(100, 2**20, torch.device("cpu")) for row in rows[part]]
    assert found == rows
    assert len(list(chunks(100, 2**30, torch.device("cpu")))) == 100, "one row at a time where one is too much already"
    assert list(chunks(0, 5, torch.device("cpu"))) == []


def test_nothing_larger_than_a_chunk_or_the_prototypes_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, prototypes = 64, 500
    monkeypatch.setitem(cross_entropy.AT_ONCE, "cpu", 2 * 4 * prototypes)
    features = torch.randn(2, rows, DIM, requires_grad=True)
    weight = torch.randn(prototypes, DIM, requires_grad=True)
    teacher = Logits(features=torch.randn(2, rows, DIM), weight=torch.randn(prototypes, DIM))
    targets = Centred(logits=teacher, center=torch.zeros(prototypes), temperature=0.5)
    with Largest() as largest:
        cross_entropy_sum(Logits(features=features, weight=weight), targets, temperature=0.1, across=True).backward()
    assert largest.seen == 2 * 4 * prototypes  # two views of four rows; all logits would be 16 times as many
    assert weight.grad is not None and features.grad is not None


def test_without_a_graph_no_gradient_is_made() -> None:
    student, targets = make(torch.float32)
    with torch.no_grad():
        total = cross_entropy_sum(student, targets, temperature=0.1, across=True)
    assert not total.requires_grad
    given = FixedTargets(classes=targets.of(slice(None)))
    torch.testing.assert_close(cross_entropy_sum(student, given, temperature=0.1, across=True).detach(), total)
