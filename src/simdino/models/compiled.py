"""torch.compile for the blocks of encoders: it fuses norms, activations and residual sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch._dynamo

from simdino.models.encoder import Encoder
from simdino.models.vit import PatchTransformer

SHAPES = 64
"""The number of token shapes that may be compiled: for resolutions, with and without a gradient, all tokens and the
class token, and micro-batches. torch's own limit is 8, beyond which it goes on uncompiled."""


def compile_blocks(encoders: Sequence[Encoder], *, autocast: torch.autocast, log: Callable[[str], None]) -> None:
    """Compile the blocks of our transformers; where that fails they stay as they are, and a line says why.

    Blocks are compiled instead of whole encoders: all blocks share one compiled code, and the interpolation of
    positions cannot be compiled (aten::_upsample_bicubic2d_aa_backward, torch 2.14). Each shape is compiled once,
    unless drop path changes the shapes from batch to batch: then one code serves all, so that a resumed run uses the
    same. A forward and backward of two small images is tried here: a missing compiler is found before step 1."""
    torch._dynamo.config.recompile_limit = SHAPES
    ours = [encoder for encoder in encoders if isinstance(encoder, PatchTransformer)]
    for encoder in ours:
        for block in encoder.blocks:
            block.compile(dynamic=any(encoder.rates))
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
    except Exception as error:  # a compiler's errors have no common type
        for encoder in ours:
            for block in encoder.blocks:
                block._compiled_call_impl = None  # compile() set it; torch has no call that undoes it
            encoder.compiled = False
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        log(f"warning: --compile does not work here and is left out: {reason}")


def eager(encoder: Encoder) -> AbstractContextManager[object]:
    """Return a context without compiled code: evaluations have other batch sizes, and each would be compiled anew."""
    return torch.compiler.set_stance("force_eager") if encoder.compiled else nullcontext()
