"""What the blocks do to the tokens of an image: the layer-wise analysis of CRATE (Yu et al. 2023, arXiv 2306.01129),
with the coding rate that the loss has. No labels are read and nothing is trained.

Each measured set of vectors is one image's tokens, scaled to unit length, so that a rate tells how they spread and not
how long they are, and lies between `losses.coding_rate.rate_floor` and `rate_ceiling` at every depth.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simdino.contracts import InputError, unit
from simdino.data.base import Source, subset
from simdino.features.extract import inputs, prepared
from simdino.losses.coding_rate import double, rate_from_moments, second_moments
from simdino.models.crate import CRATE, WhiteBoxBlock
from simdino.models.encoder import Encoder, evaluating
from simdino.runs.evaluations import keep

IMAGES = 64  # enough for means over images to be steady
EPS = 0.1  # the distortion of the curves in CRATE's paper


@torch.no_grad()
def layer_rates(encoder: Encoder, images: Tensor, *, eps: float = EPS) -> list[dict[str, float]]:
    """The mean over images of `rate`, R of all the tokens of an image, after every block of an encoder. A block of
    CRATE has besides:

        before    R^c: the rates of the block's input in its subspaces, summed over them
        after     R^c of the same subspaces after the block's attention; lower if it compresses
        nonzero   share of the entries of the block's output that are not 0

    images: [N, C, H, W], prepared as the encoder's `preprocess` says. eps: the distortion; the curves in CRATE's paper
    are `before` and `nonzero` at 0.1 (its code calls eps² eps).
    Raises InputError for an encoder without `blocks`, ValueError where eps is not positive or there is no image.
    """
    if eps <= 0 or len(images) == 0:
        raise ValueError(f"layer_rates takes images and eps > 0, got {len(images)} images and eps {eps}")
    blocks = getattr(encoder, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise InputError(f"layer-wise rates need an encoder with blocks of tokens; {type(encoder).__name__} has none")
    rows: list[dict[str, float]] = []

    def measure(block: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        row = {"rate": mean_rate(output[:, None], eps=eps)}
        if isinstance(block, WhiteBoxBlock):
            (x,) = inputs
            row["before"] = mean_rate(block.subspace_codes(x), eps=eps)
            row["after"] = mean_rate(block.subspace_codes(block.compress(x)), eps=eps)
            row["nonzero"] = float((output != 0).double().mean())
        rows.append(row)

    hooks = [block.register_forward_hook(measure) for block in blocks]
    try:
        with evaluating(encoder):  # compiled blocks may pass hooks by
            encoder(images.to(encoder.device))
    finally:
        for hook in hooks:
            hook.remove()
    return rows


def mean_rate(z: Tensor, *, eps: float) -> float:
    """The mean over images of the sum over subspaces of R of tokens [N, K, T, d], each scaled to unit length."""
    z = unit(double(z))
    # image by image: all the d x d moments of a batch at once would need more memory than its forward pass
    sums = [rate_from_moments(second_moments(image), n=z.shape[-2], eps=eps)[0].sum() for image in z]
    return float(torch.stack(sums).mean())


def keep_layer_rates(run: Path, encoder: Encoder, source: Source, *, root: str) -> None:
    """Keep what each block of a CRATE does to images of the run's data in its evaluations.jsonl; of any other encoder,
    nothing. root: where the data are."""
    if isinstance(encoder, CRATE):
        keep(run, {"protocol": "white-box", "root": root, "trained_on": True, **layer_row(encoder, source)})


def layer_row(encoder: CRATE, source: Source) -> dict[str, Any]:
    """`layer_rates` of 64 images at most, as a line of evaluations.jsonl without its place: layers count from 1."""
    readable = torch.cat([images for _, images, _ in prepared(subset(source, IMAGES), encoder.preprocess)])
    layers = layer_rates(encoder, inputs(encoder, readable)) if len(readable) else []
    results = [{"layer": i, **layer} for i, layer in enumerate(layers, start=1)]
    return {"data": source.name, "settings": {"images": len(readable), "eps": EPS}, "results": results}
