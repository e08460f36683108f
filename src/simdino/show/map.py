"""Many images at once: a page on which those that an encoder finds alike lie close together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from simdino.errors import InputError
from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.files import check_file, present, write_aside
from simdino.keywords import Device, Option, Positions
from simdino.result import Result
from simdino.settings import Range

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from simdino.data.base import Source
    from simdino.features.extract import Features
    from simdino.show.map_page import Grouping

NEIGHBOURS = 10  # of each image on the page
CLUSTERS = 10
LEAST = 3  # images of a map: a plane through two is a line

GROUPS, THUMB = Range(at_least=2, at_most=1000), Range(at_least=8, at_most=512)
COUNT = Range(at_least=1, at_most=20_000)  # a page of 60 MB with thumbnails of the usual size
By = Literal["folder", "cluster"]
Layout = Literal["pca", "umap"]


@dataclass(frozen=True, kw_only=True)
class ImageMap(Result):
    """A page that was written."""

    out: str
    bytes: int  # of the page
    images: int  # on the page
    of: int  # images that were given
    sampled: bool  # whether a part of them was taken
    by: By
    clusters: int
    broken: dict[str, str]  # images left out, and why

    def __str__(self) -> str:
        sample = f" of {self.of:,}, a fixed sample" if self.sampled else ""
        return f"wrote {self.out}: {self.images:,} images{sample}, {self.bytes / 1e6:.1f} MB"


def show_map(
    encoder: str, images: str, *,
    out: Annotated[Path, Option("HTML file.", result=False)] = Path("map.html"),
    by: Annotated[
        By | None, Option("What colours tell apart at first.", default="folder, where folders name classes")
    ] = None,
    clusters: Annotated[int | None, Option("Groups that k-means parts.", GROUPS, f"{CLUSTERS}")] = None,
    layout: Annotated[Layout, Option("How the plane is found; umap needs an extra.")] = "pca",
    thumb: Annotated[int, Option("Longest side of a thumbnail in pixels.", THUMB)] = 112,
    count: Annotated[int, Option("Images on the page, at most.", COUNT)] = 2000,
    positions: Positions = None, device: Device = "auto", log: Log = to_stderr, progress: Progress = no_bar,
) -> ImageMap:  # fmt: skip
    """A page of all images as points, alike ones close together.

    Points become thumbnails as one zooms in; a click shows the nearest images, a lasso lists files. The page loads
    nothing from elsewhere. Of more than `count` images a fixed sample is drawn. Raises InputError for fewer than three
    readable images, `by` folder where no folder names a class, more clusters than images, and without the extra of
    `layout` umap."""
    from simdino.data.base import subset
    from simdino.data.sources import open_dataset
    from simdino.extras import optional
    from simdino.features.extract import extract
    from simdino.models.weights import on_device
    from simdino.show.atlas import atlas_of
    from simdino.show.map_page import MapPage

    if layout == "umap":
        optional("umap")
    out = page_file(out)
    model = on_device(encoder, device=device, positions=positions, log=log)
    given = open_dataset(images)
    source = subset(given, count).with_values(model.preprocess.values)
    check_asked(source, by=by, clusters=clusters)
    small, torn = thumbnails_of(source, channels=model.in_chans, side=thumb, progress=progress)
    check_enough(source, len(small), clusters=clusters)
    readable = source.select([i for i, name in enumerate(source.names) if name in small])
    features = extract(model, readable, reduced=True, progress=progress)
    check_enough(source, len(features), clusters=clusters)
    if not features.vectors.isfinite().all():
        raise InputError(f"the features of encoder {model.config.name} are not all finite: its weights are broken")
    planes, share = planes_of(features, layout)
    groupings = groupings_of(features, by=by, count=min(clusters or CLUSTERS, len(features)))
    near, cosines = neighbours_of(features)
    broken = torn | features.broken
    page = MapPage(
        title=given.name, encoder=Path(encoder).name or encoder, of=len(given), sampled=len(given) > count,
        broken=len(broken), share=share, names=features.names, planes=planes, groupings=groupings, neighbours=near,
        cosines=cosines,
        atlas=atlas_of([small[name] for name in features.names]),
    )  # fmt: skip
    content = page.html().encode()
    write_aside(out, content, option="--out")
    return ImageMap(
        out=str(out), bytes=len(content), images=len(features), of=len(given), sampled=page.sampled,
        by=groupings[0].name, broken=broken,
        clusters=next(len(one.classes) for one in groupings if one.name == "cluster"),
    )  # fmt: skip


def page_file(out: Path) -> Path:
    """Return the page's file; a folder gets map.html. Raises InputError where it cannot be written."""
    if present(out, option="--out") and out.is_dir():
        out /= "map.html"
    check_file(out, option="--out")
    return out


def check_asked(source: Source, *, by: By | None, clusters: int | None) -> None:
    """Raise InputError for colours that the images do not have, and for more clusters than images."""
    if by == "folder" and source.labels is None:
        raise InputError(f"--by folder: no folders of {source.name} name classes; leave it out, or give --by cluster")
    check_enough(source, len(source), clusters=clusters)


def check_enough(source: Source, images: int, *, clusters: int | None) -> None:
    """Raise InputError for fewer readable images than a map needs, or than clusters."""
    least = max(LEAST, clusters or 0)
    if images < least:
        asked = f"--clusters {clusters}: it" if clusters and clusters > LEAST else "a map"
        raise InputError(f"{asked} needs {least} readable images, and {source.name} has {images}")


def thumbnails_of(
    source: Source, *, channels: int, side: int, progress: Progress
) -> tuple[dict[str, Image], dict[str, str]]:
    """Return the thumbnails of readable images by name, and the broken ones with their reasons."""
    from simdino.data.opening import BrokenImage
    from simdino.show.atlas import thumbnail
    from simdino.show.sheets import to_picture

    found: dict[str, Image] = {}
    broken: dict[str, str] = {}
    for i, name in progress(enumerate(source.names), "thumbnails", len(source)):
        try:
            found[name] = thumbnail(to_picture(source.read(i, channels, at_least=2 * side)), side)
        except BrokenImage as error:
            broken[name] = error.reason
    return found, broken


def planes_of(features: Features, layout: Layout) -> tuple[dict[str, NDArray[np.float64]], float]:
    """Return the points [N, 2] by the name of their layout, the asked one first, and the principal plane's share of the
    variance."""
    from simdino.features.projection import principal_plane, umap_plane

    principal, share = principal_plane(features.vectors)
    if layout == "pca":
        return {"PCA": principal}, share
    return {"UMAP": umap_plane(features.vectors, start=principal), "PCA": principal}, share


def groupings_of(features: Features, *, by: By | None, count: int) -> list[Grouping]:
    """Return the folders, where they name classes, and the clusters; what colours tell apart first comes first."""
    from simdino.features.projection import clusters
    from simdino.show.map_page import Grouping

    found = clusters(features.vectors, count)
    names = [f"cluster {i + 1}" for i in range(int(found.max()) + 1)]
    made = [Grouping(name="cluster", classes=names, labels=found.tolist())]
    if features.labels is not None:
        present = sorted(set(features.labels.tolist()))  # a sample may miss some
        position = {label: i for i, label in enumerate(present)}
        folders = [features.classes[label] for label in present]
        labels = [position[label] for label in features.labels.tolist()]
        made.insert(0, Grouping(name="folder", classes=folders, labels=labels))
    return made[::-1] if by == "cluster" else made


def neighbours_of(features: Features) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the positions [N, k] of each image's nearest others by cosine, the most alike first, and the cosines."""
    import torch

    from simdino.features.nearest import nearest

    k = min(NEIGHBOURS, len(features) - 1)
    blocks = list(nearest(features.vectors, None, k=k, exact=True))
    return torch.cat([near for _, _, near in blocks]).numpy(), torch.cat([one for _, one, _ in blocks]).numpy()
