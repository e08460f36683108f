"""What the speed of ours is compared with: the plain textbook versions of views and step, eager and unhurried.

Views: torchvision's v1 transforms on PIL images, as DINO's code composes them (main_dino.py at 7c446df). Step: timm's
ViT, the head, losses and update of SimDINO as written in the paper, loops over views and parameters included.
"""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import transforms as v1

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Blur:
    """Gaussian blur of Pillow by a radius from 0.1 to 2, with a probability."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() > self.probability:
            return image
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


class Views:
    """JPEG -> float views: two global crops and `local_views` local ones."""

    def __init__(self, *, size: int = 224, local_size: int = 96, local_views: int = 10) -> None:
        colours = [
            v1.RandomHorizontalFlip(0.5),
            v1.RandomApply([v1.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            v1.RandomGrayscale(0.2),
        ]
        last = [v1.ToTensor(), v1.Normalize(MEAN, STD)]
        cubic = v1.InterpolationMode.BICUBIC
        wide = v1.RandomResizedCrop(size, (0.4, 1.0), interpolation=cubic)
        narrow = v1.RandomResizedCrop(local_size, (0.05, 0.4), interpolation=cubic)
        solarize = v1.RandomApply([v1.Lambda(ImageOps.solarize)], p=0.2)
        first = v1.Compose([wide, *colours, Blur(1.0), *last])
        second = v1.Compose([wide, *colours, Blur(0.1), solarize, *last])
        local = v1.Compose([narrow, *colours, Blur(0.5), *last])
        self.transforms = [first, second, *[local] * local_views]

    def __call__(self, data: bytes) -> list[Tensor]:
        return self.of(Image.open(io.BytesIO(data)).convert("RGB"))

    def of(self, image: Image.Image) -> list[Tensor]:
        """The views of a decoded image."""
        return [transform(image) for transform in self.transforms]


class Network(nn.Module):
    """timm's ViT and DINO's head without prototypes."""

    def __init__(self, encoder: str, *, image_size: int, patch_size: int, hidden: int = 2048, **shape: int) -> None:
        import timm  # noqa: PLC0415 (the views of this file need none)

        super().__init__()
        self.encoder = timm.create_model(
            encoder, num_classes=0, img_size=image_size, patch_size=patch_size, dynamic_img_size=True, **shape
        )
        width = self.encoder.num_features
        self.head = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 256)
        )

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """One pass of the encoder per resolution, as DINO's MultiCropWrapper."""
        sizes = sorted({view.shape[-1] for view in views}, reverse=True)
        features = [self.encoder(torch.cat([v for v in views if v.shape[-1] == size])) for size in sizes]
        return F.normalize(self.head(torch.cat(features)).float(), dim=-1)


class Step:
    """One step of SimDINO on a list of views, two global ones first. `weight`: of the coding rate."""

    def __init__(
        self, network: Network, *, fused: bool, bfloat16: bool, compiled: bool = False, weight: float = 1 / 256
    ) -> None:
        from timm.layers import set_fused_attn  # noqa: PLC0415

        set_fused_attn(fused)
        self.weight, self.momentum = weight, 0.996
        self.student, self.teacher = network, copy.deepcopy(network).requires_grad_(False)
        for block in (*network.encoder.blocks, *self.teacher.encoder.blocks):
            block.attn.fused_attn = fused
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=5e-4, weight_decay=0.04)
        self.bfloat16 = bfloat16
        self.device = next(network.parameters()).device
        if compiled:
            self.student.compile()
            self.teacher.compile()

    def autocast(self) -> AbstractContextManager[object]:
        """bfloat16, or nothing."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else nullcontext()

    def __call__(self, views: Sequence[Tensor]) -> float:
        with self.autocast():
            with torch.no_grad():
                targets = self.teacher(views[:2]).chunk(2)
            outputs = self.student(views).chunk(len(views))
        loss = alignment(outputs, targets) - 0.5 * self.weight * sum(coding_rate(z) for z in outputs[:2])
        self.optimizer.zero_grad()
        loss.backward()
        for p in self.student.parameters():
            if p.grad is not None:
                p.grad.mul_(min(1.0, 3.0 / (float(p.grad.norm()) + 1e-6)))
        self.optimizer.step()
        with torch.no_grad():
            for teacher, student in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                teacher.mul_(self.momentum).add_((1 - self.momentum) * student)
        return loss.item()


def alignment(outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """The mean over cross-view pairs of half the squared distance."""
    pairs = [(t, z) for g, t in enumerate(targets) for v, z in enumerate(outputs) if v != g]
    return sum((0.5 * (t - z).square().sum(-1).mean() for t, z in pairs), torch.zeros(())) / len(pairs)


def coding_rate(z: Tensor, eps2: float = 0.05) -> Tensor:
    """R of a batch of unit features."""
    n, d = z.shape
    return 0.5 * torch.logdet(torch.eye(d, device=z.device) + d / (n * eps2) * z.T @ z)
