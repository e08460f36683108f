"""Write checkpoints that survive anything: they are written aside, renamed, and verified when read.

RUN/checkpoints/step-00001200/state.pt        student, teacher, optimizer, scaler, step
                              manifest.json   sha256 of state.pt, the configuration, source revision
"""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import torch

from simdino.config import Config
from simdino.contracts import InputError
from simdino.files import WRITING, flush, named_in_errors
from simdino.runs.checkpoints import checkpoints, discard, hash_file, remove_leftovers, step_of, verify
from simdino.train.state import State


def save_checkpoint(run: Path, state: State, config: Config, *, revision: str | None, keep: set[int]) -> Path:
    """Write a checkpoint of the state, then delete all others except those of the steps in `keep`."""
    folder = run / "checkpoints"
    final = folder / f"step-{state.step:08d}"
    aside = folder / f"{WRITING}{state.step:08d}"
    remove_leftovers(run)
    with named_in_errors(final):
        try:
            write_checkpoint(aside, state, config, revision)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)  # a full disk gets its space back
            raise
        discard(final)
        aside.rename(final)
    for other in checkpoints(run):
        if step_of(other) not in keep | {state.step}:
            discard(other)
    return final


def write_checkpoint(folder: Path, state: State, config: Config, revision: str | None) -> None:
    """Write the files of a checkpoint into a new folder."""
    folder.mkdir(parents=True)
    with (folder / "state.pt").open("wb") as file:  # torch would hide the reason where it cannot open a file
        torch.save(state.tensors(), file)
    manifest = {
        "step": state.step,
        "sha256": hash_file(folder / "state.pt"),
        "config": config.as_dict(),
        "source_revision": revision,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    for file in folder.iterdir():
        flush(file)


def load_checkpoint(checkpoint: Path, state: State, config: Config) -> None:
    """Load a checkpoint into the state. Raises InputError when it is damaged or belongs to another configuration."""
    verify(checkpoint, config)
    try:
        state.load(torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True))
    except (RuntimeError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"checkpoint {checkpoint} does not fit this version of simdino: {first}") from None
