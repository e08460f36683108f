"""The scripts in recipes/, on a few tiny images."""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from run_metadata import write_metadata
from simdino.runs.checkpoints import checkpoints
from simdino.saved import read_rows

RECIPES = Path(__file__).parents[1] / "recipes"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def run_script(name: str, *words: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, words)])
        runpy.run_path(str(RECIPES / name), run_name="__main__")


def write_images(root: Path, *, channels: int) -> Path:
    random = np.random.default_rng(channels)
    for split, count in (("train", 15), ("val", 3)):
        for kind, level in (("dark", 60), ("light", 190)):
            (root / split / kind).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(level - 50, level + 50, (8, 8, channels), dtype=np.uint8)
                Image.fromarray(pixels.squeeze()).save(root / split / kind / f"{i}.png")
    return root


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    return write_images(tmp_path / "grey", channels=1), write_images(tmp_path / "colour", channels=3)


def test_transfer_trains_on_each_scores_on_both_and_goes_on_where_it_stands(
    sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    run_script("transfer.py", *sets, "--steps", 2, "--out", out)
    printed = capsys.readouterr().out
    assert "trained on grey" in printed
    assert "scored on colour" in printed
    for name in ("grey", "colour"):
        rows = [json.loads(line) for line in (out / name / "evaluations.jsonl").read_text().splitlines()]
        assert {row["data"]: row["trained_on"] for row in rows} == {"grey": name == "grey", "colour": name == "colour"}
        assert all(row["results"].keys() == {"encoder", "random initialisation", "raw pixels"} for row in rows)
        assert "not trained on these images" in (out / name / "report.html").read_text()
    assert "<h2>Scores</h2>" in (out / "comparison.html").read_text()
    run_script("transfer.py", *sets, "--steps", 2, "--out", out)
    again = capsys.readouterr().out
    assert again.count("is finished: all 2 steps are done") == 2
    assert again[again.index("k-NN accuracy, %") :] == printed[printed.index("k-NN accuracy, %") :]


def test_transfer_refuses_one_set_and_runs_on_other_data(sets: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="two different"):
        run_script("transfer.py", sets[0], f"{sets[0]}/", "--out", tmp_path / "runs")
    folder = tmp_path / "runs" / "grey"
    folder.mkdir(parents=True)
    write_metadata(folder, "elsewhere")
    with pytest.raises(SystemExit, match="was trained on other data"):
        run_script("transfer.py", *sets, "--steps", 2, "--out", tmp_path / "runs")


# Launchers, on the processors of this machine

TOY = [
    "--steps", "60", "--evaluate-every", "60", "--encoder", "vit_pico", "--batch", "8", "--threads", "1", "--workers",
    "0", "--device", "cpu",
]  # fmt: skip
FAKES = {
    "srun": '"$@" & child=$!; trap "kill -TERM $child" TERM; wait $child; wait $child',
    "scontrol": 'case "$1" in show) echo localhost;; *) echo "$@" >> "$TOLD";; esac',
}


def launched(name: str, *words: object, tmp_path: Path, **more: str) -> subprocess.Popen[str]:
    """Start a script with the commands of this environment, and with stand-ins for Slurm's."""
    for command, script in FAKES.items():
        (tmp_path / command).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / command).chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "TOLD": str(tmp_path / "told"), "OMP_NUM_THREADS": "1", **more}
    command = [str(RECIPES / name), *map(str, words)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def by_submitit(*words: object, tmp_path: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """What recipes/slurm.py says and ends with, of a run whose folder is the last of the words."""
    command = [sys.executable, str(RECIPES / "slurm.py"), "--logs", str(tmp_path / "logs"), *map(str, words)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def descendants(process: int) -> list[int]:
    """A process and all that it has started, by Linux's list."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [process, *(one for child in children for one in descendants(int(child)))]


def free_port() -> str:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return str(one.getsockname()[1])


def steps_of(run: Path) -> int:
    """The last step of a run; 0 before any."""
    return max((row["step"] for row in read_rows(run / "metrics.jsonl")), default=0)


@pytest.mark.parametrize("name", ["one_gpu.sh", "eight_gpus.sh"])
def test_a_machine_trains(name: str, sets: tuple[Path, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = launched(name, sets[0], "--out", run, *TOY, "--steps", 2, tmp_path=tmp_path, GPUS="2")
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert steps_of(run) == 2


def test_two_machines_train_one_run(sets: tuple[Path, Path], tmp_path: Path) -> None:
    run, port = tmp_path / "run", free_port()
    words = ("localhost", sets[0], "--out", run, *TOY, "--steps", 2)
    nodes = [launched("two_nodes.sh", *words, tmp_path=tmp_path, GPUS="1", PORT=port) for _ in range(2)]
    said = [node.communicate()[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert steps_of(run) == 2 and sum("k-NN" in words for words in said) == 1, "one of them speaks"


def test_a_job_of_slurm_saves_before_its_time_is_over_and_goes_on_when_it_is_queued_again(
    sets: tuple[Path, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n", "SLURM_GPUS_PER_NODE": "2"}
    words = (sets[0], "--out", run, *TOY, "--checkpoint-every", 50)
    process = launched("slurm.sbatch", *words, tmp_path=tmp_path, PORT=free_port(), **job)
    while process.poll() is None and not steps_of(run):
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate()
    assert (tmp_path / "told").read_text() == "requeue 7\n", said
    assert "saved; go on with" in said
    reached = steps_of(run)
    assert 0 < reached < 60 and checkpoints(run)[-1].name == f"step-{reached:08d}", said
    again = launched("slurm.sbatch", *words, tmp_path=tmp_path, PORT=free_port(), SLURM_RESTART_COUNT="1", **job)
    said, _ = again.communicate()
    assert again.returncode == 0 and f"resuming {run} after step {reached} of 60" in said
    assert steps_of(run) == 60


@pytest.mark.extra("submitit")
def test_a_job_of_submitit_saves_when_it_is_preempted_and_goes_on_when_it_starts_again(
    sets: tuple[Path, Path], tmp_path: Path
) -> None:
    run, how = tmp_path / "run", ("--cluster", "local", "--gpus", 0, "--hours", 1)
    words = (sets[0], "--out", run, *TOY, "--checkpoint-every", 50)
    queued = by_submitit(*how, *words, tmp_path=tmp_path)
    assert queued.returncode == 0, queued.stderr
    job = int(queued.stdout.split()[1])
    out, err = (tmp_path / "logs" / f"{job}_0_log.{end}" for end in ("out", "err"))
    assert str(out) in queued.stdout
    while not steps_of(run):
        assert descendants(job), err.read_text()
        time.sleep(0.01)
    for process in descendants(job)[1:]:  # as Slurm does it, to all but the first, which stands for Slurm here
        os.kill(process, signal.SIGUSR2)
    while steps_of(run) < 60:
        assert descendants(job), err.read_text()
        time.sleep(0.1)
    said = err.read_text()
    assert said.count("saved; go on with") == 1, said
    reached = int(said.split(f"resuming {run} after step ")[1].split()[0])
    assert 0 < reached < 60
    while descendants(job):
        time.sleep(0.1)
    assert "Exiting after successful completion" in out.read_text() + err.read_text()


@pytest.mark.extra("submitit")
def test_a_job_of_submitit_asks_slurm_for_machines_and_to_be_queued_again(tmp_path: Path) -> None:
    fakes = {"srun": "exit 0", "sbatch": f'cp "$1" {tmp_path}/asked; echo Submitted batch job 7'}
    for command, script in fakes.items():
        (tmp_path / command).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / command).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    words = ("--nodes", 2, "--gpus", 4, "--hours", 2, "--sbatch", "partition=big", "photos", "--out", "runs/photos")
    done = by_submitit(*words, tmp_path=tmp_path, PATH=path)
    assert done.returncode == 0 and "job 7 is queued" in done.stdout, done.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    for line in (
        "nodes=2", "gpus-per-node=4", "ntasks-per-node=1", "time=120", "signal=USR2@300", "requeue", "partition=big",
    ):  # fmt: skip
        assert f"#SBATCH --{line}" in asked


@pytest.mark.extra("submitit")
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--cluster", "local", "photos", "--stepz", 3), "--stepz"),
        (("--cluster", "local", "--nodes", 2, "photos"), "this machine alone"),
        (("--cluster", "slurm", "photos"), "srun"),
    ],
)
def test_what_cannot_be_queued_is_refused_in_a_line(words: tuple[object, ...], line: str, tmp_path: Path) -> None:
    done = by_submitit(*words, tmp_path=tmp_path, PATH=f"{tmp_path}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and line in done.stderr, done.stderr


def test_without_submitit_a_line_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "submitit.py").write_text("raise ModuleNotFoundError")
    done = by_submitit("photos", tmp_path=tmp_path, PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "pip install 'simdino[slurm]'" in done.stderr
