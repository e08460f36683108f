"""The README.md of an exported encoder: what it is, what it was trained on, what it reached, how to load it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simdino import __version__
from simdino.exports.format import Format
from simdino.exports.proof import Proof
from simdino.runs.run import Run, dataset, read_run, series
from simdino.saved import is_run
from simdino.text import one_line

if TYPE_CHECKING:
    from simdino.models.encoder import Encoder

POINTS = 8  # rows of the table of the curve


def run_of(where: Path | None) -> Run | None:
    """Return the run that an encoder's file or folder belongs to; None for any other, and a run without numbers."""
    folder = None if where is None else where if where.is_dir() else where.parent
    return read_run(folder) if folder is not None and is_run(folder) and (folder / "metrics.jsonl").is_file() else None


def card(encoder: Encoder, format: Format, proof: Proof, *, run: Run | None, license: str | None, name: str) -> str:
    """Return the card, in Markdown with the header that the Hugging Face hub reads.

    run: the one that trained the encoder, where that is known. license: its name on the hub, such as "mit". name: what
    a person replaces FOLDER in code by."""
    parts = [header(format, license), f"# {name}", "", *about(encoder, run), "", "## How to load it", ""]
    parts += ["```python", usage(encoder, format, name).strip(), "```", "", f"Read back: {proof}.", ""]
    if run is not None:
        parts += [*training(run), "", *scores(run)]
    stated = license or "none is stated: it is for the owner of the images and the weights to say"
    return "\n".join([*parts, "## Licence", "", f"{stated[0].upper()}{stated[1:]}.", ""])


def header(format: Format, license: str | None) -> str:
    """Return the metadata of the hub."""
    lines = ["---", *([f"library_name: {format.library}"] if format.library else [])]
    lines += [f"license: {license}"] if license else []
    return "\n".join([*lines, "pipeline_tag: image-feature-extraction", "tags:", "- simdino", "---", ""])


def usage(encoder: Encoder, format: Format, name: str) -> str:
    """Return the code that loads the folder, for this encoder."""
    about, code = encoder.preprocess, format.usage.replace("FOLDER", name)
    patches = (about.crop // (encoder.patch_size or about.crop)) ** 2
    return code.replace("PATCHES", str(patches)).replace('"RGB"', '"L"' if about.channels == 1 else '"RGB"')


def about(encoder: Encoder, run: Run | None) -> Iterator[str]:
    """Yield what the encoder is."""
    prepared, size = encoder.preprocess, sum(p.numel() for p in encoder.parameters()) / 1e6
    method = "" if run is None else f", trained on {dataset(run)} without labels by {run.config.run.method}"
    colours = {1: "grey", 3: "RGB"}.get(prepared.channels, f"{prepared.channels} channels")
    patch = f", in patches of {encoder.patch_size}" if encoder.patch_size else ""
    yield f"An image encoder{method}: {encoder.config.name}, {size:.1f} M parameters, images {colours}{patch}."
    yield ""
    yield (
        f"Images: the short side is resized to {prepared.resize} pixels (bicubic), the centre cropped to "
        f"{prepared.crop}; pixels in [0, 1] minus {list(prepared.mean)}, over {list(prepared.std)}. It returns a class "
        f"token and patch tokens of {encoder.embed_dim} numbers."
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
