"""Our side of `parity`: networks, losses and views of a released recipe at small sizes, and the comparisons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from simdino.config import EncoderConfig, OptimConfig
from simdino.contracts import Views
from simdino.losses.dino import DINO
from simdino.losses.dinov2 import DINOv2
from simdino.losses.objective import Objective
from simdino.losses.simdino import SimDINO
from simdino.losses.simdinov2 import SimDINOv2
from simdino.methods import METHODS
from simdino.methods.dino import PrototypeConfig
from simdino.methods.simdino import RateConfig
from simdino.models.catalogue import make_encoder
from simdino.models.official import IMAGENET
from simdino.models.projector import Embedder, Projector, Prototypes
from simdino.models.weights import load_encoder
from simdino.rng import sample_keys
from simdino.train.optim import make_optimizer, values_at
from simdino.train.state import State
from simdino.train.step import step

BATCH, LOCAL, SIZE, SMALL, PATCH, WIDTH, DEPTH, HEADS = 4, 2, 32, 16, 8, 128, 2, 2
HIDDEN, DIM, K, EPOCHS, STEPS = 24, 12, 20, 20, 6


def released(method: str) -> OptimConfig:
    """The released recipe's, for a run of EPOCHS epochs of one step: one epoch of frozen prototypes, ten of warm-up."""
    optim = METHODS[method].recipes["released"]("vit_small").optim
    return replace(optim, lr=1e-3, warmup=10 / EPOCHS, freeze_prototypes=1 / EPOCHS, temperature_warmup=15 / EPOCHS)


def random_views(method: str, seed: int) -> Views:
    """Noise as images, and random masks for the second methods: float64."""
    random = torch.Generator().manual_seed(seed)
    masks = None
    if method.endswith("v2"):
        masks = torch.rand(2, BATCH, (SIZE // PATCH) ** 2, generator=random) < 0.3
        masks[:, ::2] = False
    shapes = [(2, BATCH, 3, SIZE, SIZE), (LOCAL, BATCH, 3, SMALL, SMALL)]
    images = [torch.randn(*shape, generator=random, dtype=torch.float64) for shape in shapes]
    return Views(
        global_views=images[0], local_views=images[1], ids=torch.arange(BATCH),
        keys=torch.from_numpy(sample_keys(0, seed, np.arange(BATCH))), indices=torch.arange(BATCH), masks=masks,
    )  # fmt: skip


def encoder_config(method: str) -> EncoderConfig:
    """A small encoder of a released recipe's kind, without stochastic depth."""
    return replace(
        METHODS[method].recipes["released"]("vit").encoder, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS,
        image_size=SIZE, patch_size=PATCH, drop_path=0.0, layer_scale=0.1 if method.endswith("v2") else None,
    )  # fmt: skip


def ours(method: str) -> Embedder:
    """Our network of a method."""
    last = Prototypes(dim=DIM, count=K, train_lengths=method == "dinov2") if method.startswith("dino") else None
    head = Projector(embed_dim=WIDTH, hidden_dim=HIDDEN, out_dim=DIM, prototypes=last)
    return Embedder(make_encoder(encoder_config(method), IMAGENET), head).double()


def our_loss(method: str) -> Objective:
    """Our objective of a released recipe at the size of the batch, which is one of its shards."""
    loss = METHODS[method].recipes["released"]("vit_small").loss
    if isinstance(loss, PrototypeConfig):
        sizes: dict[str, Any] = {"batch": BATCH, "dim": DIM, "prototypes": K, "local_views": LOCAL}
        found = DINO(**sizes) if method == "dino" else DINOv2(**sizes, shard_size=BATCH)
        found.buffers.update({name: value.double() for name, value in found.buffers.items()})
        return found
    assert isinstance(loss, RateConfig)
    kind = SimDINO if method == "simdino" else SimDINOv2
    return kind(
        batch=BATCH, dim=DIM, local_views=LOCAL, eps=loss.eps, gamma=loss.gamma, scope=loss.scope, shard_size=BATCH,
        rate_on=loss.rate_on,
    )  # fmt: skip


def our_name(name: str) -> str:
    """Theirs -> ours, of a parameter."""
    part, _, rest = name.removeprefix("module.").partition(".")
    if part == "backbone":
        return f"encoder.{rest}"
    rest = rest.replace("last_layer.weight_v", "prototypes.directions").replace(
        "last_layer.weight_g", "prototypes.lengths"
    )
    return "projector." + rest.replace("mlp.", "layers.")


def take_over(network: Embedder, theirs: nn.Module) -> None:
    """Give our network the weights of theirs, all of them."""
    own = dict(network.named_parameters())
    given = {our_name(name): parameter for name, parameter in theirs.named_parameters()}
    assert own.keys() == given.keys(), own.keys() ^ given.keys()
    for name, parameter in own.items():
        parameter.data.copy_(given[name].data.view_as(parameter))


def shaken(model: nn.Module, seed: int) -> None:
    """Every trained weight moved by noise, so that biases, scales and tokens count."""
    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=random, dtype=parameter.dtype)


def apart(network: Embedder, theirs: nn.Module) -> float:
    """The largest difference between weights."""
    own = dict(network.named_parameters())
    pairs = [(own[our_name(name)], parameter) for name, parameter in theirs.named_parameters()]
    return max(float((mine - other.view_as(mine)).detach().abs().max()) for mine, other in pairs)


def compare_steps(
    method: str, student: nn.Module, teacher: nn.Module, take: Callable[[int, Views], float], note: Any
) -> None:
    """STEPS steps of theirs beside ours, on the same views from the same weights."""
    network, loss, optim = ours(method), our_loss(method), released(method)
    take_over(network, student)
    state = State.create(network, optim=optim, buffers=loss.buffers, device=torch.device("cpu"), precision="float32")
    losses = []
    for i in range(STEPS):
        views = random_views(method, i)
        result = step(state, views, loss, steps=EPOCHS, optim=optim, autocast=torch.autocast("cpu", enabled=False))
        losses.append(abs(float(result["loss"]) - constant(method, views) - take(i, views)))
    tolerance = 3e-7 if method.endswith("v2") else 1e-12  # the second methods interpolate positions in float32
    note(method, "loss of a step", max(losses), tolerance)
    note(method, f"student after {STEPS} steps", apart(state.student, student), tolerance)
    note(method, f"teacher after {STEPS} steps", apart(state.teacher, teacher), tolerance)


def constant(method: str, views: Views) -> float:
    """What our losses are above theirs: distances of unit vectors are 1 above their negative cosine, that of patches
    on every masked crop."""
    if method.startswith("dino"):
        return 0.0
    return 1.0 if views.masks is None else 1.0 + float(views.masks.any(-1).double().mean())


def compare_schedules(method: str, theirs: dict[str, Any], note: Any) -> None:
    """The four schedules of a run of EPOCHS epochs of seven steps, relative to their largest value."""
    optim, steps = released(method), 7 * EPOCHS
    for name, found in theirs.items():
        mine = np.array([getattr(values_at(i, steps=steps, config=optim), name) for i in range(steps)])
        other = np.array([found[i] for i in range(steps)])
        note(method, f"schedule of {name}", np.abs(mine - other).max() / np.abs(other).max(), 1e-12)


def compare_groups(method: str, theirs: dict[int, tuple[float, bool]], student: nn.Module, note: Any) -> None:
    """How many parameters have another share of the learning rate, or decay where theirs do not."""
    network = ours(method)
    names = {id(parameter): our_name(name) for name, parameter in student.named_parameters()}
    wanted = {names[key]: (round(scale, 12), decays) for key, (scale, decays) in theirs.items()}
    groups = make_optimizer(network, released(method)).param_groups
    own = {id(p): (round(group["lr_scale"], 12), group["decays"]) for group in groups for p in group["params"]}
    found = {name: own[id(p)] for name, p in network.named_parameters() if p.requires_grad}
    wrong = [name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)]
    note(method, f"parameter groups: of {len(wanted)} parameters other", len(wrong), 0)


def compare_weights(method: str, backbone: nn.Module, path: Path, note: Any) -> None:
    """Tokens of a file of theirs, loaded as every checkpoint is, at two sizes."""
    torch.save({"teacher": {f"backbone.{name}": value.float() for name, value in backbone.state_dict().items()}}, path)
    rule = encoder_config(method).positions
    encoder = load_encoder(str(path), positions=rule).double().eval()
    single = backbone.float().double().eval()
    for size in (SIZE, SMALL):
        images = torch.randn(3, 3, size, size, dtype=torch.float64)
        with torch.no_grad():
            tokens = encoder(images)
            if method.endswith("v2"):
                wanted = single(images, is_training=True)["x_norm_clstoken"]
            else:
                wanted = single.get_intermediate_layers(images, 1)[0][:, 0]
        note(method, f"class token at {size} px", float((tokens.cls - wanted).abs().max()), 1e-6)


def average(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """The teacher's moving average, which their loops write out."""
    with torch.no_grad():
        for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
            old.mul_(momentum).add_((1 - momentum) * new)
