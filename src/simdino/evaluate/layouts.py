"""What protocols read: labelled images, plain images, or a folder in a layout of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from simdino.evaluate.given import Data, as_source

if TYPE_CHECKING:
    from simdino.evaluate.labels import Labelled

D = TypeVar("D")


@dataclass(frozen=True, kw_only=True)
class Layout(Generic[D]):
    """A kind of data.

    text: the help of --data. open: from what a person gave to what a protocol reads. folders: whether --train, --val
    and --class-depth say something of it. required: whether it must be given; else it is what a run was trained on."""

    text: str
    open: Callable[[Data], D]
    folders: bool = False
    required: bool = False


def as_labelled(data: Data) -> Labelled:
    """Labelled images, of which a protocol opens the splits that it needs."""
    from simdino.evaluate.labels import Labelled

    return Labelled(data)


def name_of(opened: Any) -> tuple[str, dict[str, int]]:
    """What opened data are called, and how many images of each split were opened."""
    if isinstance(opened, Path):
        return opened.expanduser().resolve().name, {}
    return opened.name, getattr(opened, "counted", {})


LABELLED = Layout(text="Labelled images.", open=as_labelled, folders=True)
IMAGES = Layout(text="Images; no labels are read.", open=as_source)
