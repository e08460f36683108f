"""What comes from workers comes in order, whatever memory there is; what does not come ends in one line."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from simdino.contracts import InputError
from simdino.data import workers
from simdino.data.opening import BrokenImage
from simdino.data.workers import in_order, packed, shared_memory, tensor_bytes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(workers.START != "fork", reason="workers are given what only a fork can pass on"),
]
MB = 2**20


@dataclass(frozen=True)
class Made:
    """An item as batches are: tensors in a dataclass."""

    image: Tensor
    rest: tuple[list[int], str]


class Numbered:
    """Item i is a tensor of i, one MB large."""

    def __init__(self, does: Callable[[int], None] = lambda _: None) -> None:
        self.does = does

    def __getitem__(self, i: int) -> Made:
        self.does(i)
        return Made(torch.full((MB,), i, dtype=torch.uint8), ([i], "a"))


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the free shared memory that is found."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(workers, "SHARED", Path("/"))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return lambda free: monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2 * free, free, free))


def numbers(items: Iterator[Made]) -> list[int]:
    found = []
    for item in items:
        assert (item.image == item.rest[0][0]).all()
        found.append(item.rest[0][0])
    return found


def worker_count() -> int:
    return len(multiprocessing.active_children())


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("prefetch", [1, 4])
def test_items_come_in_order(count: int, prefetch: int) -> None:
    order = [5, 0, 7, 7, 2, 9, 1]
    assert numbers(in_order(Numbered(), order, workers=count, prefetch=prefetch)) == order
    assert numbers(in_order(Numbered(), [], workers=count, prefetch=prefetch)) == []
    assert not worker_count()


@pytest.mark.parametrize("free", [0, 5 * MB, 2**40])
def test_items_are_the_same_whatever_shared_memory_there_is(free: int, room: Callable[[int], None]) -> None:
    room(free)
    assert numbers(in_order(Numbered(), range(6), workers=2)) == list(range(6))


def test_what_is_in_flight_takes_no_more_than_half_of_the_free_shared_memory(
    room: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers with two items each and the one in use are five: of 1 MB they need 10 MB free."""
    room(10 * MB)
    shares: list[int] = []

    class Recorded(workers.Worker):
        def __init__(self, data: workers.Items[Made], share: int) -> None:
            super().__init__(data, share)
            shares.append(share)

    monkeypatch.setattr(workers, "Worker", Recorded)
    assert numbers(in_order(Numbered(), range(6), workers=2)) == list(range(6))
    assert shares == [MB, MB]
    item = Numbered()[3]
    assert tensor_bytes(item) == MB
    assert len(packed((True, item), MB)) < 2000 < MB < len(packed((True, item), MB - 1))


def test_shared_memory_is_half_of_what_is_free_in_equal_parts_for_processes(
    room: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    room(64)
    assert shared_memory() == 32
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert shared_memory() == 8
    monkeypatch.setattr(workers, "SHARED", Path("/no/such/place"))
    assert shared_memory() > 2**50


def test_an_allocation_that_fails_goes_through_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> bytes:
        raise RuntimeError("unable to allocate shared memory(shm) for file: No space left on device (28)")

    item = Numbered()[3]
    monkeypatch.setattr(workers.ForkingPickler, "dumps", full)
    made, back = pickle.loads(packed((True, item), MB))
    assert made and torch.equal(back.image, item.image) and back.rest == item.rest


def test_pipes_are_told_of_once_with_what_to_give_docker(
    room: Callable[[int], None], capfd: pytest.CaptureFixture[str]
) -> None:
    workers.tell_of_pipes.cache_clear()
    room(4 * MB)
    for _ in range(2):
        assert numbers(in_order(Numbered(), range(3), workers=1)) == [0, 1, 2]
    (line,) = capfd.readouterr().err.splitlines()
    assert "shared memory is short" in line and "2.0 MB" in line and "--shm-size" in line
    room(6 * MB)
    assert numbers(in_order(Numbered(), range(3), workers=1)) == [0, 1, 2]
    assert not capfd.readouterr().err


def fail(i: int, error: type[Exception] = InputError) -> None:
    if i == 2:
        raise error("the disk", "is gone")


def test_what_an_item_raises_is_raised_here(capfd: pytest.CaptureFixture[str]) -> None:
    for error in (InputError, BrokenImage):
        stream = in_order(Numbered(lambda i, error=error: fail(i, error)), range(5), workers=2)
        assert next(stream).rest[0] == [0]
        with pytest.raises(error, match="the disk") as caught:
            list(stream)
        assert ("In a worker" in "".join(getattr(caught.value, "__notes__", []))) == (error is BrokenImage)
    assert not worker_count() and not capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS, signal.SIGSEGV])
@pytest.mark.parametrize("count", [1, 2])
def test_a_worker_that_dies_ends_in_one_line(number: signal.Signals, count: int) -> None:
    def die(i: int) -> None:
        if i == 3:
            faulthandler.disable()
            os.kill(os.getpid(), number)
            time.sleep(60)

    with pytest.raises(InputError, match=f"died by {number.name}.*--shm-size.*--workers 0") as caught:
        list(in_order(Numbered(die), range(8), workers=count))
    assert "\n" not in str(caught.value) and not worker_count()


def test_workers_killed_from_outside_while_they_are_idle_end_in_one_line() -> None:
    stream = in_order(Numbered(), range(8), workers=2, prefetch=1)
    next(stream)
    for worker in multiprocessing.active_children():
        worker.kill()
    with pytest.raises(InputError, match="died by SIGKILL"):
        list(stream)


def sleep_at_two(i: int) -> None:
    if i == 2:
        time.sleep(600)


def test_a_worker_that_hangs_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "POLL", 0.01)
    monkeypatch.setattr(workers, "STALL", 0.2)
    monkeypatch.setattr(workers, "FAREWELL", 0.1)
    stream = in_order(Numbered(sleep_at_two), range(5), workers=2)
    assert [next(stream).rest[0][0], next(stream).rest[0][0]] == [0, 1]
    with pytest.raises(InputError, match=r"no image for 0 s.*--workers 0") as caught:
        next(stream)
    assert "\n" not in str(caught.value) and not worker_count()


def test_a_wait_can_be_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "POLL", 0.01)
    monkeypatch.setattr(workers, "FAREWELL", 0.1)
    waits: list[float] = []

    def impatient(waited: float) -> None:
        waits.append(waited)
        if len(waits) == 3:
            raise KeyboardInterrupt

    stream = in_order(Numbered(sleep_at_two), [2, 2], workers=2, waiting=impatient)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert waits == sorted(waits) and not worker_count()


def test_a_stream_that_is_left_early_leaves_no_worker_behind(room: Callable[[int], None]) -> None:
    for free in (0, 2**40):  # in a pipe, a worker's answer waits until somebody takes it
        room(free)
        stream = in_order(Numbered(), range(100), workers=2)
        next(stream)
        assert worker_count() == 2
        stream.close()  # pyright: ignore[reportAttributeAccessIssue]
        assert not worker_count()


def gone(pid: str) -> bool:
    """Whether a process has ended; nobody may have asked for its exit code yet."""
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "State:\tZ" in status.read_text()


ORPHANS = """
import os, signal, sys, time
from simdino.data.workers import in_order
class Slow:
    def __getitem__(self, i):
        if i == {slow}: time.sleep(600)
        return os.getpid()
stream = in_order(Slow(), range(100), workers=2, prefetch=1)
print(next(stream), next(stream), flush=True)
os.kill(os.getpid(), signal.{signal})
"""


@pytest.mark.parametrize(("name", "slow"), [("SIGKILL", -1), ("SIGKILL", 2), ("SIGTERM", 2)])
def test_workers_end_with_their_main_process(name: str, slow: int) -> None:
    """Also one that hangs. Their end of the pipe to us closes when the last of them is gone."""
    code = ORPHANS.format(slow=slow, signal=name)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == -getattr(signal, name)
    pids = ended.stdout.split()
    assert len(pids) == 2
    while not all(map(gone, pids)):
        time.sleep(0.01)


SMALL = """
import torch
from simdino.data.workers import in_order
class Large:
    def __getitem__(self, i):
        return torch.full((10 * 2**20,), i, dtype=torch.uint8)
print([int(x[-1]) for x in in_order(Large(), range(7), workers={workers})])
"""


@pytest.mark.parametrize("count", [1, 2])
def test_with_little_shared_memory_nothing_hangs(count: int) -> None:
    """The real thing, in a name space of its own with 16 MB of it."""
    mount = "mount -t tmpfs -o size=16m tmpfs /dev/shm && "
    try:
        subprocess.run(["unshare", "-rm", "sh", "-c", mount + "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("unshare or mount is not permitted here")
    code = SMALL.format(workers=count)
    ended = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount + 'exec "$0" -c "$1"', sys.executable, code],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.stdout.strip() == str(list(range(7))), ended.stderr
    assert "--shm-size" in ended.stderr and "Traceback" not in ended.stderr


def test_workers_can_be_started_outside_of_the_main_thread() -> None:
    """Pinned batches are taken by a thread."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.extend(numbers(in_order(Numbered(), range(4), workers=1))))
    thread.start()
    thread.join()
    assert found == [0, 1, 2, 3]
