"""Other people's models as encoders: any of timm, `timm:NAME` (more than 1,000 ConvNets, hybrids and transformers), and
any torch module that takes images."""

import re
from collections.abc import Mapping
from copy import deepcopy
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess, Tokens
from simdino.extras import optional
from simdino.feedback import Log
from simdino.models.encoder import Encoder, Projection
from simdino.models.layers import split_heads
from simdino.models.resize import prepared_for

TIMM = "timm:"
"""The prefix of the names of timm's models."""

UNFIT = (AssertionError, RuntimeError, ValueError)
"""The errors that timm's models raise for image sizes they do not take."""

CLASS = ("cls", "x_norm_clstoken", "pooler_output", "features")
PATCHES = ("patches", "x_norm_patchtokens")
"""The keys under which a module that returns a dict may have its class token and its patch tokens; the first wins."""


class TimmEncoder(Encoder):
    """A model of timm without its classifier, with random weights unless `pretrained`.

    The class token is the model's own pooled feature, whatever stands before the classifier: the class token of a ViT,
    the spatial mean of a ConvNet. Patches are the last features before the pooling; where a model widens after it
    (MobileNetV3, MambaOut) they are narrower than the class token, and a few models give none. `keys` change nothing:
    timm draws drop path from the global random state, so drop path and dropout are zero here. `masks` are refused:
    timm's models have no mask token, and most have no patches that one could replace.

    name: timm's, without `timm:`. image_size: the side of a global crop in pixels; ViTs and Swin also take other sizes,
    other models of a fixed size do not. in_chans: channels of the images."""

    def __init__(self, name: str, *, image_size: int, in_chans: int, pretrained: bool = False) -> None:
        super().__init__()
        check_timm_name(name)
        self.name, self.image_size, self.in_chans = name, image_size, in_chans
        self.model: Any = build(name, image_size=image_size, in_chans=in_chans, pretrained=pretrained)
        draw_nothing(self.model)
        self.embed_dim = int(getattr(self.model, "head_hidden_size", self.model.num_features))
        self.has_class_token = getattr(self.model, "cls_token", None) is not None
        self.patch_size = patch_of(self.model)
        if self.patch_size is not None and image_size % self.patch_size:
            raise InputError(
                f"encoder {TIMM}{name} has patches of {self.patch_size} pixels, which do not divide images of "
                f"{image_size} x {image_size}: give an --image-size that is a multiple"
            )
        check_not_too_small(self.model, name, image_size=image_size, in_chans=in_chans)
        self._layers = layers_of(self.model)
        self.depth = max(self._layers.values())

    def forward(
        self, images: Tensor, *, keys: Tensor | None = None, masks: Tensor | None = None, patches: bool = True
    ) -> Tokens:
        """Encode images as `Encoder.forward` does. Raises InputError for masks and for sizes that the model does not
        take."""
        if masks is not None:
            raise InputError(
                f"encoder {TIMM}{self.name} takes no masks: a patch objective needs one of our encoders, vit_small say"
            )
        try:
            features = self.model.forward_features(images)
            cls = self.model.forward_head(features, pre_logits=True)
        except torch.OutOfMemoryError:
            raise
        except UNFIT as error:
            height, width = images.shape[-2:]
            if height == width == self.image_size:
                raise
            raise InputError(
                f"encoder {TIMM}{self.name}, made for images of {self.image_size} x {self.image_size} pixels, does "
                f"not take {height} x {width} ({first_line(error)}): give images of its size (in training "
                f"--local-views 0 or another --image-size, elsewhere --size) or an encoder that takes any size"
            ) from None
        places, grid = self._patches(features, images) if patches and isinstance(features, Tensor) else (None, None)
        return Tokens(cls=cls, patches=places, grid=grid)

    def _patches(self, features: Tensor, images: Tensor) -> tuple[Tensor | None, tuple[int, int] | None]:
        """Return patches [N, P, D] and their grid from features [N, D, h, w], [N, h, w, D] or [N, prefix + P, D]; None
        twice where tokens are no grid of square patches (PiT returns its class token only, VOLO and CoaT mix it in)."""
        if features.ndim == 4:
            if getattr(self.model, "output_fmt", "NCHW") == "NCHW":
                features = features.permute(0, 2, 3, 1)
            return features.flatten(1, 2), (features.shape[1], features.shape[2])
        tokens = features[:, getattr(self.model, "num_prefix_tokens", 0) :]
        (height, width), count = images.shape[-2:], tokens.shape[1]
        side = (height * width / count) ** 0.5
        grid = round(height / side), round(width / side)
        return (tokens, grid) if 1 < count == grid[0] * grid[1] else (None, None)

    def stages(self) -> list[nn.Module]:
        """Return timm's own blocks or stages, where it has them under these names."""
        return list(next((found for name in ("blocks", "stages") if (found := getattr(self.model, name, None))), ()))

    def layer_of(self, name: str) -> int:
        """Return the layer by timm's own grouping, which counts a last norm to the last block."""
        return self._layers[name.removeprefix("model.")]

    def last_blocks(self, images: Tensor, count: int) -> list[Tokens]:
        """Return tokens as `Encoder.last_blocks` does, by timm's own function for transformers with a class token.
        Models whose output is pooled otherwise, as a mean of patches or of two tokens (distilled DeiT), have no such
        tokens."""
        model, patch = self.model, self.patch_size
        pooled = getattr(model, "global_pool", None) != "token" or getattr(model, "dist_token", None) is not None
        if not 1 < count <= self.depth or patch is None or not self.has_class_token or pooled:
            return super().last_blocks(images, count)
        try:
            every = model.forward_intermediates(
                images, indices=count, norm=True, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
            )
        except (TypeError, AssertionError):  # CaiT and ConViT return no class tokens on the way; fewer blocks
            return super().last_blocks(images, count)
        grid = images.shape[-2] // patch, images.shape[-1] // patch
        return [Tokens(cls=prefix[:, 0], registers=prefix[:, 1:], patches=x, grid=grid) for x, prefix in every]

    def last_attention(self) -> tuple[nn.Module, Projection]:
        """Return the last attention as `Encoder.last_attention` does, for transformers with timm's plain attention."""
        attention: Any = getattr(getattr(self.model, "blocks", [None])[-1], "attn", None)
        if type(attention).__name__ != "Attention" or not hasattr(attention, "qkv") or not hasattr(attention, "q_norm"):
            return super().last_attention()

        def project(x: Tensor) -> tuple[Tensor, Tensor]:
            queries, keys, _ = (split_heads(part, attention.num_heads) for part in attention.qkv(x).chunk(3, dim=-1))
            return attention.q_norm(queries), attention.k_norm(keys)  # timm normalises where a model asks for it

        return attention, project


def make_timm(config: EncoderConfig, in_chans: int) -> TimmEncoder:
    """Make a model of timm with random weights. Raises InputError for settings that only our ViTs have."""
    ours = {
        "registers": config.registers > 0,
        "layer scale": config.layer_scale is not None,
        "a mask token": config.mask_token,
        "SwiGLU": config.ffn == "swiglu",
    }
    asked = [part for part, given in ours.items() if given]
    name = config.name.removeprefix(TIMM)
    if asked:
        raise InputError(
            f"encoder {TIMM}{name} cannot be given {' and '.join(asked)}: take one of our encoders, vit_small"
        )
    return TimmEncoder(name, image_size=config.image_size, in_chans=in_chans)


def timm_names() -> list[str]:
    """Return the names of timm's models, without `timm:`; none where timm is not installed."""
    try:
        return optional("timm").list_models()
    except InputError:
        return []


def check_timm_name(name: str) -> None:
    """Raise InputError, with the nearest name, for a model or a tag of its weights that timm does not have."""
    timm = optional("timm")
    arch, _, tag = name.partition(".")
    if not timm.is_model(arch):
        close = get_close_matches(arch, timm.list_models(), n=1)
        hint = f"; did you mean {TIMM}{close[0]}?" if close else ""
        raise InputError(f"unknown encoder {TIMM}{name}: timm {timm.__version__} has no model {arch}{hint}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{arch}.*")]
    if tag and tag not in tags:
        known = f"it has {', '.join(tags)}" if tags else "it has none"
        raise InputError(f"unknown encoder {TIMM}{name}: timm has no weights {tag!r} of {arch}; {known}")


def timm_patch(name: str) -> int:
    """Return the patch size in a ViT's name (vit_small_patch14_dinov2); 1 where there is none."""
    found = re.search(r"_patch(\d+)", name)
    return int(found[1]) if found else 1


def build(name: str, *, image_size: int, in_chans: int, pretrained: bool) -> Any:
    """Return timm's model for images of this size, and for other sizes too where it can take them."""
    timm = optional("timm")
    wishes = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})  # ViT; Swin of older timm; fixed
    for wish in (*({"img_size": image_size, **wish} for wish in wishes), {}):
        try:
            return timm.create_model(name, pretrained=pretrained, num_classes=0, in_chans=in_chans, **wish)
        except TypeError as error:  # before anything is built: the constructor has no such argument
            if not wish or "unexpected keyword" not in str(error):
                raise
        except OSError as error:
            raise InputError(
                f"the weights of {TIMM}{name} could not be fetched from timm's hub and are not in the local cache "
                f"({first_line(error)}): connect, or give weights in a file"
            ) from None
        except UNFIT as error:
            raise InputError(
                f"encoder {TIMM}{name} cannot be made for images of {image_size} x {image_size} pixels with "
                f"{in_chans} channels: {first_line(error)}"
            ) from None
    raise AssertionError("every model takes the last attempt's arguments")


def draw_nothing(model: nn.Module) -> None:
    """Set drop path and dropout to zero, which some models of timm have by default."""
    for part in model.modules():
        for rate in ("drop_prob", "drop_rate"):
            if isinstance(getattr(part, rate, None), float):
                setattr(part, rate, 0.0)
        if isinstance(part, _DropoutNd):
            part.p = 0.0


def patch_of(model: Any) -> int | None:
    """Return the patch size of a model of tokens (ViT, BEiT, EVA); None for a model of feature maps."""
    embed = getattr(model, "patch_embed", None)
    if embed is None or not hasattr(model, "num_prefix_tokens") or not hasattr(embed, "feat_ratio"):
        return None
    return int(embed.feat_ratio())


def check_not_too_small(model: Any, name: str, *, image_size: int, in_chans: int) -> None:
    """Raise InputError where images shrink to nothing in the model. It is run, as some models pad and others do not."""
    reduction = max((stage["reduction"] for stage in getattr(model, "feature_info", None) or []), default=1)
    if image_size >= reduction:
        return
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, in_chans, image_size, image_size))
    except UNFIT as error:
        raise InputError(
            f"encoder {TIMM}{name} makes images {reduction} times smaller and does not take {image_size} x "
            f"{image_size} pixels ({first_line(error)}): give --image-size {reduction} or more"
        ) from None
    finally:
        model.train()


def layers_of(model: Any) -> dict[str, int]:
    """Return the layer of each parameter by timm's grouping for layer-wise learning rates: 0 for the patch
    embedding."""
    if not hasattr(model, "group_matcher"):  # PiT and a few others do not tell their layers apart
        return {name: 1 for name, _ in model.named_parameters()}
    return optional("timm.models").group_parameters(model, model.group_matcher(coarse=False), reverse=True)


def load_timm(name: str, *, image_size: int | None = None, channels: int | None = None, log: Log) -> TimmEncoder:
    """Return a model of timm with its published weights and preprocessing. timm itself adapts the weights to another
    image size and number of channels; a line says so.

    Raises InputError for an unknown name, for a model without weights, and when they cannot be fetched."""
    check_timm_name(name)
    timm = optional("timm")
    if not timm.is_model_pretrained(name):
        raise InputError(f"timm has no weights of {name}: only a random {TIMM}{name} can be made, to be trained")
    published = timm.models.get_pretrained_cfg(name)
    own_channels, _, own_size = published.input_size
    size, count = image_size or own_size, channels or own_channels
    resize, mean, std = int(own_size / published.crop_pct), tuple(published.mean), tuple(published.std)
    trained = Preprocess(resize=resize, crop=own_size, channels=own_channels, mean=mean, std=std)
    preprocess = prepared_for(trained, crop=size, channels=count)
    encoder = TimmEncoder(name, image_size=size, in_chans=count, pretrained=True)
    encoder.config, encoder.preprocess = EncoderConfig(name=TIMM + name, image_size=size, drop_path=0.0), preprocess
    if (size, count) != (own_size, own_channels):
        log(f"{TIMM}{name} brought by timm from {own_channels} x {own_size} px to {count} x {size} px")
    return encoder


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return str(error).partition("\n")[0].rstrip(". ") or type(error).__name__


class ModuleEncoder(Encoder):
    """A copy of a module with its weights. It is called with images float [N, C, H, W] and returns one of: features [N,
    D]; feature maps [N, D, h, w], whose mean is the feature; `Tokens`; a tuple of features [N, D] and patch tokens [N,
    P, D]; or a dict with the two under keys of `CLASS` and `PATCHES`.

    Its embedding width is found with two black images. Dropout and drop path are switched off: they would draw from
    torch's global random state, and a run could not be repeated. Masks are refused. Raises InputError where the module
    does not take the images or returns anything else."""

    def __init__(self, module: nn.Module, name: str, *, image_size: int, in_chans: int) -> None:
        super().__init__()
        self.module, self.name = deepcopy(module), name
        self.patch_size, self.in_chans, self.depth = None, in_chans, 1
        draw_nothing(self.module)
        self.embed_dim = 0
        self.embed_dim = self.probe(image_size)

    def probe(self, size: int) -> int:
        """Return the embedding width of the features for images of this size. Raises InputError where it does not take
        them."""
        parameter = next(self.module.parameters(), torch.empty(0))
        images = torch.zeros(2, self.in_chans, size, size, device=parameter.device)
        was_training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                return self(images).cls.shape[1]
        except InputError:
            raise
        except Exception as error:  # a module may fail with anything
            raise InputError(
                f"encoder {self.name} does not take images float32 {list(images.shape)} ({first_line(error)}): give a "
                f"module that does, or other sizes of crops"
            ) from None
        finally:
            self.module.train(was_training)

    def forward(
        self, images: Tensor, *, keys: Tensor | None = None, masks: Tensor | None = None, patches: bool = True
    ) -> Tokens:
        """Encode images as `Encoder.forward` does. Raises InputError for masks, and where the output is not
        features."""
        if masks is not None:
            raise InputError(f"encoder {self.name} takes no masks: a patch objective needs one of our encoders")
        found = read_tokens(self.module(images))
        cls: Any = found.cls
        expected = [len(images), self.embed_dim or "D"]
        if not isinstance(cls, Tensor) or not cls.is_floating_point() or cls.ndim != 2 or len(cls) != len(images):
            got = f"{cls.dtype} {list(cls.shape)}" if isinstance(cls, Tensor) else type(cls).__name__
            raise InputError(f"encoder {self.name} returns {got}, expected features float {expected}")
        if self.embed_dim not in (0, cls.shape[1]):
            raise InputError(
                f"encoder {self.name} returns {list(cls.shape)} for images of {images.shape[-1]} px, expected "
                f"{expected}: its features must not depend on the size of crops"
            )
        return found

    def layer_of(self, name: str) -> int:
        """Return 1: a module does not tell its layers apart."""
        return 1


def read_tokens(output: Any) -> Tokens:
    """Return a module's output as Tokens, which `ModuleEncoder.forward` checks."""
    if isinstance(output, Tokens):
        return output
    patches, grid = None, None
    if isinstance(output, Mapping):
        patches = next((output[key] for key in PATCHES if key in output), None)
        output = next((output[key] for key in CLASS if key in output), output)
    elif isinstance(output, tuple | list):
        output, patches = (*output, None)[:2] if output else (output, None)
    if isinstance(output, Tensor) and output.ndim == 4:
        grid, patches, output = output.shape[2:], output.flatten(2).mT, output.mean((2, 3))
    return Tokens(cls=output, patches=patches, grid=None if grid is None else (grid[0], grid[1]))
