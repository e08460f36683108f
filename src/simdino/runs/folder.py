"""A run folder's own files: the lock of the process that writes in it, config.json, broken.txt and the numbers.

metrics.jsonl holds what a run computed and is the same for a resumed run as for one never stopped; speed.jsonl holds
its speed. TensorBoard gets both."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from simdino import __version__
from simdino.config import Config
from simdino.contracts import InputError
from simdino.data.base import Source
from simdino.files import WRITING, check_folder, check_free_place, locked, named_in_errors, write_aside
from simdino.runs.checkpoints import checkpoints, damage, remove_leftovers, same_run, step_of
from simdino.saved import CONFIG, is_run, read_json, read_metadata, read_rows
from simdino.text import as_it_was, encodable, one_line, readable, to_json

LOCK = ".lock"  # in the folder of a run that is training
TRAINER = ".lock-holder"  # beside it: the number of the process and the name of its machine
RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")  # how often a launcher has started a command again
STALE = 1800.0  # seconds without a word after which a process of another machine counts as dead


def check_free(folder: Path) -> None:
    """Raise InputError when a folder holds anything or cannot be written to; nothing is made."""
    check_free_place(folder, option="--out")
    if encodable(str(folder)) != str(folder):
        raise InputError(f"--out {folder} has bytes that are not UTF-8, which TensorBoard refuses: give another name")
    if (folder / "config.json").exists():
        raise InputError(f"--out {folder} holds a run: `simdino pretrain --resume {folder}`, or give another folder")
    if folder.exists() and any(not file.name.startswith((WRITING, LOCK)) for file in folder.iterdir()):
        raise InputError(f"--out {folder} is neither empty nor a run: give another folder")


def check_outside(folder: Path, data: str) -> None:
    """Raise InputError when a run's folder would lie among its training images: the images it writes would become
    data."""
    images = Path(data).expanduser()
    if images.is_dir() and folder.absolute().resolve().is_relative_to(images.resolve()):
        raise InputError(f"--out {folder} lies inside the images in {data}: give a folder outside of them")


def claim(folder: Path) -> None:
    """Make the folder for a new run. Raises InputError as `check_free` does."""
    check_free(folder)
    check_folder(folder, option="--out")


def write_config(
    folder: Path, config: Config, *, command: str, data: dict[str, Any], branch: dict[str, Any] | None = None
) -> None:
    """Write config.json: the whole configuration, what it ran on, and the command that repeats it. branch: the run and
    the step that it starts from, where it is a branch."""
    content = {
        "simdino": __version__,
        "source_revision": source_revision(),
        "command": command,
        "machine": machine(),
        "config": config.as_dict(),
        "data": data,
        **({} if branch is None else {"branch": branch}),
    }
    write_aside(folder / "config.json", json.dumps(content, indent=1).encode())


def data_metadata(source: Source, validation: Source) -> dict[str, Any]:
    """Return the statistics of the data that config.json keeps, by which they are recognised."""
    return {
        "name": source.name,
        "train_images": len(source),
        "validation_images": len(validation),
        "classes": len(source.classes),
        "train_fingerprint": source.fingerprint(),
        "validation_fingerprint": validation.fingerprint(),
    }


def check_images(folder: Path, root: str, *, began: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise InputError where a run's images are not those that it began with, by the `data_metadata` of both times."""
    for split, images in (("train", "training"), ("validation", "validation")):
        name = f"{split}_fingerprint"
        if began.get(name) != now[name]:
            raise InputError(
                f"{root} has changed: its {images} images have other names or sizes than when "
                f"{folder} began; where those are elsewhere now, give `simdino pretrain DATA --resume {folder}`"
            )


def write_changes(folder: Path, config: Config, *, speed: Iterable[str] = ()) -> None:
    """Note in config.json what a run that goes on may have another of: where its images are, its length, its guard, its
    marks, and the settings of `speed` that were given."""
    content, now = read_json(folder / CONFIG), config.as_dict()
    content["config"] |= {"run": now["run"], "optim": now["optim"]}
    content["config"]["speed"] |= {name: now["speed"][name] for name in speed}
    content["config"]["data"]["root"] = config.data.root
    write_aside(folder / CONFIG, json.dumps(content, indent=1).encode())


@contextmanager
def sole(folder: Path) -> Iterator[None]:
    """Let no other process train in this folder while the body runs. Raises InputError where another process trains in
    it."""
    told = folder / TRAINER
    with locked(folder / LOCK, doing=f"training in {folder}") as held:
        if held:
            told.write_text(f"{os.getpid()} {platform.node()}\n")
        try:
            yield
        finally:
            told.unlink(missing_ok=True)


def trainer_of(folder: Path) -> str | None:
    """Return the process that trains in a folder, as its number and machine; None where none does. The lock is not
    looked at: a process that closes a file loses its locks on it. Of another machine's process nobody knows here
    whether it still lives: it does while it writes, and for STALE seconds more."""
    try:
        number, machine = (folder / TRAINER).read_text().split(maxsplit=1)
        process, machine = int(number), machine.strip()
        if machine != platform.node():
            newest = max(one.stat().st_mtime for one in folder.iterdir())
            return f"{process} on {machine}" if time.time() - newest < STALE else None
        os.kill(process, 0)
    except PermissionError:  # it lives, and is another person's
        return "one of another person"
    except (OSError, ValueError):  # no such process, or no such file
        return None
    return f"{process} on {machine}"


def command_line() -> str:
    """Return the command that was typed, for the report."""
    words = sys.argv[1:] if sys.argv[0].endswith(("simdino", "__main__.py")) else []
    return shlex.join(["simdino", *words]) if words else "simdino.pretrain(config, out)"


def goes_on(folder: Path) -> bool:
    """Return whether a launcher has started the same command once more, torchrun after a process died or Slurm after it
    requeued the job, and the run that it began lies in this folder."""
    again = any(int(os.environ.get(name) or 0) for name in RESTARTS)
    return again and is_run(folder) and read_metadata(folder).command == command_line()


def is_finished(folder: Path, config: Config) -> bool:
    """Return whether a run has done all its steps and written its report, and its last checkpoint is whole. Raises
    InputError for one of another configuration."""
    saved = checkpoints(folder)
    if not saved or step_of(saved[-1]) < config.run.steps or not (folder / "report.html").exists():
        return False
    if damage(saved[-1]) is not None:
        return False
    same_run(saved[-1], config)
    return True


def reopen(folder: Path) -> None:
    """Before a run goes on, remove what a killed process left half done, the report of an earlier end and the account
    of an earlier failure."""
    remove_leftovers(folder)
    for name in ("report.html", FAILURE):
        (folder / name).unlink(missing_ok=True)


def write_broken(folder: Path, broken: dict[str, str]) -> None:
    """Write broken.txt: a line with name and reason for each image that could not be read."""
    if broken:
        lines = (f"{one_line(name)}\t{readable(' '.join(reason.split()))}\n" for name, reason in sorted(broken.items()))
        write_aside(folder / "broken.txt", "".join(lines).encode())


def read_broken(folder: Path) -> dict[str, str]:
    """Return the names and reasons that `write_broken` wrote; empty without the file."""
    path = folder / "broken.txt"
    lines = path.read_bytes().decode(errors="surrogateescape").split("\n") if path.exists() else []
    pairs = (line.partition("\t") for line in lines if line)
    return {as_it_was(name): reason for name, _, reason in pairs}


FAILURE = "not-finite.json"


def write_failure(folder: Path, *, step: int, what: str, seed: int, processes: list[dict[str, list[str]]]) -> None:
    """Write not-finite.json: the step that was not taken, what was not finite, and of each process the names of its
    images and of those whose pixels are not finite. With the seed the step tells all random numbers."""
    content = {"step": step, "what": what, "seed": seed, "processes": processes}
    write_aside(folder / FAILURE, to_json(content).encode())


class Metrics:
    """Appends rows to the run's files. Opening it at a step drops what was written after that step."""

    def __init__(self, run: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (.3 s that only training needs)

        self.paths = {name: run / f"{name}.jsonl" for name in ("metrics", "speed")}
        for path in self.paths.values():
            kept = [row for row in read_rows(path) if row["step"] <= step]
            write_aside(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self.rows = read_rows(self.paths["metrics"])
        self.events = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, row: dict[str, Any], *, to: str = "metrics") -> None:
        """Append a row, which has a `step`."""
        if to == "metrics":
            self.rows.append(row)
        with named_in_errors(self.paths[to]), self.paths[to].open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self.events.add_scalar(f"{to}/{name}", value, row["step"])

    def best_step(self, *, after: int = 0) -> int | None:
        """Return the step of the best k-NN so far, the earliest of equals; None without scores after step `after`."""
        scored = [row for row in self.rows if row.get("knn") is not None and row["step"] > after]
        return max(scored, key=lambda row: (row["knn"], -row["step"]))["step"] if scored else None

    def close(self) -> None:
        """Flush the event file."""
        self.events.close()


@cache
def source_revision() -> str | None:
    """Return the commit of the running source, with "+" where files differ from it; None outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", str(here.parent)) else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def machine() -> str:
    """Return processor or GPU, cores and the versions that results depend on."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    return f"{os.cpu_count()} x {name}, Python {platform.python_version()}, torch {torch.__version__}"


def processor() -> str:
    """Return the processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)", info.read_text(), re.MULTILINE) if info.exists() else []
    return names[0].strip() if names else platform.processor() or platform.machine()


def peak_memory() -> float:
    """Return the most memory that this process has held so far, in MB: the GPU's where there is one, else resident
    memory; 0 where the system does not tell."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    if sys.platform == "win32":
        return 0.0
    import resource  # noqa: PLC0415 (not on Windows)

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / 1e6 if sys.platform == "darwin" else used / 1e3  # bytes there, kilobytes elsewhere
