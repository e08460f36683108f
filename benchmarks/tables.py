"""Write the tables of README and docs from benchmarks/results: each stands between <!-- NAME --> and <!-- /NAME -->.

    python benchmarks/tables.py

Run it after the scripts that store the results. A test holds that the pages have what this writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rows import RESULTS, Row

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
DATA = "imagenette128"  # what the tables of methods are of


def rows_of(name: str) -> list[Row]:
    """The rows of a file of results; none where it was never made."""
    path = RESULTS / f"{name}.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    rows = stored.get("rows", [])
    return [row for row in rows if not str(row.get("verdict")).startswith("stopped")]


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *lines))


def together(rows: Sequence[Row], keys: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], list[Row]]]:
    """The rows that share the values of `keys`, in the order in which the first of each came."""
    for values in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        yield values, [row for row in rows if tuple(row[key] for key in keys) == values]


def each(rows: Sequence[Row], key: str, digits: int = 0) -> str:
    """The seeds' values, in order of the seeds."""
    return ", ".join(f"{row[key]:,.{digits}f}" for row in sorted(rows, key=lambda row: row["seed"]))


def methods(length: str, *, speed: bool) -> str:
    """Of runs of a length, a row for each method; with what a step costs, or without."""
    columns: dict[str, Callable[[list[Row]], str]] = {
        "steps": lambda rows: each(rows, "steps"),
        "k-NN": lambda rows: each(rows, "knn", 1),
        "effective rank": lambda rows: each(rows, "effective_rank", 1),
    }
    if speed:
        columns["images/s"] = lambda rows: each(rows, "images_per_second")
        columns["peak MB"] = lambda rows: each(rows, "peak_memory_mb")
    columns["verdict"] = lambda rows: ", ".join(dict.fromkeys(row["verdict"] for row in rows))
    shown = [row for row in rows_of("methods") if row["length"] == length and row["data"] == DATA]
    found = together(shown, ["method"])
    return table(["method", *columns], [[name, *(cell(rows) for cell in columns.values())] for (name,), rows in found])


def views() -> str:
    """Images per second of each pipeline."""
    factor = "ours (float views) is faster by"
    lines = [[row["pipeline"], f"{row['images/s']:,.0f}", f"{row[factor]:.2f}x"] for row in rows_of("views")]
    return table(["JPEG to 2 + 10 views", "images/s", "speed-up of simdino's float views over it"], lines)


def channels() -> str:
    """Cost of views by the number of channels and bits."""
    factor = "times the cost of colours"
    lines = [[row["channels"], f"{row['images/s']:,.0f}", f"{row[factor]:.1f}"] for row in rows_of("channels")]
    return table(["channels", "images/s", factor], lines)


def losses() -> str:
    """Seconds and memory of the losses alone."""
    found = {(row["loss"], row["batch"]): f"{row['seconds']:.3g} s, {row['MB']:,} MB" for row in rows_of("loss")}
    batches = sorted({batch for _, batch in found})
    names = dict.fromkeys(name for name, _ in found)
    lines = [[name, *(found.get((name, batch), "not run") for batch in batches)] for name in names]
    return table(["loss", *(f"{batch:,} images" for batch in batches)], lines)


def by_shape(name: str, heading: str, cell: Callable[[Row], str], *, left_out: str = "") -> str:
    """Of a file of steps, a line for each shape and batch and a column for each step."""
    steps = [step for step in dict.fromkeys(row["step"] for row in rows_of(name)) if step != left_out]
    lines = []
    for (shape, batch), rows in together(rows_of(name), ["shape", "batch"]):
        cells = {row["step"]: cell(row) for row in rows}
        lines.append([f"{shape}, batch {batch}", *(cells.get(step, "-") for step in steps)])
    return table([heading, *steps], lines)


def steps() -> str:
    """How many times faster ours is than each other step."""
    factor = "ours in bfloat16 is faster by"
    heading = "speed-up of simdino in bfloat16 over"
    return by_shape("step", heading, lambda row: f"{row[factor]:.2f}x", left_out="ours, bfloat16")


def memory() -> str:
    """Peak memory of each step."""
    return by_shape("memory", "peak MB beyond imports", lambda row: f"{row['beyond imports MB']:,}")


def knn() -> str:
    """Seconds of each way to classify."""
    lines = [[row["how"], f"{row['seconds']:.2f}", f"{row['ours is faster by']:.2f}x"] for row in rows_of("knn")]
    queries = rows_of("knn")[0]["made"]["settings"]["queries"]
    return table([f"k-NN of {queries:,} queries, four k", "seconds", "speed-up of simdino in float32 over it"], lines)


def update() -> str:
    """What follows the gradient in a step."""
    slower, share = "textbook is slower by", "share of the copy's bytes a second"
    lines = [
        [row["part"], f"{1e3 * row['seconds']:.1f}", f"{row[slower]:.2f}x", f"{row[share]:.2f}"]
        for row in rows_of("update")
    ]
    return table(["after the gradient", "ms", "speed-up of simdino over the textbook", share], lines)


def features() -> str:
    """Images per second into features, beside reading and the encoder by themselves."""
    numbers = ("reading, images/s", "encoder, images/s", "features, images/s")
    lines = [
        [row["encoder"], *(f"{row[number]:,.0f}" for number in numbers), f"{row['of what is possible']:.2f}"]
        for row in rows_of("features")
    ]
    return table(["features", *numbers, "of what is possible"], lines)


def heads() -> str:
    """What a grid of linear heads costs beside one head."""
    whats = ("52 heads, stacked (ours)", "52 heads, as modules", "the encoder alone")
    lines = []
    for (size, classes), rows in together(rows_of("linear"), ["image", "classes"]):
        times = {row["what"]: row["times one head"] for row in rows}
        lines.append([f"{size} px, {classes:,} classes", *(f"{times[what]:.2f}x" for what in whats)])
    return table(["training-step time relative to one head", *whats], lines)


def davis() -> str:
    """Label propagation on videos."""
    lines = [[row["features"], *(f"{row[score]:.1f}" for score in ("J&F", "J", "F"))] for row in rows_of("davis")]
    return table(["features", "J&F", "J", "F"], lines)


def start() -> str:
    """What a person waits for."""
    return table(["start", "seconds"], [[row["what"], f"{row['seconds']:.2f}"] for row in rows_of("start")])


def records() -> str:
    """k-NN for minutes of training, the best entry of each data set and budget first."""
    lines: list[list[str]] = []
    for (data, budget, threads), rows in together(rows_of("records"), ["data", "budget", "threads"]):
        entries = sorted(together(rows, ["entry"]), key=lambda one: -max(row["k-NN"] for row in one[1]))
        lines += [
            [
                data, f"{budget:g} on {threads} thread{'s' * (threads > 1)}", entry, each(found, "steps"),
                each(found, "TFLOPs"), each(found, "k-NN", 1),
            ]
            for (entry,), found in entries
        ]  # fmt: skip
    return table(["data", "minutes", "entry", "steps", "TFLOPs", "k-NN"], lines)


def scaling_forecast() -> str:
    """What GPUs send, and what that leaves of their speed."""
    lines: list[list[str]] = []
    for (encoder, images, how), rows in together(rows_of("scaling_forecast"), ["encoder", "images a GPU", "how"]):
        shares = [f"{row['efficiency, hidden']:.0%} to {row['efficiency, in the open']:.0%}" for row in rows]
        last = rows[-1]
        sent = [f"{last['GB sent']:.2f}", f"{last['share of the rate']:.2%}"]
        lines.append([f"{encoder}, {images} images a GPU", how, *sent, *shares])
    counts = [f"{row['GPUs']} GPUs" for row in next(together(rows_of("scaling_forecast"), ["encoder", "how"]))[1]]
    return table(["encoder", "way", "GB sent a step", "of which the rate", *counts], lines)


def scaling() -> str:
    """Two processes beside one."""
    lines = [
        [
            row["encoder"], f"{row['parameters'] / 1e6:.2f} M", f"{row['one']:,.0f}", f"{row['two']:,.0f}",
            f"{row['ratio']:.2f}x", f"{1e3 * row['sum, seconds']:.1f} ms", f"{row['ratio by the sum alone']:.2f}x",
        ]
        for row in rows_of("scaling")
    ]  # fmt: skip
    heads = ["encoder", "numbers", "one, images/s", "two, images/s", "ratio", "sum of the gradient", "ratio by that"]
    return table(heads, lines)


def million() -> str:
    """What a folder of a million images costs before step 1."""
    stages = ("open", "fingerprints", "first batch", "to the first batch")
    lines = [
        [
            row["case"], *(f"{row[stage]:.2f} s" for stage in stages), f"{row['MB held']:.0f} MB",
            f"{row['MB at most']:.0f} MB",
        ]
        for row in rows_of("million")
    ]  # fmt: skip
    return table(["a million files", *stages, "held", "at most"], lines)


def shuffle() -> str:
    """How well images are mixed, and how fast they are read from Parquet."""
    shares = ("most from one shard", "with a neighbour")
    counts = ("shards in a batch", "shards in 8 batches")
    rates = ("images/s, groups of 100", "images/s, groups of 1000")
    lines = [
        [
            f"{row['shuffle']:,}" if row["shuffle"] != "all" else "all (default)",
            *(f"{row[share]:.2%}" for share in shares), *(f"{row[count]:.0f}" for count in counts),
            *("" if row[rate] is None else f"{row[rate]:,.0f}" for rate in rates),
        ]
        for row in rows_of("shuffle")
    ]  # fmt: skip
    return table(["`--shuffle`", *shares, *counts, *rates], lines)


def forecast() -> str:
    """Forecasts beside the runs that followed them."""
    lines = [
        [
            row["data"], row["encoder"], f"{row['forecast, s']:.1f} s", f"{row['run, s']:.1f} s", f"{row['time']:.2f}",
            f"{row['forecast, MB']:,.0f} MB", f"{row['run, MB']:,.0f} MB", f"{row['memory']:.2f}",
        ]
        for row in rows_of("forecast")
    ]  # fmt: skip
    return table(["data", "encoder", "forecast", "run", "ratio", "memory forecast", "memory", "ratio"], lines)


def embed() -> str:
    """`simdino embed` beside its two halves alone."""
    lines: list[list[str]] = []
    for row in rows_of("embed"):
        rates = ("reading, images/s", "encoder, images/s", "nothing lost, images/s", "simdino embed, images/s")
        memory = [f"{row[f'peak at {when}, MB']:.0f} MB" for when in ("a quarter", "the end")]
        numbers = [f"{row['images']:,}", *(f"{row[rate]:,.0f}" for rate in rates)]
        lines.append([row["encoder"], *numbers, f"{row['share']:.1%}", *memory])
    heads = ["encoder", "images", "reading alone, images/s", "encoder alone", "nothing lost", "`embed`", "share"]
    return table([*heads, "memory at a quarter", "at the end"], lines)


def kills() -> str:
    """What was killed in the campaign."""
    rows = rows_of("kills")
    victims = [
        (victim, [row for row in rows if row["victim"] == victim])
        for victim in dict.fromkeys(row["victim"] for row in rows)
    ]
    again = [[row["after step"] - row["newest checkpoint"] for row in found] for _, found in victims]
    lines = [
        [victim, str(len(found)), f"{min(lost)} to {max(lost)}"]
        for (victim, found), lost in zip(victims, again, strict=True)
    ]
    return table(["killed", "times", "steps that were done again"], lines)


def accumulation() -> str:
    """What a large batch adds to the memory of its micro-batches."""
    lines = [
        [
            row["encoder"], row["method"] + (", Sinkhorn" if row["centering"] == "sinkhorn" else ""),
            f"{row['MB at batch 32']:,.0f}", f"{row['MB at batch 1024 in 32s']:,.0f}", f"{row['grows by']:+.1%}",
        ]
        for row in rows_of("accumulation")
    ]  # fmt: skip
    return table(["encoder", "method", "MB, batch 32", "MB, batch 1024 in micro-batches of 32", "growth"], lines)


TABLES: dict[str, Callable[[], str]] = {
    "methods": lambda: methods("5 min", speed=True),
    "methods at equal steps": lambda: methods("200 steps", speed=False),
    "views": views,
    "channels": channels,
    "losses": losses,
    "steps": steps,
    "memory": memory,
    "update": update,
    "knn": knn,
    "features": features,
    "heads": heads,
    "davis": davis,
    "start": start,
    "records": records,
    "scaling": scaling,
    "accumulation": accumulation,
    "scaling forecast": scaling_forecast,
    "million": million,
    "shuffle": shuffle,
    "forecast": forecast,
    "embed": embed,
    "kills": kills,
}


def filled(text: str) -> str:
    """A page with every table that it has a place for."""
    for name, make in TABLES.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = place.sub(lambda found, make=make: f"{found[1]}{make()}\n{found[2]}", text)
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
