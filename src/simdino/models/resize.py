"""Trained weights adapted to another image size, patch size or number of channels."""

from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional as F

from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.feedback import Log
from simdino.models.layers import resize_positions

KERNEL, POSITIONS, MASK = "patch_embed.proj.weight", "pos_embed", "mask_token"
CONVOLUTIONS = ("patch_embed.weight", "patch_embed.net.patch_embed.weight")
"""The first convolution of our ConvNets and of our hybrids."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """All that an encoder is made of, as read from a file, under our keys."""

    origin: str  # the file or name, for messages
    config: EncoderConfig
    preprocess: Preprocess
    tensors: dict[str, Tensor]


def fitted(
    weights: Weights, *, image_size: int | None, patch_size: int | None, channels: int | None, any_size: bool, log: Log
) -> Weights:
    """Return the weights for another image size, patch size or number of channels; None leaves each as it is. A line is
    printed for every change. Positions are interpolated by the encoder's own rule and stay on the new grid. any_size:
    nothing in the weights depends on the size of images.

    Raises InputError where patches do not divide images, and for encoders that have no patches to resize."""
    config, about, tensors = weights.config, weights.preprocess, dict(weights.tensors)
    size, patch = image_size or config.image_size, patch_size or config.patch_size
    new = replace(
        weights,
        config=replace(config, image_size=size, patch_size=patch),
        preprocess=prepared_for(about, crop=image_size or about.crop, channels=channels or about.channels),
        tensors=tensors,
    )
    if new.preprocess.channels != about.channels and for_convolutions(tensors, new.preprocess.channels, log=log):
        about = new.preprocess
    same_patches = (patch, new.preprocess.channels) == (config.patch_size, about.channels)
    kernel, positions = tensors.get(KERNEL), tensors.get(POSITIONS)
    if same_patches and (any_size or size == config.image_size):
        return new
    if kernel is not None and kernel.ndim != 4:
        kernel = None  # another patch embedding, which fits one patch size only
    if positions is None or not (same_patches or kernel is not None):
        bare = positions is None and not any_size
        raise InputError(
            f"{weights.origin} holds {config.name}, whose weights fit {'images' if bare else 'patches'} of "
            f"{config.image_size if bare else config.patch_size} pixels and {about.channels} channels only: give no "
            f"{'image_size, ' * bare}patch_size or channels"
        )
    grid = config.image_size // config.patch_size
    if positions.shape[1] != 1 + grid**2 or (kernel is not None and kernel.shape[2:] != 2 * (config.patch_size,)):
        own = "" if kernel is None else f"{KERNEL} {tuple(kernel.shape)} and "
        raise InputError(
            f"{own}{POSITIONS} {tuple(positions.shape)} in {weights.origin} are not those of {grid} x {grid} patches "
            f"of {config.patch_size} pixels"
        )
    if size % patch:
        raise InputError(
            f"images of {size} pixels do not divide into patches of {patch} ({weights.origin}): give an image_size "
            f"that is a multiple of the patch size"
        )
    if kernel is not None:
        tensors[KERNEL] = kernel_for(kernel, patch_size=patch, channels=new.preprocess.channels, log=log)
    tensors[POSITIONS] = positions_for(positions, size // patch, config, log=log)
    return new


def for_convolutions(tensors: dict[str, Tensor], channels: int, *, log: Log) -> bool:
    """Adapt the first convolution to so many channels, and the colour of masked patches, where weights are those of a
    ConvNet or a hybrid of ours; return whether they are."""
    found = next((name for name in CONVOLUTIONS if name in tensors), None)
    if found is None:
        return False
    tensors[found] = kernel_for(tensors[found], patch_size=tensors[found].shape[-1], channels=channels, log=log)
    if MASK in tensors and tensors[MASK].ndim == 4:
        tensors[MASK] = tensors[MASK].mean(1, keepdim=True).repeat(1, channels, 1, 1)
    return True


def prepared_for(preprocess: Preprocess, *, crop: int, channels: int) -> Preprocess:
    """Return the preprocessing for images of `crop` pixels, with the short side in proportion, and of any number of
    channels: where that changes, each gets the mean over those before."""
    resize = round(preprocess.resize * crop / preprocess.crop)
    mean, std = preprocess.mean, preprocess.std
    if channels != preprocess.channels:
        mean, std = (fmean(mean),) * channels, (fmean(std),) * channels
    return replace(preprocess, resize=resize, crop=crop, channels=channels, mean=mean, std=std)


def kernel_for(kernel: Tensor, *, patch_size: int, channels: int, log: Log) -> Tensor:
    """Adapt the weights of a patch embedding [D, C, p, p] to [D, channels, patch_size, patch_size]: the mean over its
    channels, times C / channels. An image of equal channels gives the same tokens as before."""
    old_channels, old_size = kernel.shape[1:3]
    if channels != old_channels:
        kernel = kernel.sum(1, keepdim=True).expand(-1, channels, -1, -1) / channels
        log(f"patch kernel brought from {old_channels} channels to {channels}, its sum over them kept")
    if patch_size != old_size:
        kernel = resize_kernel(kernel, patch_size)
        log(f"patch kernel resized from {old_size} x {old_size} to {patch_size} x {patch_size} pixels (pseudo-inverse)")
    return kernel.contiguous()


def resize_kernel(kernel: Tensor, size: int) -> Tensor:
    """Map [D, C, p, p] to [D, C, size, size], so that a resized patch keeps its token as nearly as possible.

    With B the (antialiased bicubic) resizing of a patch, the new weights are the least-squares solution of <B x, w'> =
    <x, w> for every x, pinv(B^T) w: "PI-resize" of FlexiViT (Beyer et al. 2022, arXiv:2212.08013, eq. 5). For larger
    patches it is exact."""
    old = kernel.shape[-1]
    pixels = torch.eye(old**2, dtype=torch.float64).unflatten(1, (1, old, old))
    transposed = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).flatten(1)  # B^T [p p, size size]
    inverse = torch.linalg.pinv(transposed)
    return (kernel.flatten(2).double() @ inverse.mT).unflatten(2, (size, size)).to(kernel.dtype)


def positions_for(positions: Tensor, grid: int, config: EncoderConfig, *, log: Log) -> Tensor:
    """Interpolate a position embedding [1, 1 + g g, D] to [1, 1 + grid grid, D]; the class token's stays."""
    old = config.image_size // config.patch_size
    if grid == old:
        return positions
    cls, patches = positions[:, :1], positions[:, 1:].unflatten(1, (old, old))
    log(f"position embedding resized from {old} x {old} to {grid} x {grid} patches ({config.positions})")
    return torch.cat([cls, resize_positions(patches, (grid, grid), rule=config.positions).flatten(1, 2)], dim=1)
