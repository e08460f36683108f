"""`simdino embed` on a long folder: its speed beside its two halves alone, its memory, and a kill in the middle.

    python benchmarks/embed.py

100,000 JPEGs of 64 px are made, each a file of its own (hard links would count as one image) with one of 64 contents,
and each is decoded. Reading and the encoder share the thread, one after the other, so that nothing lost would be
1/(1/reading + 1/encoder); both are measured before and after the command, on images of the same folder, and the medians
count. The command's own seconds are from its start to its end: importing, listing the folder, weights, files and all.
Beside them stands what it takes for one image, and the same share by seconds of CPU, which a loaded machine still
measures well. Peak memory is what the system saw until a quarter of the images lay in parts, and until the end. Then
the command is killed once half of the images lie in parts, and given again; the two files must have the same bytes.
Stores benchmarks/results/embed.json; with fewer --images it only prints.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from timing import pin, store

from simdino.config import EncoderConfig
from simdino.contracts import Preprocess
from simdino.data.base import subset
from simdino.data.sources import open_dataset
from simdino.device import keep_freed_memory
from simdino.features.extract import BATCH, prepared, reader
from simdino.features.parts import folder_of
from simdino.models.catalogue import make_encoder
from simdino.models.encoder import Encoder
from simdino.models.weights import save_encoder

WHOLE, CONTENTS, SIDE, FOLDERS = 100_000, 64, 64, 100


def make_images(folder: Path, count: int) -> None:
    """Smooth random pictures, as JPEG."""
    contents = []
    for i in range(CONTENTS):
        coarse = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        kept = BytesIO()
        Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(kept, "JPEG", quality=90)
        contents.append(kept.getvalue())
    for i in range(count):
        place = folder / f"{i % FOLDERS:02d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:07d}.jpg").write_bytes(contents[i % CONTENTS])


def make_weights(name: str, path: Path) -> Encoder:
    """A random encoder with patches of 8."""
    torch.manual_seed(0)
    preprocess = Preprocess(resize=SIDE, crop=SIDE, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    encoder = make_encoder(EncoderConfig(name=name, image_size=SIDE, patch_size=8, drop_path=0.0), preprocess).eval()
    save_encoder(encoder, path)
    return encoder


def halves(encoder: Encoder, images: Path, count: int, tokens: Any) -> dict[str, float]:
    """Seconds of an image in reading alone and in the encoder alone, by the clock and of CPU."""
    source, read = subset(open_dataset(images), count), reader(encoder, tokens)
    batch = torch.randint(0, 256, (BATCH, 3, SIDE, SIDE), dtype=torch.uint8)

    def encode() -> None:
        for _ in range(len(source) // BATCH):
            read(batch)

    encode()
    cases: dict[str, tuple[int, Callable[[], object]]] = {
        "reading": (len(source), lambda: deque(prepared(source, encoder.preprocess), maxlen=0)),
        "encoder": (len(source) // BATCH * BATCH, encode),
    }
    found: dict[str, float] = {}
    for name, (images_done, run) in cases.items():
        started, of_cpu = time.perf_counter(), time.process_time()
        run()
        found[name] = (time.perf_counter() - started) / images_done
        found[f"{name}, CPU"] = (time.process_time() - of_cpu) / images_done
    return found


def parts_done(out: Path) -> int:
    """The images before the newest part, which is at least so many that are done."""
    return max((int(path.stem) for path in folder_of(out).glob("0*.parquet")), default=0)


def peak(process: subprocess.Popen[bytes]) -> float | None:
    """The most memory that a process has held so far, in MB; None when it has ended."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM")), None)


def timed(words: Sequence[str], out: Path, quarter: int) -> dict[str, float]:
    """A whole command: its seconds, and its peak memory at a quarter and at the end."""
    started, of_cpu, found = time.perf_counter(), cpu_of_children(), {"quarter": 0.0, "end": 0.0}
    with subprocess.Popen(words) as process:
        while process.poll() is None:
            held = peak(process)
            if held is not None:
                found["end"] = held
                found["quarter"] = found["quarter"] or (held if parts_done(out) >= quarter else 0.0)
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"the command ended with {process.returncode}")
    return {**found, "seconds": time.perf_counter() - started, "CPU": cpu_of_children() - of_cpu}


def cpu_of_children() -> float:
    """Seconds of CPU of all processes that this one has started and seen end."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def killed_and_resumed(words: Sequence[str], out: Path, half: int) -> int:
    """Kill a command once half is done, and let it go on. Returns how many images lay in parts then; 0 where it was
    faster."""
    with subprocess.Popen(words) as process:
        while process.poll() is None and parts_done(out) < half:
            time.sleep(0.02)
        process.kill()
    done = parts_done(out)
    subprocess.run(words, check=True)
    return done


def hash_of(path: Path) -> str:
    """The sha256 of a file."""
    return sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=WHOLE)
    parser.add_argument("--encoder", default="vit_nano")
    parser.add_argument("--tokens", default="cls", choices=["cls", "mean", "patches"])
    parser.add_argument("--probe", type=int, default=10_000, help="images on which each half is measured")
    given = parser.parse_args()
    pin(1)
    keep_freed_memory()  # as the command does
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / "images", given.images)
        encoder = make_weights(given.encoder, folder / "encoder.safetensors")
        outs = [folder / f"{word}.parquet" for word in ("one", "whole", "resumed")]
        data = [folder / "images" / "00" / "0000000.jpg", folder / "images", folder / "images"]
        words = [
            [*f"{sys.executable} -m simdino embed {folder}/encoder.safetensors".split(), str(where), "--out", str(out),
             "--tokens", given.tokens, "--device", "cpu"] for where, out in zip(data, outs, strict=True)
        ]  # fmt: skip
        rates = [halves(encoder, folder / "images", given.probe, given.tokens)]
        one, whole = timed(words[0], outs[0], 0), timed(words[1], outs[1], given.images // 4)
        rates.append(halves(encoder, folder / "images", given.probe, given.tokens))
        kept = killed_and_resumed(words[2], outs[2], given.images // 2)
        same = hash_of(outs[1]) == hash_of(outs[2])
        megabytes = outs[1].stat().st_size / 1e6
    took = {half: median(rate[half] for rate in rates) for half in rates[0]}
    possible, of_cpu = took["reading"] + took["encoder"], took["reading, CPU"] + took["encoder, CPU"]
    row = {
        "encoder": given.encoder, "tokens": given.tokens, "images": given.images,
        "reading, images/s": 1 / took["reading"], "encoder, images/s": 1 / took["encoder"],
        "nothing lost, images/s": 1 / possible, "simdino embed, images/s": given.images / whole["seconds"],
        "share": given.images * possible / whole["seconds"], "share of CPU": given.images * of_cpu / whole["CPU"],
        "one image, s": one["seconds"], "one image, s of CPU": one["CPU"],
        "share of CPU after the start": given.images * of_cpu / (whole["CPU"] - one["CPU"]),
        "peak at a quarter, MB": whole["quarter"], "peak at the end, MB": whole["end"], "table, MB": megabytes,
        "killed after": kept, "same bytes": same,
    }  # fmt: skip
    if given.images < WHOLE:
        print("\n".join(f"{heading:<30}{value}" for heading, value in row.items()))
    else:
        store("embed", {"threads": 1, "workers": 0, "probe": given.probe}, [row], keys=("encoder", "tokens"))


if __name__ == "__main__":
    main()
