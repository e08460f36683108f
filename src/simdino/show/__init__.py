"""Pictures of what an encoder sees, by their names, and one page that reports a run.

To add a picture, write its file with a function `show_NAME` and put the name into FILES: `simdino show NAME` is made of
its signature.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simdino.result import Result

FILES = ("attention", "pca", "masks", "neighbours", "map")
PICTURES: dict[str, Callable[..., Result]] = {
    name: getattr(import_module(f"simdino.show.{name}"), f"show_{name}") for name in FILES
}
