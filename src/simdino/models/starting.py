"""The encoder before step 1: its weights, and its blocks compiled."""

from collections.abc import Sequence
from functools import partial

import torch
import torch._dynamo
from torch.utils.checkpoint import checkpoint

from simdino.config import Config
from simdino.contracts import InputError, Preprocess
from simdino.feedback import Log
from simdino.models.adapters import TIMM, ModuleEncoder
from simdino.models.catalogue import make_encoder
from simdino.models.encoder import Encoder, evaluating
from simdino.models.resize import Weights
from simdino.models.vit import PatchTransformer
from simdino.models.weights import load_encoder, load_strictly

SHAPES = 64
"""The number of token shapes that may be compiled: for resolutions, with and without a gradient, all tokens and the
class token, and micro-batches. torch's own limit is 8, beyond which it goes on uncompiled."""


def starting_encoder(config: Config, preprocess: Preprocess, *, fresh: bool) -> Encoder:
    """Return the encoder before step 1: random, or with the weights in --init. Raises InputError where they do not
    fit."""
    try:
        encoder = make_encoder(config.encoder, preprocess)
    except ValueError as error:  # of sizes that do not go together
        raise InputError(f"encoder {config.encoder.name}: {error}") from None
    if encoder.batch_norm and config.speed.micro_batch is not None and config.speed.micro_batch < config.run.batch:
        raise InputError(
            f"--micro-batch {config.speed.micro_batch}: {config.encoder.name} normalises over its batch, so that "
            f"micro-batches would change the result; leave it out, or take an encoder without batch normalisation"
        )
    if isinstance(encoder, ModuleEncoder) and config.views.local_views:
        encoder.probe(config.views.local_size)
    if config.views.mask_share:
        check_masks(encoder)
    elif config.encoder.mask_token:
        token = encoder.get_parameter(encoder.mask_token_name)  # it comes with weights; nothing here trains it
        token.requires_grad_(False)
    if config.run.init is not None and fresh:
        timm = config.encoder.name.startswith(TIMM)
        tensors = load_encoder(
            config.run.init,
            image_size=config.encoder.image_size,
            patch_size=None if timm else config.encoder.patch_size,
            channels=config.data.channels,
            positions=None if timm else config.encoder.positions,
        ).state_dict()
        if config.encoder.mask_token:
            name = encoder.mask_token_name
            tensors.setdefault(name, encoder.state_dict()[name])
        weights = Weights(origin=config.run.init, config=config.encoder, preprocess=preprocess, tensors=tensors)
        load_strictly(encoder, weights)
    return encoder


def recompute_blocks(encoder: Encoder) -> None:
    """Keep of each block its input alone, and compute the block anew when the gradient comes to it.

    No block draws random numbers, so both times give the same. Raises InputError for an encoder without blocks, and for
    one whose running statistics would see each batch twice."""
    if encoder.batch_norm or not encoder.stages():
        why = "it normalises over its batch" if encoder.batch_norm else "it has no blocks that are known"
        raise InputError(f"--recompute is not for {encoder.config.name}: {why}; leave it out, or take a vit or conv")
    for block in encoder.stages():
        again = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        block.forward = again  # inside of the block's hooks, with which FSDP brings its weights together


def check_masks(encoder: Encoder) -> None:
    """Raise InputError for an encoder whose patch tokens are the same when all patches of an image are masked."""
    size = encoder.config.image_size
    image = torch.linspace(-1, 1, encoder.in_chans * size**2).view(1, encoder.in_chans, size, size)
    masks = torch.ones(1, (size // encoder.config.patch_size) ** 2, dtype=torch.bool)
    with evaluating(encoder), torch.no_grad():
        seen, hidden = encoder(image).patches, encoder(image, masks=masks).patches
    if seen is None or torch.equal(seen, hidden):
        raise InputError(
            f"encoder {encoder.config.name} does not hide masked patches, on which the objective would be vacuous: it "
            f"must put its mask token in their place, or not read mask_token (or --set views.mask_share=0)"
        )


def compile_blocks(encoders: Sequence[Encoder], *, autocast: torch.autocast, log: Log) -> None:
    """Compile the blocks of our transformers; where that fails they stay as they are, and a line says why.

    Blocks are compiled instead of whole encoders: all blocks share one compiled code, and the interpolation of
    positions cannot be compiled (aten::_upsample_bicubic2d_aa_backward, torch 2.14). Each shape is compiled once,
    unless drop path changes the shapes from batch to batch: then one code serves all, so that a resumed run uses the
    same. A forward and backward of two small images is tried here: a missing compiler is found before step 1."""
    torch._dynamo.config.recompile_limit = SHAPES
    ours = [encoder for encoder in encoders if isinstance(encoder, PatchTransformer)]
    for encoder in ours:
        for block in encoder.blocks:
            block.compile(dynamic=any(encoder.rates or ()))
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
