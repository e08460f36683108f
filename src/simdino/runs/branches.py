"""A run with `--schedule wsd` whose length changes: the same run goes on for longer, or its trunk goes on in a new
folder, where it cools down while the old one stays as it is."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simdino.config import COUNT, Config
from simdino.contracts import InputError
from simdino.device import present_device
from simdino.feedback import Log
from simdino.files import WRITING
from simdino.marks import read_marks
from simdino.methods import check_config
from simdino.options import Options
from simdino.runs.checkpoints import checkpoints, newest_whole, same_run, step_of
from simdino.runs.folder import trainer_of
from simdino.saved import METRICS
from simdino.settings import shown, wrong_with
from simdino.trunk import stable_from, trunk_end, with_length

COPIED = ("broken.txt", METRICS, "pictures/views.png")
"""What a branch takes over of the folder of its trunk, beside a checkpoint; of the numbers, those until then."""
COPYING = f"{WRITING}branch"  # in the folder of a branch that is no run yet


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a person asks of a run that goes on, beside that it does. None: nothing.

    steps: another length. guard, stop_below: another `run.guard`, `run.stop_below`. speed: other settings of `speed`,
    by name. cool_down: steps of a cool-down in a new folder. at: the step of the checkpoint that the new folder starts
    from, the newest of the trunk unless given. out: the new folder."""

    steps: int | None = None
    guard: int | None = None
    stop_below: tuple[str, ...] | None = None
    speed: Mapping[str, Any] | None = None
    cool_down: int | None = None
    at: int | None = None
    out: Path | None = None

    @property
    def elsewhere(self) -> bool:
        """Whether the run goes on in a new folder."""
        return self.cool_down is not None or self.out is not None

    def check(self, folder: Path, config: Config) -> None:
        """Raise InputError for what cannot be asked of a run."""
        options = Options(self._speed(), steps=self.steps, guard=self.guard, stop_below=self.stop_below)
        read_marks(options.get("run.stop_below"))
        for word, value in (("--cool-down", self.cool_down), ("--at", self.at)):  # of Python
            if value is not None and (wrong := wrong_with(value, int, COUNT)):
                raise InputError(f"{word} {shown(value)} must be {wrong}")
        if self.steps is not None and self.cool_down is not None:
            raise InputError("--steps and --cool-down contradict each other: the steps of a branch are its cool-down's")
        if self.out is not None and self.steps is None and self.cool_down is None:
            raise InputError(
                f"--out has no effect here: --resume goes on in {folder}; with --cool-down or --steps it names a new "
                f"folder"
            )
        if self.at is not None and not self.elsewhere:
            raise InputError("--at has no effect here: it needs --cool-down, or --steps with --out")
        if self.guard is not None and config.run.init is None:
            raise InputError(f"--guard has no effect here: {folder} began without --init")
        if (self.steps is not None or self.cool_down is not None) and trunk_end(config) is None:
            word = "--steps" if self.cool_down is None else "--cool-down"
            raise InputError(
                f"{word} has no effect here: {folder} has --schedule cosine, whose learning rate falls over the whole "
                f"length; a run that began with --schedule wsd can be prolonged and cooled down"
            )

    def _speed(self) -> dict[str, Any]:
        """Return the settings of `speed` by their paths."""
        return {f"speed.{name}": value for name, value in (self.speed or {}).items()}

    def applied(self, folder: Path, config: Config) -> Config:
        """Return the configuration with which a run goes on in its own folder. Raises InputError as `check` does, and
        where a run that has begun to cool down would be prolonged."""
        self.check(folder, config)
        if self.guard is not None:
            config = replace(config, run=replace(config.run, guard=self.guard))
        if self.stop_below is not None:
            config = replace(config, run=replace(config.run, stop_below=tuple(self.stop_below)))
        given = dict(self.speed or {})
        if "device" in given:
            given["device"] = present_device(given["device"])
        config = replace(config, speed=replace(config.speed, **given))
        if self.steps is None or self.elsewhere:
            return config
        if self.steps <= config.run.steps:
            raise InputError(f"--steps {self.steps} is no more than {folder} has: {config.run.steps}")
        saved, end = checkpoints(folder), trunk_end(config)
        if saved and end is not None and step_of(saved[-1]) > end:
            raise InputError(
                f"{folder} has been cooling down since step {end}, so it is not prolonged: simdino pretrain --resume "
                f"{folder} --steps {self.steps} --out NEW goes on with its trunk in a new folder"
            )
        return with_length(config, self.steps)


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A run that starts from a checkpoint of another's trunk."""

    trunk: Path
    checkpoint: Path
    config: Config
    folder: Path

    @property
    def origin(self) -> dict[str, object]:
        """What the config.json of the new run says of where it comes from."""
        return {"run": str(self.trunk), "step": step_of(self.checkpoint)}

    def clear(self) -> None:
        """Remove what a call left that was killed while it copied."""
        if (self.folder / COPYING).exists():
            shutil.rmtree(self.folder)

    @contextmanager
    def copied(self) -> Iterator[None]:
        """Put the checkpoint, the numbers and what else belongs to them into the new folder, which exists; the body
        makes it a run. A kill before that leaves a folder that `clear` knows."""
        (self.folder / COPYING).touch()
        for name in COPIED:
            if (self.trunk / name).is_file():
                (self.folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(self.trunk / name, self.folder / name)
        shutil.copytree(self.checkpoint, self.folder / "checkpoints" / self.checkpoint.name)
        yield
        (self.folder / COPYING).unlink()


def branch_of(folder: Path, config: Config, asked: Asked, *, log: Log) -> Branch:
    """Return the branch that is asked for of the run in a folder. Raises InputError where it has no such checkpoint, or
    not in its trunk, and where the steps leave no room.

    config: that of the trunk, with a guard that was asked for. Of a trunk that is still training the step must be
    named: its newest checkpoint is another for each process that looks."""
    if asked.at is None and (trainer := trainer_of(folder)):
        raise InputError(f"{folder} is still training (process {trainer}): say after which step, --at")
    checkpoint = in_trunk(folder, config, asked.at, log)
    step = step_of(checkpoint)
    if asked.cool_down is not None:
        steps = step + asked.cool_down
        longer = with_length(config, steps, cooldown=asked.cool_down / steps)
    else:
        assert asked.steps is not None
        longer = with_length(config, asked.steps)
    end = trunk_end(longer)
    if end is None or end < step:
        raise InputError(f"--steps {asked.steps} cools down from step {end}, before step {step} of {folder}: give more")
    if longer.run.steps <= step:
        raise InputError(f"--steps {asked.steps} is no more than {step}, where {folder} is: give more")
    check_config(longer)
    same_run(checkpoint, longer)
    whole = folder.resolve()
    out = asked.out or whole.with_name(f"{whole.name}-cooled-{longer.run.steps}")
    return Branch(trunk=folder, checkpoint=checkpoint, config=longer, folder=out)


def in_trunk(folder: Path, config: Config, at: int | None, log: Log) -> Path:
    """Return the checkpoint of the trunk after step `at`, or the newest that is whole. Raises InputError where there is
    none."""
    end, start = trunk_end(config), stable_from(config)
    assert end is not None
    saved = {step_of(path): path for path in checkpoints(folder)}
    stable = {step: path for step, path in saved.items() if start <= step <= end}
    if at is None and (newest := newest_whole(folder, [stable[step] for step in sorted(stable)], log)):
        return newest
    if at in stable:
        return stable[at]
    which = "" if at is None else f" of step {at}"
    raise InputError(
        f"{folder} has no checkpoint{which} in its trunk, which is stable from step {start} to {end}; of these it "
        f"keeps {', '.join(map(str, sorted(stable))) or 'none'}"
    )
