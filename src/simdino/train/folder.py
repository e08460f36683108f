"""A run folder's own files: who may write in it, config.json and broken.txt."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from simdino import __version__
from simdino.config import Config
from simdino.contracts import InputError
from simdino.train.checkpoint import write_aside


def check_free(folder: Path) -> None:
    """Raise InputError when a folder holds anything or cannot be written to; nothing is made."""
    if (folder / "config.json").exists():
        raise InputError(f"--out {folder} holds a run: `simdino pretrain --resume {folder}`, or give another folder")
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"--out {folder} cannot be written: {existing} is no folder we may write in")
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"--out {folder} is not empty and no run of ours: give another folder")


def claim(folder: Path) -> None:
    """Make the folder for a new run. Raises InputError as `check_free` does."""
    check_free(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder} cannot be made: {error.strerror}") from None


def write_config(folder: Path, config: Config, *, command: str, data: dict[str, Any]) -> None:
    """config.json: the whole configuration, what it ran on, and the command that repeats it."""
    content = {
        "simdino": __version__,
        "source_revision": source_revision(),
        "command": command,
        "machine": machine(),
        "config": config.as_dict(),
        "data": data,
    }
    write_aside(folder / "config.json", json.dumps(content, indent=1).encode())


def read_config(folder: Path) -> Config:
    """The configuration of a run. Raises InputError when the folder is no run."""
    try:
        content = json.loads((folder / "config.json").read_text())
        return Config.from_dict(content["config"])
    except FileNotFoundError:
        raise InputError(f"{folder} is not a run: it has no config.json") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}/config.json cannot be read: {error}") from None


def write_broken(folder: Path, broken: dict[str, str]) -> None:
    """broken.txt: a line with name and reason for each image that could not be read."""
    if broken:
        lines = (f"{name}\t{' '.join(reason.split())}\n" for name, reason in sorted(broken.items()))
        write_aside(folder / "broken.txt", "".join(lines).encode())


def read_broken(folder: Path) -> dict[str, str]:
    """What `write_broken` wrote; empty without the file."""
    path = folder / "broken.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(line.split("\t", 1) for line in lines)


def source_revision() -> str | None:
    """The commit of the source that runs, with "+" where files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", str(here.parent)], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")


def machine() -> str:
    """Processor or GPU, cores and the versions that results depend on."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    return f"{os.cpu_count()} x {name}, Python {platform.python_version()}, torch {torch.__version__}"


def processor() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        if names:
            return names[0]
    return platform.processor() or platform.machine()
