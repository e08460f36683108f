"""Modules of extras: imported where they are needed, and where one is missing it is said what to install.

Every import of such a module goes through `optional`, so that types, help and everything else hold without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from simdino.errors import InputError

EXTRAS = {
    "timm": ("timm", "encoders of timm need timm"),
    "huggingface_hub": ("hf", "models of the Hugging Face hub need huggingface_hub"),
    "pycocotools": ("coco", "files of COCO's form need pycocotools"),
    "pydensecrf": ("crf", "--crf needs pydensecrf2"),
}
"""The package to import: the extra of pyproject.toml that brings it, and who needs it."""


def optional(module: str) -> Any:
    """A module of one of EXTRAS, such as `pycocotools.mask`. Raises InputError where it cannot be imported, with what
    to install."""
    extra, need = EXTRAS[module.partition(".")[0]]
    try:
        return import_module(module)
    except ImportError as error:
        reason = "" if isinstance(error, ModuleNotFoundError) else f", which is here but broken ({error})"
        raise InputError(f"{need}{reason}: pip install 'simdino[{extra}]'") from None
