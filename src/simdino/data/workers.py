"""Items of a data set in order, made ahead by worker processes: the one way that images come from other processes.

torch's DataLoader hands over in a thread of the worker: where that fails, as with a full /dev/shm, the item is lost and
the main process waits for ever. Here a worker hands over itself, each through a pipe of its own. Tensors cross in
shared memory while all that can be in flight takes no more than half of what is free there, else in the pipe.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import cycle, islice
from math import ceil
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.multiprocessing as mp
from torch import Tensor

from simdino.contracts import InputError

AHEAD = 2  # items that a worker makes before they are asked for
POLL = 0.5  # seconds between two looks at what else happened while an item is waited for
STALL = 600.0  # seconds without an item after which a worker counts as stuck
FAREWELL = 1.0  # seconds that workers have to end by themselves
START = "fork" if sys.platform == "linux" else None  # a spawned one imports torch again, for every evaluation
SHARED = Path("/dev/shm")

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Waiting = Callable[[float], None]
"""Called every half second while an item is waited for, with the seconds so far; ends the wait by raising."""


class Items(Protocol[T_co]):
    """What can be made by position, in any process."""

    def __getitem__(self, i: int, /) -> T_co:
        """Item i."""
        ...


def patient(waited: float) -> None:
    """Waits on."""


def in_order(
    data: Items[T], order: Sequence[int], *, workers: int, ahead: int = AHEAD, waiting: Waiting = patient
) -> Iterator[T]:
    """Yields data[i] for each i of `order`. workers: processes that make the items, each `ahead` of them before they
    are asked for; with none this process does.

    Raises what an item raises, and InputError when a worker dies or hands over nothing for 600 s."""
    if not workers:
        yield from (data[i] for i in order)
        return
    free = shared_memory()
    share = free // (workers * ahead + 1)  # one more is being used
    pool = [Worker(data, share) for _ in range(min(workers, len(order)))]
    try:
        for worker, i in zip(cycle(pool), order[: len(pool) * ahead], strict=False):
            worker.ask(i)
        following = iter(order[len(pool) * ahead :])
        for worker in islice(cycle(pool), len(order)):
            item = worker.answer(waiting)
            if (size := tensor_bytes(item)) > share:
                tell_of_pipes(size=size, at_once=workers * ahead, room=free)
            for i in islice(following, 1):
                worker.ask(i)
            yield item
    finally:
        for worker in pool:
            worker.ask(None)
        deadline = time.monotonic() + FAREWELL
        for worker in pool:
            worker.end(deadline)


class Worker:
    """A process that makes the items it is asked for, one after the other."""

    def __init__(self, data: Items[Any], share: int) -> None:
        self.pipe, theirs = mp.Pipe()
        self.process = mp.get_context(START).Process(target=serve, args=(data, theirs, share), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends with the worker

    def ask(self, i: int | None) -> None:
        """Ask for item i, or with None for the end. A dead worker is noticed when its answer is due."""
        try:
            self.pipe.send(i)
        except ConnectionError:
            return

    def answer(self, waiting: Waiting) -> Any:
        """The next item asked for. Raises what making it raised, and InputError from a dead or stuck worker."""
        started = time.monotonic()
        while not self.pipe.poll(POLL):
            waited = time.monotonic() - started
            if not self.process.is_alive():
                break
            if waited > STALL:
                raise InputError(
                    f"a worker has read no image for {waited:.0f} s: is the disk that holds them stuck? `--workers 0` "
                    f"reads without workers"
                )
            waiting(waited)
        try:
            made, item = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            raise InputError(self._death()) from None
        if not made:
            raise item
        return item

    def _death(self) -> str:
        self.process.join(FAREWELL)
        code = self.process.exitcode or 0
        by = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return (
            f"a worker that reads images died {by}: memory, or shared memory ({SHARED}, in Docker --shm-size), may be "
            f"short; give fewer --workers, or `--workers 0`"
        )

    def end(self, deadline: float) -> None:
        """Wait for the end, not beyond the deadline. What the worker still hands over is let go: it could not end."""
        try:
            while self.process.is_alive() and time.monotonic() < deadline:
                if self.pipe.poll(POLL / 10):
                    self.pipe.recv_bytes()
        except (EOFError, OSError):
            self.process.join(max(0.0, deadline - time.monotonic()))
        self.process.kill()
        self.process.join()
        self.pipe.close()


def serve(data: Items[Any], pipe: Connection, share: int) -> None:
    """What a worker does: make what is asked for, until told to end or the main process is gone."""
    one_thread()
    asked: deque[int] = deque()
    try:
        while True:
            while not asked or pipe.poll():
                i = pipe.recv()
                if i is None:
                    return
                asked.append(i)
            pipe.send_bytes(packed(answered(data, asked.popleft()), share))
    except (EOFError, ConnectionError):
        return


def answered(data: Items[Any], i: int) -> tuple[bool, Any]:
    """(True, item i), or (False, the error that making it raised)."""
    try:
        return True, data[i]
    except Exception as error:
        if not isinstance(error, InputError):  # a mistake of ours: where it happened matters
            error.add_note(f"In a worker:\n{traceback.format_exc()}")
        return False, error


def packed(answer: tuple[bool, Any], share: int) -> bytes | memoryview:
    """The answer as it goes through the pipe: its tensors in shared memory where they take at most `share` bytes."""
    if tensor_bytes(answer) <= share:
        try:
            return ForkingPickler.dumps(answer)
        except (RuntimeError, OSError):  # somebody else has filled it
            pass
    return pickle.dumps(answer)


def tensor_bytes(item: Any) -> int:
    """The size of all tensors in an item: a tensor, or tuples, lists and dataclasses of such."""
    if isinstance(item, Tensor):
        return item.nbytes
    if is_dataclass(item):
        item = [getattr(item, field.name) for field in fields(item)]
    return sum(map(tensor_bytes, item)) if isinstance(item, tuple | list) else 0


def shared_memory() -> int:
    """Bytes of shared memory that this process's workers may take: half of what is free, in equal parts for all
    processes that torchrun started here. Unbounded where the system has no such place."""
    free = shutil.disk_usage(SHARED).free if SHARED.is_dir() else sys.maxsize
    return free // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@cache
def tell_of_pipes(*, size: int, at_once: int, room: int) -> None:
    """Say once that items do not fit into shared memory."""
    if os.environ.get("RANK", "0") != "0":
        return
    need = 2 * size * (at_once + 1)
    print(
        f"shared memory is short: half of what is free in {SHARED} is {room / 2**20:.1f} MB, too little for {at_once} "
        f"batches of {size / 2**20:.1f} MB; they come through pipes, which is slower (in Docker give --shm-size "
        f"{ceil(need / 2**20)}m)",
        file=sys.stderr,
    )


def one_thread() -> None:
    """Workers are processes already; threads in them would fight for the same cores. What stops a run (Ctrl-C, a
    scheduler's SIGTERM to all its processes) is for the main process to answer, which ends its workers."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=obey_main_process, daemon=True).start()


def obey_main_process() -> None:
    """End when the main process says so or is gone, and only then."""
    main, parent = mp.parent_process(), os.getppid()  # the parent may be a server that forks
    while os.getppid() == parent:
        told = signal.sigtimedwait({signal.SIGTERM}, FAREWELL)
        if told is not None and main is not None and told.si_pid == main.pid:
            break
    os._exit(0)
