"""The encoders by name, and an encoder from its configuration."""

from importlib import import_module

from torch import nn

from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.data.base import PYTHON
from simdino.models.adapters import TIMM, ModuleEncoder, check_timm_name, make_timm, timm_names
from simdino.models.bag import BAG, bag_kind
from simdino.models.encoder import Encoder, EncoderKind
from simdino.text import nearest

FILES = ("vit", "crate", "conv")
ENCODERS: dict[str, EncoderKind] = {
    name: kind for file in FILES for name, kind in import_module(f"simdino.models.{file}").ENCODERS.items()
}
"""Every encoder but those of timm, which go by timm:NAME. Each file has those of one kind."""


def list_encoders() -> list[str]:
    """Return the names of our encoders. timm's models go by the names that `timm.list_models()` gives."""
    return list(ENCODERS)


def register_module(module: nn.Module) -> str:
    """Enter a module of a program into ENCODERS, and return the name it has there. See `ModuleEncoder`."""
    name = PYTHON + type(module).__name__
    ENCODERS[name] = EncoderKind(
        make=lambda config, in_chans: ModuleEncoder(module, name, image_size=config.image_size, in_chans=in_chans)
    )
    return name


def resolve_name(name: str) -> str:
    """Return the name as configurations hold it: ours as it is, one of them as a bag of channels as bag:NAME, timm's as
    timm:NAME however a person gave it.

    Raises InputError, with the nearest name, for an encoder that neither this version nor timm knows."""
    if name in ENCODERS or (name.startswith(BAG) and name.removeprefix(BAG) in ENCODERS):
        return name
    if name.startswith(BAG):
        raise InputError(f"unknown encoder {name!r}: {BAG} goes before one of {', '.join(ENCODERS)}")
    if name.startswith(PYTHON):
        raise InputError(f"encoder {name} is a module of a program: give it again from Python, encoder=...")
    others = timm_names()
    if name.startswith(TIMM) or name.partition(".")[0] in others:
        check_timm_name(name.removeprefix(TIMM))
        return TIMM + name.removeprefix(TIMM)
    more = "the models of timm" if others else "with `pip install 'simdino[timm]'` its models"
    hint = nearest(name, [*ENCODERS, *others])
    raise InputError(f"unknown encoder {name!r}: this version knows {', '.join(ENCODERS)} and {more}{hint}")


def kind_of(name: str) -> EncoderKind:
    """Return what is known of an encoder by its name, which is of ENCODERS or of timm's."""
    if name.startswith(BAG):
        return bag_kind(kind_of(name.removeprefix(BAG)))
    return ENCODERS.get(name, EncoderKind(make=make_timm))


def make_encoder(config: EncoderConfig, preprocess: Preprocess) -> Encoder:
    """Make an encoder with random weights. Raises InputError for an unknown name, and for what it cannot have."""
    kind = kind_of(resolve_name(config.name))
    encoder = kind.make(kind.complete(config), preprocess.channels)
    encoder.config, encoder.preprocess = config, preprocess
    return encoder
