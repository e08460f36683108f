"""What an encoder is worth: protocols by their names, each a function of an encoder and data.

    print(sd.evaluate.knn("runs/photos", "photos/", k=20))

To add one, write its file (see `protocol`) and import it below: `simdino evaluate NAME`, `sd.evaluate.NAME`, its line
in reports and its row in the docs are made from it.
"""

# PROTOCOLS is made of the imports, which no checker sees.
# pyright: reportUnusedImport=false, reportUnsupportedDunderAll=false

from importlib import import_module
from typing import TYPE_CHECKING, Any

from simdino.evaluate.classification.finetune import finetune
from simdino.evaluate.classification.knn import knn
from simdino.evaluate.classification.linear import linear
from simdino.evaluate.classification.logistic import logistic
from simdino.evaluate.diagnostics.health import health
from simdino.evaluate.discovery.discover import discover
from simdino.evaluate.protocol import Protocol
from simdino.evaluate.retrieval.retrieve import retrieve
from simdino.evaluate.segmentation.segment import segment
from simdino.evaluate.video.video import video

if TYPE_CHECKING:
    from simdino.evaluate.classification.classifier import Classifier as Classifier
    from simdino.evaluate.classification.classifier import load_classifier as load_classifier
    from simdino.evaluate.classification.classifier import save_classifier as save_classifier
    from simdino.evaluate.classification.classify import classify as classify
    from simdino.evaluate.retrieval.classes import neighbours_of as neighbours_of

PROTOCOLS: dict[str, Protocol[..., Any]] = {
    name: value for name, value in globals().items() if isinstance(value, Protocol)
}
"""Every protocol that is imported above, so that one line adds one."""

BESIDES = {
    "classification.classifier": ("Classifier", "load_classifier", "save_classifier"),
    "classification.classify": ("classify",),
    "retrieval.classes": ("neighbours_of",),
}
"""What else is public, by the module that has it; loaded when first used, as help must be quick."""

__all__ = [*PROTOCOLS, *(name for names in BESIDES.values() for name in names)]


def __getattr__(name: str) -> Any:
    module = next((module for module, names in BESIDES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module 'simdino.evaluate' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"simdino.evaluate.{module}"), name)
