"""Objects followed through videos. Here are the words and the defaults that declaration and mathematics share."""

from dataclasses import dataclass
from typing import Literal

Year = Literal["2016", "2017"]


@dataclass(frozen=True, kw_only=True)
class Propagation:
    """The recipe of label propagation; the defaults are DINO's."""

    size: int = 480  # pixels of a frame's short side
    last_frames: int = 7  # frames compared with besides the first
    radius: int = 12  # patches: the window is 2 radius + 1 wide and high, in every frame compared with
    nearest: int = 5  # patches that give their labels, out of all frames' windows together
    temperature: float = 0.1
