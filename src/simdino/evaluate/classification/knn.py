"""k-NN accuracy of an encoder: each validation image is classified by its nearest training images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from simdino.config import Precision
from simdino.evaluate.classification import TEMPERATURE
from simdino.evaluate.layouts import LABELLED, Labelled
from simdino.evaluate.protocol import as_protocol
from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.keywords import ABOVE_0, AT_LEAST_1, Option, Reduced
from simdino.result import Table

if TYPE_CHECKING:
    from simdino.evaluate.classification.neighbours import KnnResult
    from simdino.models.encoder import Encoder


@as_protocol(LABELLED, example="knn runs/photos --data photos/")
def knn(
    encoder: Encoder, data: Labelled, *,
    k: Annotated[int | tuple[int, ...], Option("Neighbours that vote; several from one pass.", AT_LEAST_1)] = 20,
    temperature: Annotated[float, Option("Votes are exp(cosine / temperature).", ABOVE_0)] = TEMPERATURE,
    leave_one_out: Annotated[bool, Option("All images of the data, each classified by the others.")] = False,
    baselines: Annotated[bool, Option("Random initialisation and raw pixels beside it.", result=False)] = True,
    precision: Annotated[Precision, Option("Of the coarse search; candidates are re-ranked in float32.")] = "float32",
    reduced: Reduced = False, log: Log = to_stderr, progress: Progress = no_bar,
) -> Table[KnnResult]:  # fmt: skip
    """Weighted k-nearest neighbours: validation images against all training images. Reports of a run show its scores.

    The baselines are the same encoder at random initialisation, and raw pixels. With several `k` each row of the table
    has a result for each."""
    from simdino.evaluate.baselines import compared
    from simdino.evaluate.classification.neighbours import knn_each
    from simdino.evaluate.labels import warn_of_unseen
    from simdino.features.extract import extract, pixel_size, pixels

    sources = [data.all(task="knn")] if leave_one_out else [*data.both(task="knn")]
    warn_of_unseen(sources[0], sources[-1], log)
    found = {
        name: [extract(one, source, reduced=reduced, progress=progress) for source in sources]
        for name, one in compared(encoder, baselines=baselines)
    }
    broken = {name: why for one in found["encoder"] for name, why in one.broken.items()}
    if baselines:
        size = pixel_size(sources[0])
        found["raw pixels"] = [pixels(one, encoder.preprocess, size=size, reduced=reduced) for one in sources]
    ks = (k,) if isinstance(k, int) else k
    rows = {
        name: knn_each(
            bank, *(queries or [None]), ks=ks, temperature=temperature, precision=precision, device=encoder.device
        )
        for name, (bank, *queries) in found.items()
    }
    return Table(rows=rows, each=tuple({"k": one} for one in ks), broken=broken)
