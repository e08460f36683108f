"""The keywords that pictures of an encoder share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from simdino.keywords import AT_LEAST_1, PIXELS, Option

COUNT = 12
MASS = 0.6  # of the attention that a mask keeps: the value of DINO's paper

Out = Annotated[Path, Option("Folder to write the pictures to.", result=False)]
Count = Annotated[int, Option("Pictures drawn, at most.", AT_LEAST_1)]
Size = Annotated[int | None, Option("Short side in pixels.", PIXELS, "twice the encoder's own")]
