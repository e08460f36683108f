"""Images per second of feature extraction, beside its two halves alone: reading and preparing images, and the encoder.

    python benchmarks/features.py path/to/imagenette128

Both share the cores, one after the other, so that nothing lost would be 1/(1/reading + 1/encoder). A random ViT-Ti/16
at 224 px and, as in a run without a GPU, `vit_nano` with patches of 8 at 64 px, in the machine's fastest arithmetic.
Stores benchmarks/results/features.json.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Callable

import torch
from timing import pin, store, take_turns

from simdino.config import EncoderConfig
from simdino.contracts import Preprocess
from simdino.data.base import subset
from simdino.data.sources import open_dataset
from simdino.device import fastest, make_autocast
from simdino.features.extract import IN_CACHE, extract, prepared
from simdino.models.catalogue import make_encoder
from simdino.models.encoder import Encoder

CASES = {"ViT-Ti/16 at 224 px": ("vit_tiny", 256, 224, 16), "vit_nano/8 at 64 px": ("vit_nano", 64, 64, 8)}


def make(name: str, resize: int, size: int, patch: int) -> Encoder:
    """A random encoder."""
    torch.manual_seed(0)
    preprocess = Preprocess(resize=resize, crop=size, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    return make_encoder(EncoderConfig(name=name, image_size=size, patch_size=patch, drop_path=0.0), preprocess).eval()


def forward(encoder: Encoder, count: int) -> Callable[[], object]:
    """The encoder alone on as many images, in parts as large as the extractor's."""
    size = encoder.preprocess.crop
    images = torch.randn(IN_CACHE, 3, size, size)

    def run() -> None:
        with torch.inference_mode(), make_autocast("cpu", fastest("cpu")):
            for _ in range(count // IN_CACHE):
                encoder(images, patches=False)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    pin(1)
    source, rows = subset(open_dataset(given.data, "val"), given.images), []
    for name, words in CASES.items():
        encoder = make(*words)
        timings = take_turns(
            {
                "reading": lambda encoder=encoder: deque(prepared(source, encoder.preprocess), maxlen=0),
                "encoder": forward(encoder, len(source)),
                "both": lambda encoder=encoder: extract(encoder, source),
            },
            repeats=given.repeats,
        )
        reading, alone, both = (timings[part].median for part in ("reading", "encoder", "both"))
        rows.append({
            "encoder": name, "reading, images/s": len(source) / reading, "encoder, images/s": len(source) / alone,
            "features, images/s": len(source) / both, "of what is possible": (reading + alone) / both,
        })  # fmt: skip
    store("features", {"images": len(source), "threads": 1, "repeats": given.repeats}, rows, keys=("encoder",))


if __name__ == "__main__":
    main()
