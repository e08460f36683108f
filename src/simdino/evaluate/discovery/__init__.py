"""Objects without labels: masks and boxes. Here are the defaults that its declarations and its mathematics share."""

from typing import Literal

Method = Literal["maskcut", "tokencut"]

TAU: dict[Method, float] = {"maskcut": 0.15, "tokencut": 0.2}  # cosine above which patches are linked
COUNT = 3  # masks in an image, at most
