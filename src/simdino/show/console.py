"""What the terminal shows while a run goes: a bar with ETA, images/s and data wait, or plain lines."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn, track

from simdino.text import readable
from simdino.train.loop import StepReport

T = TypeVar("T")


class ProgressBar:
    """Shows a run's steps: a bar on a terminal, a line every tenth of the run elsewhere."""

    def __init__(self) -> None:
        done, numbers = TextColumn("{task.completed}/{task.total}"), TextColumn("{task.description}")
        columns = BarColumn(), done, TimeElapsedColumn(), TimeRemainingColumn(), numbers
        self.bar = Progress(*columns, console=RichConsole(stderr=True))
        self.next_line = 0.0

    def progress(self, now: StepReport) -> None:
        """Show the numbers of a logged step."""
        mfu = "" if now.mfu is None else f"MFU {now.mfu:.0%}  "
        numbers = f"loss {now.loss:.3f}  {now.images_per_second:.0f} images/s  {mfu}data wait {now.data_wait:.0%}"
        if not sys.stderr.isatty():
            if now.step >= self.next_line or now.step == now.steps:
                print(f"step {now.step}/{now.steps}  {numbers}", file=sys.stderr, flush=True)
                self.next_line = now.step + now.steps / 10
            return
        if not self.bar.tasks:
            self.bar.start()
            self.bar.add_task("", total=now.steps)
        self.bar.update(self.bar.task_ids[0], completed=now.step, description=numbers)

    def close(self) -> None:
        """Stop the bar where it has begun."""
        if self.bar.tasks:
            self.bar.stop()


def watched(items: Iterable[T], what: str, total: int) -> Iterable[T]:
    """Pass items on, with a progress bar on stderr where that is a terminal."""
    console = RichConsole(stderr=True)
    if not console.is_terminal:  # older versions of rich end a bar with an empty line there, even one that is off
        return items
    return track(items, escape(readable(what)), total, console=console, transient=True)
