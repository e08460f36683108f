"""Worker processes that make the items of a data set in order and in advance; all images from other processes come this
way.

torch's DataLoader hands items over in a thread of the worker: where that fails, as with a full /dev/shm, the item is
lost and the main process waits for ever. Here the worker itself hands over, each through a pipe of its own. Tensors go
through shared memory while all in flight take no more than half of what is free there, otherwise through the pipe."""

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

PREFETCH = 2  # items that each worker makes in advance
POLL = 0.5  # seconds between two checks of the worker while an item is waited for
STALL = 600.0  # seconds without an item after which a worker counts as stuck
FAREWELL = 1.0  # seconds that workers have to end by themselves
START = "fork" if sys.platform == "linux" else None  # a spawned worker imports torch again, for every evaluation
SHARED = Path("/dev/shm")

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Waiting = Callable[[float], None]
"""Called every half second while an item is waited for, with the seconds so far; it ends the wait by raising."""


class Items(Protocol[T_co]):
    """Something whose items can be made by position, in any process."""

    def __getitem__(self, i: int, /) -> T_co:
        """Return item i."""
        ...


def patient(waited: float) -> None:
    """Wait on, whatever the time so far."""


def in_order(
    data: Items[T], order: Sequence[int], *, workers: int, prefetch: int = PREFETCH, waiting: Waiting = patient
) -> Iterator[T]:
    """Yield data[i] for each i of `order`. workers: processes that make the items, each `prefetch` of them in advance;
    with 0 this process makes them.

    Raises what an item raises, and InputError when a worker dies or hands over nothing for 600 s."""
    if not workers:
        yield from (data[i] for i in order)
        return
    free = shared_memory()
    share = free // (workers * prefetch + 1)  # one more item is in use
    pool = [Worker(data, share) for _ in range(min(workers, len(order)))]
    try:
        for worker, i in zip(cycle(pool), order[: len(pool) * prefetch], strict=False):
            worker.ask(i)
        following = iter(order[len(pool) * prefetch :])
        for worker in islice(cycle(pool), len(order)):
            item = worker.answer(waiting)
            if (size := tensor_bytes(item)) > share:
                tell_of_pipes(size=size, at_once=workers * prefetch, room=free)
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
        """Ask for item i, or with None for the end. A dead worker is noticed when its item is due."""
        try:
            self.pipe.send(i)
        except ConnectionError:
            return

    def answer(self, waiting: Waiting) -> Any:
        """Return the next item asked for. Raises what making it raised, and InputError for a dead or stuck worker."""
        started = time.monotonic()
        while not self.pipe.poll(POLL):
            waited = time.monotonic() - started
            if not self.process.is_alive():
                break
            if waited > STALL:
                raise InputError(
                    f"a worker (process {self.process.pid}) has read no image for {waited:.0f} s: is the disk that "
                    f"holds them stuck? `--workers 0` reads without workers"
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
        """Wait until the worker ends or the deadline comes. Items that it still hands over are dropped, so that it can
        end."""
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
    """Make the items asked for, in the worker process, until told to end or the main process is gone."""
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
    """Return (True, item i), or (False, the error that making it raised)."""
    try:
        return True, data[i]
    except Exception as error:
        if not isinstance(error, InputError):  # a bug: where it happened matters
            error.add_note(f"In a worker:\n{traceback.format_exc()}")
        return False, error


def packed(answer: tuple[bool, Any], share: int) -> bytes | memoryview:
    """Return the answer as it goes through the pipe, its tensors in shared memory if they take at most `share`
    bytes."""
    if tensor_bytes(answer) <= share:
        try:
            return ForkingPickler.dumps(answer)
        except (RuntimeError, OSError):  # another process has filled the shared memory
            pass
    return pickle.dumps(answer)


def tensor_bytes(item: Any) -> int:
    """Return the bytes of all tensors in an item: a tensor, or tuples, lists and dataclasses of tensors."""
    if isinstance(item, Tensor):
        return item.nbytes
    if is_dataclass(item):
        item = [getattr(item, field.name) for field in fields(item)]
    return sum(map(tensor_bytes, item)) if isinstance(item, tuple | list) else 0


def shared_memory() -> int:
    """Return the bytes of shared memory that this process's workers may take: half of what is free, shared equally
    among the processes that torchrun started on this machine. Unbounded where the system has none."""
    free = shutil.disk_usage(SHARED).free if SHARED.is_dir() else sys.maxsize
    return free // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@cache
def tell_of_pipes(*, size: int, at_once: int, room: int) -> None:
    """Print once that items do not fit into shared memory."""
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
    """Limit a worker to one thread, since workers already run in parallel, and leave the signals that stop a run
    (Ctrl-C, a scheduler's SIGTERM to all processes) to the main process, which ends its workers."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=obey_main_process, daemon=True).start()


def obey_main_process() -> None:
    """Exit when the main process says so or is gone, and only then."""
    main, parent = mp.parent_process(), os.getppid()  # the parent may be a server that forks
    while os.getppid() == parent:
        told = signal.sigtimedwait({signal.SIGTERM}, FAREWELL)
        if told is not None and main is not None and told.si_pid == main.pid:
            break
    os._exit(0)
