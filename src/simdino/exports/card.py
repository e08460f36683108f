"""The README.md of an exported encoder: what it is, what it was trained on, what it reached, how to load it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simdino import __version__
from simdino.data.survey import ranged
from simdino.errors import InputError
from simdino.exports.format import Format
from simdino.exports.proof import Proof
from simdino.runs.evaluations import ENCODER
from simdino.runs.run import Run, dataset, read_run, series
from simdino.saved import is_run
from simdino.text import one_line

if TYPE_CHECKING:
    from simdino.models.encoder import Encoder

POINTS = 8  # rows of the table of the curve


def run_of(where: Path | None) -> Run | None:
    """Return the run whose encoder this is, by the folder or by its encoder.safetensors; None for any other weights,
    and for a run whose files cannot be read: its encoder can be exported all the same."""
    if where is None or not (where.is_dir() or where.name == ENCODER):
        return None
    folder = where if where.is_dir() else where.parent
    try:
        return read_run(folder) if is_run(folder) else None
    except InputError:
        return None


def card(
    encoder: Encoder, format: Format, proof: Proof, *,
    run: Run | None, license: str | None, folder: Path, push: str | None = None,
) -> str:  # fmt: skip
    """Return the card, in Markdown with the header that the Hugging Face hub reads.

    run: the one that trained the encoder, where that is known. license: its name on the hub, such as "mit". folder,
    push: where the files are, and the repository that they are sent to, if any."""
    parts = [header(format, license), f"# {push or folder}", "", *about(encoder, run), "", "## How to load it", ""]
    parts += [*prepared_otherwise(encoder), "```python", usage(encoder, format, folder=folder, push=push), "```", ""]
    parts += [f"Read back: {proof}.", ""]
    if run is not None:
        parts += [*training(run), "", *scores(run)]
    stated = license or "None is stated: it is for the owner of the images and the weights to say."
    return "\n".join([*parts, "## Licence", "", stated, ""])


def header(format: Format, license: str | None) -> str:
    """Return the metadata of the hub."""
    lines = ["---", *([f"library_name: {format.library}"] if format.library else [])]
    lines += [f"license: {license}"] if license else []
    return "\n".join([*lines, "pipeline_tag: image-feature-extraction", "tags:", "- simdino", "---", ""])


def usage(encoder: Encoder, format: Format, *, folder: Path, push: str | None) -> str:
    """Return the code that loads the files from the folder, or from the hub, for this encoder."""
    about, code = encoder.preprocess, format.usage.strip()
    if push is not None:
        fetched = f'from huggingface_hub import snapshot_download\n\nfolder = snapshot_download("{push}")'
        code = code.replace('folder = "FOLDER"', fetched).replace("local-dir:FOLDER", f"hf-hub:{push}")
    patches = (about.crop // (encoder.patch_size or about.crop)) ** 2
    code = code.replace("FOLDER", push or str(folder)).replace("PATCHES", str(patches))
    return code.replace('"RGB"', '"L"' if about.channels == 1 else '"RGB"')


def prepared_otherwise(encoder: Encoder) -> list[str]:
    """Return a paragraph where images are no photographs of 8 bits, which the code reads."""
    about = encoder.preprocess
    if about.values is None and about.channels in (1, 3):
        return []
    return ["The code reads a photograph of 8 bits. Other images are prepared as said above.", ""]


def about(encoder: Encoder, run: Run | None) -> Iterator[str]:
    """Yield what the encoder is."""
    prepared, size = encoder.preprocess, sum(p.numel() for p in encoder.parameters()) / 1e6
    method = "" if run is None else f", trained on {dataset(run)} without labels by {run.config.run.method}"
    colours = {1: "grey", 3: "RGB"}.get(prepared.channels, f"{prepared.channels} channels")
    patch = f", in patches of {encoder.patch_size}" if encoder.patch_size else ""
    yield f"An image encoder{method}: {encoder.config.name}, {size:.1f} M parameters, images {colours}{patch}."
    yield ""
    scaled = "" if prepared.values is None else f"; values from {ranged(prepared.values)} become 0 to 1"
    yield (
        f"Images: the short side is resized to {prepared.resize} pixels (bicubic), the centre cropped to "
        f"{prepared.crop}{scaled}; pixels in [0, 1] minus {list(prepared.mean)}, over {list(prepared.std)}. It "
        f"returns a class token and patch tokens of {encoder.embed_dim} numbers."
    )


def training(run: Run) -> Iterator[str]:
    """Yield the data, the recipe and the curve of a run."""
    metadata, config = run.metadata, run.config
    counted = metadata.data.get("train_images")
    images = f"{counted:,} images of " if isinstance(counted, int) else ""
    yield "## Training"
    yield ""
    yield f"- Data: {images}{dataset(run)}"
    yield (
        f"- Recipe: {config.run.method}, {run.rows[-1]['step']:,} steps of {config.run.batch} images, "
        f"{config.optim.optimizer} at {config.optim.lr:g}, teacher {config.optim.teacher}, seed {config.run.seed}"
    )
    yield f"- Command: `{one_line(str(metadata.command))}`"
    yield f"- Verdict: {run.verdict.sentence}"
    yield f"- Made by simdino {metadata.simdino or __version__}"
    losses, knn = dict(series(run.rows, "loss")), dict(series(run.rows, "knn"))
    steps = sorted(knn or losses)
    if not steps:
        return
    chosen = sorted({steps[round(i * (len(steps) - 1) / (POINTS - 1))] for i in range(POINTS)})
    yield ""
    yield "| step | loss | k-NN while training, % |"
    yield "| ---: | ---: | ---: |"
    for step in chosen:
        near = min(losses, key=lambda other: abs(other - step), default=None)
        loss = "" if near is None else f"{losses[near]:.3f}"
        yield f"| {step:,.0f} | {loss} | {f'{knn[step]:.1f}' if step in knn else ''} |"


def scores(run: Run) -> Iterator[str]:
    """Yield what the run's protocols gave."""
    kept: list[dict[str, Any]] = [row for row in run.evaluations if row.get("encoder") == run.weights]
    if not kept:
        return
    yield "## Scores"
    yield ""
    for row in kept:
        yield f"- {row.get('protocol')} on {row.get('data')}:"
        yield from (f"    {line}" for line in ["", "```", *str(row.get("said")).splitlines(), "```"])
    yield ""
