"""simdino: pretrain image encoders on your own images, without labels.

    import simdino as sd
    run = sd.pretrain("photos/", out="runs/photos", minutes=30)
    encoder = sd.load_encoder("runs/photos")
    vector = encoder.embed("cat.jpg")

Names are loaded when first used, so that `import simdino` costs nothing and changes nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simdino import evaluate, recipes
    from simdino.config import Config
    from simdino.contracts import InputError, Tokens
    from simdino.exports import export, list_formats
    from simdino.features.extract import embed
    from simdino.features.index import EmbeddingIndex
    from simdino.forecasting import forecast
    from simdino.methods import list_methods
    from simdino.models.catalogue import list_encoders
    from simdino.models.weights import load_encoder
    from simdino.pretraining import pretrain, resume
    from simdino.recipes import list_recipes
    from simdino.runs.listing import list_runs

__version__ = "0.1.0"

__all__ = [
    "Config",
    "EmbeddingIndex",
    "InputError",
    "Tokens",
    "__version__",
    "embed",
    "evaluate",
    "export",
    "forecast",
    "list_encoders",
    "list_formats",
    "list_methods",
    "list_recipes",
    "list_runs",
    "load_encoder",
    "pretrain",
    "recipes",
    "resume",
]

_NAMES = {
    "simdino": ("evaluate", "recipes"),
    "simdino.config": ("Config",),
    "simdino.contracts": ("InputError", "Tokens"),
    "simdino.exports": ("export", "list_formats"),
    "simdino.features.extract": ("embed",),
    "simdino.features.index": ("EmbeddingIndex",),
    "simdino.forecasting": ("forecast",),
    "simdino.methods": ("list_methods",),
    "simdino.models.catalogue": ("list_encoders",),
    "simdino.models.weights": ("load_encoder",),
    "simdino.pretraining": ("pretrain", "resume"),
    "simdino.recipes": ("list_recipes",),
    "simdino.runs.listing": ("list_runs",),
}
"""The names of each module, as in the imports above, which only type checkers and editors read."""

_WHERE = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'simdino' has no attribute {name!r}; it has {', '.join(__all__)}")
    where = _WHERE[name]
    value = import_module(f"simdino.{name}") if where == "simdino" else getattr(import_module(where), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
