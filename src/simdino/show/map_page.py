"""The page of `simdino show map`: its data, and the HTML, style and script beside this file that draw them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from simdino.show.atlas import Atlas
from simdino.show.page import document
from simdino.text import readable

By = Literal["folder", "cluster"]

HERE = Path(__file__).parent
DIGITS = 4  # of a coordinate: a screen has fewer pixels
COLOURS = {
    "light": (
        "#1681eb", "#c5660b", "#0e996d", "#bc4fb3", "#c2bf13", "#21d3f7", "#770b56", "#f7a0b9", "#3f4e0a", "#0834a3",
    ),
    "dark": (
        "#18b7d2", "#f7b509", "#54a615", "#a879f7", "#f76f81", "#67f79e", "#ab2e83", "#f4c4f7", "#8f5d08", "#106db3",
    ),
}  # fmt: skip
"""Of classes, on white and on dark: far apart for common eyes and for those without red or green. Ten classes later
they come again, in another shape."""


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """What colours can tell apart: the class of each image."""

    name: By
    classes: list[str]
    labels: list[int]  # positions in `classes`


@dataclass(frozen=True, kw_only=True)
class MapPage:
    """All that the page shows of N images."""

    title: str
    encoder: str
    of: int  # images that were given
    sampled: bool  # whether a part of them was taken
    broken: int
    share: float  # of the variance, in the principal plane
    names: Sequence[str]
    planes: Mapping[str, NDArray[np.float64]]  # points [N, 2] by layout, the first shown first
    groupings: Sequence[Grouping]  # the first is shown first
    neighbours: NDArray[np.int64]  # [N, k], the nearest first
    cosines: NDArray[np.float32]  # [N, k]
    atlas: Atlas

    def notes(self) -> list[str]:
        """Return what a person should know of the page, in lines."""
        shown = len(self.names)
        sample = f" of {self.of:,}, a fixed sample" if self.sampled else ""
        left_out = f"{self.broken:,} could not be read" if self.broken else ""
        plane = f"PCA holds {100 * self.share:.0f} % of the variance"
        return [note for note in (f"{shown:,} images{sample}", left_out, f"encoder {self.encoder}", plane) if note]

    def data(self) -> dict[str, Any]:
        """Return what the script reads, as plain values."""
        return {
            "title": readable(self.title),
            "notes": list(map(readable, self.notes())),
            "names": list(map(readable, self.names)),
            "planes": {name: centred(points).tolist() for name, points in self.planes.items()},
            "groupings": [
                {"name": one.name, "classes": list(map(readable, one.classes)), "labels": one.labels}
                for one in self.groupings
            ],
            "neighbours": self.neighbours.tolist(),
            "cosines": self.cosines.astype(float).round(3).tolist(),
            "cell": self.atlas.cell,
            "columns": self.atlas.columns,
            "sizes": self.atlas.sizes,
            "colours": COLOURS,
        }

    def html(self) -> str:
        """Return the page."""
        sheets = "".join(f'<img alt="" src="{address}">' for address in self.atlas.addresses())
        body = (
            f'{beside("map.html")}<div id="sheets" hidden>{sheets}</div>'
            f'<script type="application/json" id="data">{in_html(self.data())}</script>'
        )
        script = beside("map.js") + beside("map_panel.js")
        return document(self.title, body, kind="map", style=beside("map.css"), script=script)


def beside(name: str) -> str:
    """Return a text file of this folder."""
    return (HERE / name).read_text(encoding="utf-8")


def in_html(value: Any) -> str:
    """Return JSON that can stand in a script element, which ends at the first </script whatever is around it."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")


def centred(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points [N, 2] moved and scaled as one so that the wider axis fills [-1, 1]."""
    low, high = points.min(axis=0), points.max(axis=0)
    half = float((high - low).max()) / 2
    return ((points - (low + high) / 2) / (half or 1.0)).round(DIGITS)
