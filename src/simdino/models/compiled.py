"""torch.compile for the blocks of encoders: norms, activations and residual sums in one pass each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from simdino.models.encoder import Encoder
from simdino.models.vit import PatchTransformer


def compile_blocks(encoders: Sequence[Encoder], *, autocast: torch.autocast, say: Callable[[str], None]) -> None:
    """Have the blocks of our transformers run compiled; where that fails they stay as they are, and it is said why.

    Blocks instead of whole encoders: all of them share what is compiled for one, and the interpolation of positions
    cannot be compiled (aten::_upsample_bicubic2d_aa_backward, torch 2.14). Shapes are taken as fixed unless drop path
    changes them from batch to batch. Tried here, forward and backward, so that no step is the first to fail.
    """
    ours = [encoder for encoder in encoders if isinstance(encoder, PatchTransformer)]
    for encoder in ours:
        for block in encoder.blocks:
            block.compile(dynamic=None if any(encoder.rates) else False)
        encoder.compiled = True
    try:
        for encoder in ours:
            tokens = torch.zeros(2, 1 + encoder.grid**2, encoder.embed_dim, device=encoder.pos_embed.device)
            learns = encoder.pos_embed.requires_grad
            with torch.set_grad_enabled(learns):
                with autocast:
                    out = encoder.blocks[0](tokens)
                if learns:
                    out.sum().backward()
                    encoder.zero_grad(set_to_none=True)
    except Exception as error:  # what a compiler can fail with has no common type
        for encoder in ours:
            for block in encoder.blocks:
                plain(block)
            encoder.compiled = False
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        say(f"warning: --compile does not work here and is left out: {reason}")


def plain(block: nn.Module) -> None:
    """Undo `block.compile()`, for which torch has no call."""
    block._compiled_call_impl = None


def eager(encoder: Encoder) -> AbstractContextManager[object]:
    """A context without compiled code: evaluations have other numbers of images than steps, and each would be compiled
    anew."""
    return torch.compiler.set_stance("force_eager") if encoder.compiled else nullcontext()
