"""config.json of a run folder, without the run."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from simdino.config import Config
from simdino.options import Options
from simdino.recipes import resolve
from simdino.runs.folder import write_config


@cache
def some_config() -> Config:
    """What a run on digits has."""
    return resolve("digits", Options(steps=9, patch_size=4, device="cpu", precision="float32"))


def write_metadata(run: Path, root: object = "digits", **data: Any) -> None:
    """Make a folder one of a run that was trained on the images in `root`; data: what it found them to be."""
    config = replace(some_config(), data=replace(some_config().data, root=str(root)))
    write_config(run, config, command="simdino pretrain", data={"name": Path(str(root)).name} | data)
