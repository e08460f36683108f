"""How alike the views of one image are: sums over samples, ready to be reduced."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from simdino.contracts import Embeddings
from simdino.losses.coding_rate import double


def pairs(*, global_views: int, local_views: int) -> int:
    """Cross-view pairs: a teacher's global view with every other view of the student."""
    return global_views * (global_views + local_views - 1)


class AlignmentSums(NamedTuple):
    """Sums over images, float64 scalars."""

    distance: Tensor  # ½||z_s - z_t||² over the cross-view pairs of each
    images: Tensor  # 1 for each
    pull: Tensor  # the squared norm of the gradient of -<z_s, z_t> at the student's features


def alignment_sums(student: Embeddings, teacher: Embeddings) -> AlignmentSums:
    """The sums over the images given."""
    s, t = student.cls, teacher.cls
    distances = 0.5 * (s[None] - t[:, None]).square().sum(-1)  # [G, V, B]
    different = ~torch.eye(len(t), len(s), dtype=torch.bool, device=s.device)
    count = double(distances.new_full((), s.shape[1]))
    pulls = torch.einsum("gv,gbd->vbd", different.to(t), t)
    return AlignmentSums(double(distances[different]).sum(), count, double(pulls).square().sum())
