"""Modules of extras are imported only where they are needed; where one is missing, the error says what to install.

Every import of such a module goes through `optional`, so that types, help and everything else work without it."""

from importlib import import_module
from typing import Any

from simdino.errors import InputError

EXTRAS = {
    "timm": ("timm", "encoders of timm need timm"),
    "huggingface_hub": ("hf", "models of the Hugging Face hub need huggingface_hub"),
    "onnxscript": ("onnx", "--to onnx needs onnxscript"),
    "onnxruntime": ("onnx", "--to onnx needs onnxruntime, which reads the model back"),
    "pydicom": ("dicom", "DICOM images need pydicom"),
    "pillow_heif": ("heif", "HEIC images need pillow-heif"),
    "rasterio": ("geo", "some GeoTIFFs need rasterio"),
    "pycocotools": ("coco", "files of COCO's form need pycocotools"),
    "pydensecrf": ("crf", "--crf needs pydensecrf2"),
    "faiss": ("index", "approximate search needs faiss-cpu"),
    "submitit": ("slurm", "recipes/slurm.py needs submitit"),
    "umap": ("umap", "--layout umap needs umap-learn"),
}
"""Package to import -> (the extra of pyproject.toml that brings it, who needs it)."""


def optional(module: str) -> Any:
    """Import a module of one of EXTRAS, such as `pycocotools.mask`. Raises InputError, with what to install, without
    it."""
    extra, need = EXTRAS[module.partition(".")[0]]
    try:
        return import_module(module)
    except ImportError as error:
        reason = "" if isinstance(error, ModuleNotFoundError) else f", which is here but broken ({error})"
        raise InputError(f"{need}{reason}: pip install 'simdino[{extra}]'") from None
