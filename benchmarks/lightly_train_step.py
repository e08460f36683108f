"""lightly-train's training step of DINO, in its own loop, one at a time.

Its loop runs in a thread that waits before each step until one is asked for, so that its steps can take turns with
others. Everything but the shape of the encoder, the number of views and the precision is left to it.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torchvision.io import write_jpeg


def lightly_train_step(shape: dict[str, int], batch: int, *, precision: str) -> Callable[[], object]:
    """A step of `batch` images, forward, backward, update and teacher; loading and views fall outside of it.

    shape: as in step.py. precision: "32-true" or "bf16-mixed". Raises ImportError where it is not installed.
    """
    os.environ["LIGHTLY_TRAIN_EVENTS_DISABLED"] = "1"
    import lightly_train  # noqa: PLC0415
    from lightly_train._methods.dino.dino import DINO  # noqa: PLC0415

    asked, done, failed = threading.Semaphore(0), threading.Semaphore(0), []
    DINO.on_train_batch_start = lambda *_: asked.acquire() and None
    DINO.on_train_batch_end = lambda *_: done.release()
    size, local = (shape["size"],) * 2, (shape["local"],) * 2
    folder = Path(tempfile.mkdtemp())
    for i in range(32 * batch):  # so that no epoch ends while steps are timed
        noise = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
        write_jpeg(noise, str(folder / f"{i}.jpg"))

    def train() -> None:
        try:
            lightly_train.pretrain(
                out=str(folder / "out"), data=str(folder), model="timm/vit_tiny_patch16_224", method="dino",
                model_args={
                    "embed_dim": shape["width"], "depth": shape["depth"], "num_heads": shape["heads"],
                    "patch_size": shape["patch"], "img_size": shape["size"], "dynamic_img_size": True,
                },
                transform_args={"image_size": size, "local_view": {"num_views": shape["locals"], "view_size": local}},
                batch_size=batch, num_workers=0, accelerator="cpu", precision=precision, epochs=1000,
            )  # fmt: skip
        except BaseException as error:
            failed.append(error)
            done.release()

    threading.Thread(target=train, daemon=True).start()

    def step() -> None:
        asked.release()
        done.acquire()
        if failed:
            raise failed[0]

    return step
