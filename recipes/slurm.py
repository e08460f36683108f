"""Submit a run to Slurm from Python, by submitit (pip install 'simdino[slurm]'): what slurm.sbatch does, without a
script to edit.

    python recipes/slurm.py --nodes 2 --gpus 8 --hours 24 photos/ --out runs/photos

The other words are those of `simdino pretrain`, and are checked before anything is queued. Five minutes before its
time is over, or when the job is preempted, the run saves, the job is queued again, and when it starts the run goes on;
so it does where a machine has failed. --cluster local runs the job here, without Slurm.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from shutil import which
from typing import Any

import click

from simdino.cli.terminal import fail
from simdino.cli.training import pretrain
from simdino.errors import InputError
from simdino.extras import optional

SAVING = 300  # seconds before the end at which the run saves
AGAIN = 10_000  # times that a job may be queued again because its time was over


class Run:
    """What each machine of a job does: torchrun, with a process for each of its GPUs."""

    def __init__(self, words: list[str], processes: int) -> None:
        self.words, self.processes, self.torchrun = words, processes, 0

    def __call__(self) -> None:
        """Train until the run has ended. Raises RuntimeError where it failed, so that the job has failed too."""
        job = optional("submitit").JobEnvironment()
        port = 20_000 + int(job.raw_job_id) % 10_000
        # Slurm sends the signal that calls `checkpoint` to all processes of a job, of which it would end these
        command = [
            "sh", "-c", f"trap '' {job.USR_SIG}; exec \"$@\"", "sh", sys.executable, "-m", "torch.distributed.run",
            f"--nnodes={job.num_nodes}", f"--nproc-per-node={self.processes}", "--max-restarts=3",
            "--rdzv-backend=c10d", f"--rdzv-id={job.raw_job_id}", f"--rdzv-endpoint={job.hostnames[0]}:{port}",
            "-m", "simdino", "pretrain",
        ]  # fmt: skip
        # as in slurm.sbatch: else a process that is started again may wait for a dead one
        env = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        started = subprocess.Popen([*command, *self.words], env=env)
        self.torchrun = started.pid
        while started.poll() is None:
            time.sleep(1)
        if started.returncode:
            raise RuntimeError(f"simdino pretrain ended with exit code {started.returncode}")

    def checkpoint(self) -> Any:
        """Called by submitit on the first machine when the job must end: let the run save, and queue it again."""
        if self.torchrun:
            os.kill(self.torchrun, signal.SIGTERM)
            os.waitid(os.P_PID, self.torchrun, os.WEXITED | os.WNOWAIT)
        return optional("submitit").helpers.DelayedSubmission(Run(self.words, self.processes))


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """What was typed: what Slurm is told, and the words of `simdino pretrain`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--nodes", type=int, default=1, help="machines")
    parser.add_argument("--gpus", type=int, default=8, help="of each machine; 0: one process on its processors")
    parser.add_argument("--cpus", type=int, default=64, help="of each machine, for the workers that read images")
    parser.add_argument("--hours", type=float, default=24.0, help="after which the job is queued again")
    parser.add_argument("--sbatch", action="append", default=[], metavar="NAME=VALUE", help="as partition=gpu")
    parser.add_argument("--logs", default="runs/slurm", help="folder that all machines see")
    parser.add_argument("--cluster", choices=("slurm", "local"), default="slurm")
    given, words = parser.parse_known_args()
    if wrong := [one for one in given.sbatch if "=" not in one]:
        parser.error(f"--sbatch {wrong[0]} is no NAME=VALUE")
    return given, words


def submitted(given: argparse.Namespace, words: list[str]) -> Any:
    """Queue the job, and return what submitit knows of it. Raises InputError without submitit or without Slurm."""
    submitit = optional("submitit")
    if given.cluster == "local" and given.nodes > 1:
        raise InputError(f"--nodes {given.nodes} with --cluster local, which is this machine alone: leave one out")
    if given.cluster == "slurm" and which("srun") is None:
        raise InputError("srun is not here: queue the job on a machine of the cluster, or give --cluster local")
    executor = submitit.AutoExecutor(folder=given.logs, cluster=given.cluster, slurm_max_num_timeout=AGAIN)
    executor.update_parameters(
        name="simdino", nodes=given.nodes, tasks_per_node=1, gpus_per_node=given.gpus or None,
        cpus_per_task=given.cpus, timeout_min=round(60 * given.hours), slurm_signal_delay_s=SAVING,
        slurm_additional_parameters={"requeue": True, **dict(one.split("=", 1) for one in given.sbatch)},
    )  # fmt: skip
    return executor.submit(Run(words, max(1, given.gpus)))


def main() -> None:
    """Check the words, queue the job, and tell where it writes."""
    given, words = arguments()
    try:
        pretrain.make_context("simdino pretrain", list(words))
        job = submitted(given, words)
    except click.ClickException as error:
        fail(error.format_message(), code=2)
    except InputError as error:
        fail(str(error), code=2)
    print(f"job {job.job_id} is queued; it writes to {Path(given.logs) / str(job.job_id)}_0_log.out and .err")


if __name__ == "__main__":
    main()
