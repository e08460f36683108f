"""Checkpoints that survive anything: written aside, renamed, verified when read.

RUN/checkpoints/step-00001200/state.pt        student, teacher, optimizer, scaler, step
                              manifest.json   sha256 of state.pt, digest of the configuration, source revision
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

from simdino.config import Config
from simdino.contracts import InputError
from simdino.train.state import State


def digest(config: Config) -> str:
    """What a checkpoint belongs to: every setting that changes results."""
    values = config.as_dict()
    del values["speed"]
    for name in ("log_every", "evaluate_every", "checkpoint_every", "keep"):
        del values["run"][name]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def write_aside(path: Path, content: bytes) -> None:
    """Replace the file at once: a reader, or a crash, sees the old content or the new."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def save_checkpoint(run: Path, state: State, config: Config, *, revision: str | None, keep: set[int]) -> Path:
    """Write the state's checkpoint, then delete the others but those of the steps in `keep`."""
    folder = run / "checkpoints"
    final = folder / f"step-{state.step:08d}"
    aside = folder / f".writing-{state.step:08d}"
    remove_leftovers(folder)
    aside.mkdir(parents=True)
    torch.save(state.tensors(), aside / "state.pt")
    manifest = {
        "step": state.step,
        "sha256": hash_file(aside / "state.pt"),
        "config": digest(config),
        "source_revision": revision,
    }
    write_aside(aside / "manifest.json", json.dumps(manifest, indent=1).encode())
    if final.exists():
        shutil.rmtree(final)
    aside.rename(final)
    for other in checkpoints(run):
        if step_of(other) not in keep | {state.step}:
            shutil.rmtree(other)
    return final


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left half written."""
    for leftover in folder.glob(".writing-*"):
        shutil.rmtree(leftover)


def checkpoints(run: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step-"))


def load_checkpoint(checkpoint: Path, state: State, config: Config) -> None:
    """Continue from a checkpoint. Raises InputError when it is damaged or belongs to another configuration."""
    manifest = read_manifest(checkpoint)
    file = checkpoint / "state.pt"
    if not file.is_file() or hash_file(file) != manifest.get("sha256"):
        raise InputError(
            f"checkpoint {checkpoint} is damaged: state.pt does not match its manifest; delete that folder to resume "
            f"from the one before"
        )
    if manifest.get("config") != digest(config):
        raise InputError(
            f"checkpoint {checkpoint} belongs to another configuration than {checkpoint.parents[1]}/config.json"
        )
    try:
        state.load(torch.load(file, map_location="cpu", weights_only=True))
    except (RuntimeError, KeyError, ValueError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"checkpoint {checkpoint} does not fit this version of simdino: {first}") from None


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """manifest.json of a checkpoint."""
    try:
        return json.loads((checkpoint / "manifest.json").read_text())
    except (OSError, ValueError):
        raise InputError(f"checkpoint {checkpoint} is damaged: manifest.json is missing or unreadable") from None


def hash_file(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
