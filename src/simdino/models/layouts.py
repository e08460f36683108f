"""Key maps between our weights and the layouts of other projects, as pure functions on state dicts.

Our keys are those of DINOv2. The tables follow the official code of DINO, SimDINO and DINOv2, timm's
`vision_transformer.py` and the files of transformers' Dinov2Model and Dinov2WithRegistersModel. No function here raises
for unknown keys: they pass unchanged and are named when the encoder is loaded."""

import re

import torch
from torch import Tensor

from simdino.config import PositionRule

Tensors = dict[str, Tensor]

WRAPPERS = ("_orig_mod.", "module.", "backbone.")
"""Prefixes that torch.compile, DDP and the official training code put before the keys of an encoder."""

HEADS = ("head.", "dino_head.", "ibot_head.")
"""Prefixes of the projectors' keys in DINO, SimDINO and iBOT ("head."), and in DINOv2 and SimDINOv2."""

DECODER = "decoder_"
"""The prefix of the keys of MAE's decoder, which also owns its mask token."""

WHOLE = ("teacher.", "student.")
"""Prefixes in files where DINOv2's or SimDINOv2's training code saved both networks and the losses as one module."""

HF = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "register_tokens": "embeddings.register_tokens",
    "mask_token": "embeddings.mask_token",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.query": "attention.attention.query",
    "attn.key": "attention.attention.key",
    "attn.value": "attention.attention.value",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.w12": "mlp.weights_in",
    "mlp.w3": "mlp.weights_out",
    "ls1": "layer_scale1",
    "ls2": "layer_scale2",
    "weight": "weight",
    "bias": "bias",
    "gamma": "lambda1",
}
"""Our names -> those in files of transformers: keys outside the blocks, then the parts of a block, with qkv in three,
and the last names of their keys."""


def unwrapped(tensors: Tensors) -> Tensors:
    """Return a state dict without the wrappers' prefixes."""
    return {re.sub(rf"^({'|'.join(map(re.escape, WRAPPERS))})+", "", key): tensor for key, tensor in tensors.items()}


def network_of(tensors: Tensors) -> tuple[Tensors, str]:
    """Return the teacher's weights from a state dict of both networks, or the student's where it has no teacher, and
    which of them it is: "teacher" or "student". For any other state dict return all of it, and ""."""
    names = unwrapped(tensors)
    for part in WHOLE:
        own = {key.removeprefix(part): tensor for key, tensor in names.items() if key.startswith(part)}
        if own:
            return own, part.rstrip(".")
    return tensors, ""


def bare(tensors: Tensors) -> Tensors:
    """Bring an official state dict (DINO, SimDINO, DINOv2, SimDINOv2, iBOT, MAE) to our keys: prefixes off, heads and
    decoders left out, and the blocks of chunked files (blocks.CHUNK.BLOCK, numbered through) as blocks.BLOCK."""
    names = unwrapped(tensors)
    left_out = (*HEADS, DECODER, "mask_token") if any(name.startswith(DECODER) for name in names) else HEADS
    own = {name: tensor for name, tensor in names.items() if not name.startswith(left_out)}
    if "masked_embed" in own:  # as iBOT calls it
        own["mask_token"] = own.pop("masked_embed")
    return {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): tensor for name, tensor in own.items()}


def told_rule(tensors: Tensors) -> PositionRule | None:
    """Return the position rule of an official state dict's family, recognised by what it holds beside the encoder; None
    for a bare encoder, which may be of several families."""
    names = unwrapped(tensors)

    def holds(start: str) -> bool:
        return any(name.startswith(start) for name in names)

    if holds("register_tokens") or holds("reg_token"):
        return "antialias"
    if holds("dino_head."):  # SimDINOv2 keeps no last layer in its heads
        return "offset" if any("last_layer." in name for name in names) else "antialias"
    if holds(DECODER):
        return "plain"
    return "offset" if holds("head.mlp.") else None  # DINO, SimDINO, iBOT


def to_timm(tensors: Tensors) -> Tensors:
    """Bring our state dict to timm's VisionTransformer. The mask token, which timm lacks, is left out.

    With registers the layout is that of `no_embed_class=True`: the class token has no position and takes in its own."""
    theirs = {_swiglu(key, {"w12": "fc1", "w3": "fc2"}): t for key, t in tensors.items() if key != "mask_token"}
    if "register_tokens" in theirs:
        positions = theirs["pos_embed"]
        theirs["reg_token"] = theirs.pop("register_tokens")
        theirs |= {"cls_token": theirs["cls_token"] + positions[:, :1], "pos_embed": positions[:, 1:]}
    return theirs


def from_timm(tensors: Tensors) -> Tensors:
    """Invert `to_timm`, except for the mask token; the position of a class token that has taken it in is zero."""
    gated = _is_gated(tensors)
    own = {_swiglu(key, {"fc1": "w12", "fc2": "w3"}) if gated else key: tensor for key, tensor in tensors.items()}
    if "reg_token" in own:
        own["register_tokens"] = own.pop("reg_token")
        if "pos_embed" in own and own["pos_embed"].ndim == 3:
            own["pos_embed"] = torch.cat([torch.zeros_like(own["pos_embed"][:, :1]), own["pos_embed"]], dim=1)
    return own


def to_hf(tensors: Tensors) -> Tensors:
    """Bring our state dict to a file of transformers' Dinov2Model, or with registers of Dinov2WithRegistersModel.

    Tensors that those require and ours may lack are added without effect: layer scales of one, a mask token of zeros.
    In memory transformers 5 has other names; `from_pretrained` renames what files hold."""
    token = tensors["cls_token"].flatten()
    own = {"mask_token": torch.zeros_like(token)[None]} | tensors
    for block in {key.split(".")[1] for key in tensors if key.startswith("blocks.")}:
        own = {f"blocks.{block}.ls{i}.gamma": torch.ones_like(token) for i in (1, 2)} | own
    theirs: Tensors = {}
    for key, tensor in own.items():
        if ".attn.qkv." in key:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                theirs[_renamed(key.replace("qkv", part), "blocks", "encoder.layer", HF)] = rows
        else:
            theirs[_renamed(key, "blocks", "encoder.layer", HF)] = tensor
    return theirs


def from_hf(tensors: Tensors) -> Tensors:
    """Invert `to_hf`, also for the file of a whole model (dinov2.*, classifier.*), whose classifier is left out."""
    names = {re.sub(r"^dinov2(_with_registers)?\.", "", key): tensor for key, tensor in tensors.items()}
    ours = {theirs: ours for ours, theirs in HF.items()}
    own = {
        _renamed(name, "encoder.layer", "blocks", ours): tensor
        for name, tensor in names.items()
        if not name.startswith("classifier.") and tensor.numel()  # registers, of which there may be none
    }
    for first in [key for key in own if ".attn.query." in key]:
        parts = [first.replace("query", part) for part in ("query", "key", "value")]
        if len({own[part].shape if part in own else None for part in parts}) == 1:
            own[first.replace("query", "qkv")] = torch.cat([own.pop(part) for part in parts])
    return own


def _is_gated(tensors: Tensors) -> bool:
    """Return whether the MLPs in timm's layout are SwiGLU: the first linear map gives twice what the second takes."""
    firsts = [key for key in tensors if key.endswith(".mlp.fc1.weight") and key.replace("fc1", "fc2") in tensors]
    shapes = [(tensors[key].shape, tensors[key.replace("fc1", "fc2")].shape) for key in firsts]
    return any(len(first) == len(second) == 2 and first[0] == 2 * second[1] for first, second in shapes)


def _swiglu(key: str, names: dict[str, str]) -> str:
    """Return a key with the linear maps of its block's MLP renamed."""
    return re.sub(r"(?<=\.mlp\.)(\w+)", lambda found: names.get(found[1], found[1]), key)


def _renamed(key: str, start: str, to: str, names: dict[str, str]) -> str:
    """Return a key of a layout whose blocks are under START.0, START.1, ... with the names of another, whose blocks are
    under `to`. A key with a name that is not in `names` stays as it is, to be named in an error."""
    block = re.fullmatch(rf"{re.escape(start)}\.(\d+)\.(.+)\.(\w+)", key)
    if block is None or block[2] not in names or block[3] not in names:
        return names.get(key, key)
    return f"{to}.{block[1]}.{names[block[2]]}.{names[block[3]]}"
