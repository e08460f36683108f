"""Many linear heads trained side by side on frozen features, for little more than the price of one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOMENTUM = 0.9
STD = 0.01  # of the weights at the start


class Stack:
    """H linear heads with K classes that read the same features and differ in their learning rate. Each is what
    torch.nn.Linear trained alone by torch.optim.SGD(momentum=0.9) on the mean cross-entropy is.

    Their weights lie in one tensor [H, K, width], so that the logits of all are one matrix product and their gradients
    another, added to the momentum where it lies: the gradient of a cross-entropy is softmax minus one-hot, no graph is
    needed.
    """

    def __init__(
        self, rates: Sequence[float], *, width: int, classes: int, device: torch.device, random: torch.Generator
    ) -> None:
        self.rates = torch.tensor(rates, device=device)
        weight = torch.empty(len(rates), classes, width).normal_(std=STD, generator=random)
        self.weight, self.bias = weight.to(device), torch.zeros(len(rates), classes, device=device)
        self.weight_momentum, self.bias_momentum = torch.zeros_like(self.weight), torch.zeros_like(self.bias)

    def logits(self, features: Tensor) -> Tensor:
        """float32 [N, width] -> [N, H, K]."""
        flat = torch.addmm(self.bias.flatten(), features, self.weight.flatten(0, 1).T)
        return flat.unflatten(1, self.bias.shape)

    def step(self, features: Tensor, labels: Tensor, *, share: float) -> None:
        """One step of SGD of every head at `share` of its learning rate.

        features: float32 [N, width]. labels: int64 [N]."""
        error = self.logits(features).softmax(-1)
        error[torch.arange(len(labels), device=labels.device), :, labels] -= 1
        error /= len(labels)
        self.weight_momentum.flatten(0, 1).addmm_(error.flatten(1).T, features, beta=MOMENTUM)
        self.bias_momentum.mul_(MOMENTUM).add_(error.sum(0))
        rates = (-share * self.rates)[:, None]
        self.weight.addcmul_(self.weight_momentum, rates[..., None])
        self.bias.addcmul_(self.bias_momentum, rates)
