"""simdino: pretrain image encoders on your own images, without labels.

    import simdino as sd
    config = sd.recipes.auto(data="photos/", steps=1000)
    run = sd.pretrain(config, out="runs/photos")
    encoder = sd.load_encoder("runs/photos")

Names are loaded when first used, so that `import simdino` costs nothing and changes nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "recipes": "simdino.recipes",
    "evaluate": "simdino.evaluate",
    "Config": "simdino.config",
    "InputError": "simdino.contracts",
    "Tokens": "simdino.contracts",
    "pretrain": "simdino.pretraining",
    "resume": "simdino.pretraining",
    "load_encoder": "simdino.models.weights",
    "embed": "simdino.features.extract",
}
__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'simdino' has no attribute {name!r}; it has {', '.join(__all__)}")
    module = import_module(_WHERE[name])
    value = module if _WHERE[name] == f"simdino.{name}" and name in ("recipes", "evaluate") else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
