"""Warm processes: a server that has imported torch once forks a process per command, so that a test can kill one.

A test marked `extra("timm")` is skipped where that package is missing, `extra("fashion-mnist")` where that set is,
`extra("chromium")` without that browser: the others hold without any extra. One marked `gpu` is skipped without a CUDA
GPU. `vit_toy` is an encoder of one narrow layer that only tests have.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a package, a data set or a GPU that is not here."""
    for needed in (name for mark in item.iter_markers("extra") for name in mark.args):
        if needed == "fashion-mnist":
            from simdino.data.builtin import fashion_mnist_available

            if not fashion_mnist_available():
                pytest.skip("fashion-mnist is not on this machine")
        elif needed == "chromium":
            from browser import installed

            if installed() is None:
                pytest.skip("no Chromium on this machine")
        else:
            pytest.importorskip(needed)
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA GPU")


PATIENCE = 300.0  # seconds that a test waits for a command; a hang is an error that names it
PICO = (32, 1, 2)  # width, depth, heads
PRELOAD = [
    "simdino.pretraining",
    "simdino.features.table",
    "simdino.show.console",
    "sklearn.datasets",
    "torch._dynamo",
    "conftest",
]


def run_words(words: list[str], out: str, err: str) -> None:
    """What the forked process does: `simdino WORDS`, its streams in files, as the leader of its own process group."""
    os.setpgid(0, 0)
    multiprocessing.set_start_method("fork", force=True)  # the system's own; a forked server would pass on its own
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    from simdino.cli import main
    from simdino.models.catalogue import ENCODERS
    from simdino.models.vit import vit

    ENCODERS["vit_toy"] = vit(*PICO)
    main(words)


class Command:
    """A running `simdino WORDS`."""

    def __init__(self, process: BaseProcess, out: Path, err: Path) -> None:
        self.process, self.out, self.err = process, out, err
        process.start()

    @property
    def running(self) -> bool:
        return self.process.exitcode is None

    def until(self, moment: Callable[[], bool]) -> bool:
        """Wait for a moment; False if the process ended before it came. Raises TimeoutError after PATIENCE."""
        end = time.monotonic() + PATIENCE
        while self.running:
            if moment():
                return True
            if time.monotonic() > end:
                raise TimeoutError(f"waited {PATIENCE:.0f} s in vain; the command wrote: {self.errors}")
            time.sleep(0.001)
        return False

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the process, or to it and its workers as a scheduler does."""
        assert self.process.pid is not None
        (os.killpg if group else os.kill)(self.process.pid, number)

    def kill(self) -> bool:
        """SIGKILL; False if the process was faster."""
        if self.running:
            self.signal(signal.SIGKILL)
        self.process.join()
        return self.process.exitcode == -signal.SIGKILL

    def ends(self) -> int:
        """Wait for the end; the exit code. Raises TimeoutError after PATIENCE."""
        self.process.join(PATIENCE)
        if self.process.exitcode is None:
            raise TimeoutError(f"the command did not end in {PATIENCE:.0f} s and wrote: {self.errors}")
        return self.process.exitcode

    @property
    def errors(self) -> str:
        return self.err.read_text()

    @property
    def answer(self) -> str:
        return self.out.read_text()


Start = Callable[..., Command]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """`start("pretrain", "digits", ...)` starts a command in a warm process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    folder = tmp_path_factory.mktemp("streams")
    started: list[Command] = []

    def begin(*words: object) -> Command:
        out, err = (folder / f"{len(started)}.{kind}" for kind in ("out", "err"))
        process = context.Process(target=run_words, args=([str(word) for word in words], str(out), str(err)))
        started.append(Command(process, out, err))
        return started[-1]

    yield begin
    for command in started:
        command.kill()


@pytest.fixture(scope="session", autouse=True)
def no_indices() -> None:
    """Tests leave no indices in the user's cache; those of the index turn it on, in a folder of their own."""
    os.environ["SIMDINO_INDEX"] = "off"


@pytest.fixture(scope="session", autouse=True)
def pico() -> Iterator[None]:
    """The encoder `vit_toy`, in this process too."""
    from simdino.models.catalogue import ENCODERS
    from simdino.models.vit import vit

    ENCODERS["vit_toy"] = vit(*PICO)
    yield
    del ENCODERS["vit_toy"]


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`hide("timm")`: from here on the package cannot be imported, as if it were not installed."""

    def hidden(package: str) -> None:
        loaded = [name for name in sys.modules if name.startswith(f"{package}.")]
        for name in (package, *loaded):
            monkeypatch.setitem(sys.modules, name, None)

    return hidden


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Commands that a test runs in this process may set the number of threads; afterwards it is as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
