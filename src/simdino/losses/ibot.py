"""iBOT: the student predicts, from the mask token, the teacher's distribution of the patch that was hidden.

    L = 1/(G n) sum over global crops 1/max(1, |M|) sum over masked patches of - sum_k t[k] log s[k]

Source: Zhou et al. 2021, as in DINOv2 (ibot_patch_loss.py at b8931f7): every crop counts in 1/(G n), masked or not.
"""

from __future__ import annotations

from torch import Tensor

from simdino.contracts import Embeddings, Logits, Patches
from simdino.losses.cross_entropy import cross_entropy_sum
from simdino.losses.targets import Targets


def masked_patches(embeddings: Embeddings) -> Patches:
    """The masked patches, which these embeddings must have."""
    if embeddings.patches is None:
        raise ValueError("this loss needs prototype logits of masked patches, and the views have no masks")
    return embeddings.patches


def patch_logits(embeddings: Embeddings) -> Logits:
    """The prototype logits [1, m, K] of the masked patches, which these embeddings must have."""
    patches = masked_patches(embeddings)
    if patches.logits is None:
        raise ValueError("this loss needs prototype logits of masked patches, and their head has no prototypes")
    return patches.logits


def masked_cross_entropy_sum(patches: Patches, targets: Targets, *, temperature: float) -> Tensor:
    """The weighted sum over masked patches of their cross-entropy, float32 or better. targets: [1, m, K]."""
    assert patches.logits is not None
    return cross_entropy_sum(patches.logits, targets, temperature=temperature, across=False, weights=patches.weights)
