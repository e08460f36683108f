"""How long work talks to a person: a line to read, and a bar over what is iterated."""

import sys
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from simdino.text import readable

T = TypeVar("T")
Log = Callable[[str], None]
"""Called with a line for what a person should know."""


class Progress(Protocol):
    """Passes on what is iterated over, told what it is and how many there are: a progress bar, or nothing."""

    def __call__(self, items: Iterable[T], what: str, total: int, /) -> Iterable[T]:
        """Return the items."""
        ...


def to_stderr(line: str) -> None:
    """Print a line beside the output, which may be JSON."""
    print(readable(line), file=sys.stderr)


def no_bar(items: Iterable[T], what: str, total: int) -> Iterable[T]:
    """Return the items without showing anything."""
    return items
