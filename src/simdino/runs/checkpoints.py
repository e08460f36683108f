"""The checkpoints of a run. They survive anything: they are written aside, renamed, and verified when read.

RUN/checkpoints/step-00001200/state.pt        student, teacher, optimizer, scaler, step
                              manifest.json   sha256 of state.pt, the configuration, source revision
"""

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simdino.config import Config
from simdino.contracts import InputError
from simdino.feedback import Log
from simdino.files import WRITING, flush, named_in_errors
from simdino.settings import shown
from simdino.trunk import same_trunk

ROUNDING = ("precision", "compile", "micro_batch", "parallel")
"""Settings that a resumed run may have other values of; results then differ by rounding."""
DELETING = ".deleting-"  # prefix of what a killed process leaves half deleted; WRITING is that of half-written files


def checkpoints(run: Path) -> list[Path]:
    """Return the run's checkpoints, oldest first."""
    return sorted((run / "checkpoints").glob("step-" + "[0-9]" * 8))


def step_of(checkpoint: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step-"))


def save_checkpoint(
    run: Path, tensors: dict[str, Any], config: Config, *, revision: str | None, keep: set[int]
) -> Path:  # fmt: skip
    """Write what `State.tensors` returned, then delete all other checkpoints except those of the steps in `keep`."""
    step = tensors["step"]
    final = run / "checkpoints" / f"step-{step:08d}"
    aside = final.with_name(f"{WRITING}{step:08d}")
    remove_leftovers(run)
    with named_in_errors(final):
        try:
            aside.mkdir(parents=True)
            with (aside / "state.pt").open("wb") as file:  # torch would hide the reason where it cannot open a file
                torch.save(tensors, file)
            sha256, settings = hash_file(aside / "state.pt"), config.as_dict()
            manifest = {"step": step, "sha256": sha256, "config": settings, "source_revision": revision}
            (aside / "manifest.json").write_text(json.dumps(manifest, indent=1))
            for written in aside.iterdir():
                flush(written)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)  # a full disk gets its space back
            raise
        discard(final)
        aside.rename(final)
    for other in checkpoints(run):
        if step_of(other) not in keep | {step}:
            discard(other)
    return final


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint if it exists. It is renamed first, so that a kill leaves no half of one under its name."""
    aside = checkpoint.with_name(DELETING + checkpoint.name)
    if checkpoint.exists():
        checkpoint.rename(aside)
        shutil.rmtree(aside)


def remove_leftovers(run: Path) -> None:
    """Delete what a killed process left half written or half deleted."""
    for pattern in (WRITING, DELETING):
        for leftover in [*run.glob(f"{pattern}*"), *run.glob(f"*/{pattern}*")]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def load_checkpoint(checkpoint: Path, config: Config, *, into: Callable[[dict[str, Any]], None]) -> None:
    """Give a checkpoint's content to `State.load`. Raises InputError when it is damaged or of another configuration."""
    verify(checkpoint, config)
    try:
        into(torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True))
    except (RuntimeError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"checkpoint {checkpoint} does not fit this version of simdino: {first}") from None


def teacher_encoder(checkpoint: Path) -> dict[str, Tensor]:
    """Return the weights of the teacher's encoder alone. Raises InputError when the checkpoint is damaged."""
    check_whole(checkpoint)
    teacher = torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)["teacher"]
    part = "encoder."
    return {name.removeprefix(part): tensor for name, tensor in teacher.items() if name.startswith(part)}


def verify(checkpoint: Path, config: Config) -> None:
    """Raise InputError when a checkpoint is damaged or belongs to another configuration."""
    check_whole(checkpoint)
    same_run(checkpoint, config)


def newest_whole(run: Path, saved: Sequence[Path], log: Log) -> Path | None:
    """Return the newest of these checkpoints of a run that is whole; None where there are none. A damaged one is named,
    and the one before is taken.

    saved: oldest first. Raises InputError where all are damaged."""
    for i in reversed(range(len(saved))):
        why = damage(saved[i])
        if why is None:
            return saved[i]
        if i:
            log(f"warning: checkpoint {saved[i]} is damaged ({why}); the one before it is taken, {saved[i - 1].name}")
        else:
            raise InputError(
                f"every checkpoint of {run} is damaged: {why} ({saved[i].name}); start a new run, with `--init "
                f"{run / 'encoder.safetensors'}` from the encoder of the last one"
            )
    return None


def check_whole(checkpoint: Path) -> None:
    """Raise InputError when a file of a checkpoint is missing or damaged."""
    if (why := damage(checkpoint)) is not None:
        raise damaged(checkpoint, why)


def damage(checkpoint: Path) -> str | None:
    """Return what is wrong with the files of a checkpoint; None where it is whole."""
    manifest, file = manifest_of(checkpoint), checkpoint / "state.pt"
    if manifest is None:
        return "manifest.json is missing or unreadable"
    whole = file.is_file() and hash_file(file) == manifest.get("sha256")
    return None if whole else "state.pt does not match its manifest"


def same_run(checkpoint: Path, config: Config) -> list[str]:
    """Raise InputError when a checkpoint was made with other values of settings that change results. Return a line for
    each changed setting that affects only rounding. Images may lie elsewhere by now, and a run whose trunk this is may
    have another length."""
    manifest = read_manifest(checkpoint)
    lines, free = changed(config, manifest["config"]), same_trunk(config, manifest["config"], step_of(checkpoint))
    fixed = {
        f"{part.name}.{field.name}"
        for part in fields(config)
        for field in fields(getattr(config, part.name))
        if field.metadata["fixed"]
    }
    other = [line for name, line in lines.items() if name in fixed - free]
    if manifest.get("step") != step_of(checkpoint):
        other.append(f"its manifest is of step {shown(manifest.get('step'))}")
    if other:
        raise InputError(
            f"checkpoint {checkpoint} belongs to another configuration than {checkpoint.parents[1]}/config.json: "
            f"{'; '.join(other[:5])}; put that back, or start a new run"
        )
    return [lines[f"speed.{name}"] for name in ROUNDING if f"speed.{name}" in lines]


def changed(config: Config, values: dict[str, Any]) -> dict[str, str]:
    """Return the settings whose values differ from a checkpoint's, each with a line that says so.

    values: the checkpoint's configuration, from JSON."""
    now, then = json.loads(json.dumps(config.as_dict())), values
    return {
        f"{part}.{name}": f"{part}.{name} is {shown(value)}, and was {shown(before)}"
        for part, group in now.items()
        for name, value in group.items()
        if (before := then[part].get(name) if isinstance(then.get(part), dict) else None) != value
    }


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Return manifest.json of a checkpoint. Raises InputError where it is missing or unreadable."""
    manifest = manifest_of(checkpoint)
    if manifest is None:
        raise damaged(checkpoint, "manifest.json is missing or unreadable")
    return manifest


def manifest_of(checkpoint: Path) -> dict[str, Any] | None:
    """Return manifest.json of a checkpoint; None where it is missing or unreadable."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and isinstance(manifest.get("config"), dict) else None


def damaged(checkpoint: Path, why: str) -> InputError:
    """Return the error that names a damaged checkpoint."""
    return InputError(
        f"checkpoint {checkpoint} is damaged: {why}; delete that folder to resume from the one before"
    )  # fmt: skip


def hash_file(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
