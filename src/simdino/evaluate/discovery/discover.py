"""Objects found without labels: MaskCut's masks or TokenCut's boxes, written in COCO's form, and scored where something
is known of the objects."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from simdino.evaluate.discovery import COUNT, TAU, Method
from simdino.evaluate.layouts import Layout, as_folder
from simdino.evaluate.protocol import as_protocol
from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.keywords import AT_LEAST_1, COSINE, PIXELS, Exif, Option

if TYPE_CHECKING:
    from simdino.evaluate.discovery.finding import DiscoverResult
    from simdino.models.encoder import Encoder

TAUS = "{maskcut}; tokencut {tokencut}".format(**TAU)
OBJECTS = Layout(
    text="Images; with images/ and masks/, or PASCAL VOC's folders, scores too.", open=as_folder, required=True
)


@as_protocol(OBJECTS, example="discover runs/photos --data photos/ --out objects.json")
def discover(
    encoder: Encoder, data: Path, *,
    annotations: Annotated[
        Path | None, Option("JSON file of COCO's form about the images in --data: average precision.")
    ] = None,
    method: Annotated[Method, Option("Several masks an image, or one box.")] = "maskcut",
    masks: Annotated[int, Option("Objects in an image, at most.", AT_LEAST_1)] = COUNT,
    tau: Annotated[float | None, Option("Cosine above which patches belong together.", COSINE, TAUS)] = None,
    size: Annotated[int | None, Option("Side in pixels.", PIXELS, "480, or 60 patches where that is less")] = None,
    crf: Annotated[bool, Option("Fit masks to the edges of the image (pip install 'simdino[crf]').")] = False,
    limit: Annotated[int | None, Option("Look at no more than the first so many images.", AT_LEAST_1)] = None,
    out: Annotated[Path | None, Option("Write what is found as JSON of COCO's form.", result=False)] = None,
    exif: Exif = "turn", log: Log = to_stderr, progress: Progress = no_bar,
) -> DiscoverResult:  # fmt: skip
    """Objects without labels, by MaskCut or TokenCut: CorLoc, IoU, COCO's average precision.

    data, annotations: see `discovery.objects`. method: "maskcut", up to `masks` masks at `size` pixels a side, with
    `crf` fitted to edges; or "tokencut", a box at the image's own size. See `discovery.maskcut`.

    Scores: CorLoc where boxes are known (of masks, the boxes around them); IoU where masks are; average precision for
    COCO's form, where every object found has the score 1, so that among images order decides between equals, and in an
    image the surest come first.

    Raises InputError for data that cannot be used, more than a tenth of it broken, an encoder without readable
    attention, and where there is nothing to compare with and nowhere to write to."""
    from simdino.data.annotated import tell_turned
    from simdino.evaluate.discovery.finding import find, look
    from simdino.evaluate.discovery.objects import open_objects
    from simdino.extras import optional
    from simdino.features.extract import check_size

    if method == "tokencut":
        for word in (word for word, given in (("masks", masks != COUNT), ("size", size), ("crf", crf)) if given):
            log(f"--{word} has no effect with --method tokencut, which finds one box at the image's own size")
    check_size(encoder, size if method == "maskcut" else None, pairs=True)
    encoder.last_attention()  # refuses at once what has none
    if crf:
        optional("pydensecrf.densecrf")
    objects = open_objects(data, annotations, exif=exif, values=encoder.preprocess.values)
    search = partial(look, encoder, method=method, count=masks, tau=tau, size=size, crf=crf)
    result = find(objects, search, encoder.in_chans, method=method, limit=limit, out=out, progress=progress)
    tell_turned(result.turned, of=result.images, exif=exif, log=log)
    if method == "maskcut" and result.box_ap is not None and result.mask_ap is None:
        log(f"no average precision of masks: not every annotation in {annotations} has a segmentation")
    return result
