"""How well `--shuffle N` mixes, and what it saves: batches of a million images in shards, and reads from Parquet.

    python benchmarks/shuffle.py

Quality, of one epoch of --images in shards of 1,000, batches of 256: the mean share of a batch that comes from its most
frequent shard, how many shards a batch comes from, how many different ones eight batches touch, the correlation of an
image's position before and after, and the share of a batch's images whose neighbour in the set is in the same batch.
Speed, of all and of blocks of 1,000: images a second (bytes alone) from a Parquet file of --megabytes, with 100 and
with 1,000 rows of 50 KB a group; two blocks are read, and a few images of all. Stores
benchmarks/results/shuffle.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from timing import store

from simdino.data.shards import ShardStore
from simdino.data.sources import FileSource
from simdino.rng import block_permutation, permutation

SHARD, BATCH, KILOBYTES = 1000, 256, 50
BLOCKS = (None, 100_000, 10_000, 1_000)
READ = {None: 40, 1_000: 2_000}  # images that are read for the speed


def quality(images: int, block: int | None) -> dict[str, object]:
    """How one epoch is mixed."""
    started = time.perf_counter()
    order = permutation(0, 0, images) if block is None else block_permutation(0, 0, images, block)
    seconds = time.perf_counter() - started
    batches = order[: len(order) // BATCH * BATCH].reshape(-1, BATCH)
    some = batches[:: max(1, len(batches) // 200)]
    counts = [np.unique(batch // SHARD, return_counts=True)[1] for batch in some]
    starts = range(0, len(batches) - 8, max(8, len(batches) // 100))
    eights = [np.unique(batches[i : i + 8] // SHARD).size for i in starts]
    ordered = np.sort(some, axis=1)
    return {
        "shuffle": "all" if block is None else block,
        "most from one shard": float(np.mean([one.max() / BATCH for one in counts])),
        "shards in a batch": float(np.mean([one.size for one in counts])),
        "shards in 8 batches": float(np.mean(eights)),
        "correlation": float(np.corrcoef(np.arange(images), order)[0, 1]),
        "with a neighbour": float(np.mean(np.diff(ordered, axis=1) == 1)),
        "seconds of an epoch's order": seconds,
    }


def speed(folder: Path, megabytes: int, rows: int, block: int | None) -> float:
    """Images a second in the order of an epoch."""
    path = folder / f"{rows}.parquet"
    if not path.exists():
        rng = np.random.default_rng(0)
        count = megabytes * 1000 // KILOBYTES
        schema = pa.schema([("image", pa.binary())])
        with pq.ParquetWriter(path, schema, compression="none") as out:
            for first in range(0, count, rows):
                data = [rng.bytes(1000 * KILOBYTES) for _ in range(min(rows, count - first))]
                out.write_table(pa.table({"image": data}, schema), row_group_size=rows)
    shards = ShardStore(folder, [path.name])
    source = FileSource("table", shards, shards.names)
    ids = source.order(0, 0, block)[1][: READ[block]]
    started = time.perf_counter()
    for i in ids:
        shards.get(shards.names[int(i)])
    return len(ids) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--megabytes", type=int, default=1000, help="of each of the two Parquet files")
    given = parser.parse_args()
    rows = [quality(given.images, block) for block in BLOCKS]
    with tempfile.TemporaryDirectory() as folder:
        for row, block in zip(rows, BLOCKS, strict=True):
            for group in (100, 1000):
                rate = speed(Path(folder), given.megabytes, group, block) if block in READ else None
                row[f"images/s, groups of {group}"] = rate
    store("shuffle", {"images": given.images, "batch": BATCH, "shard": SHARD, "megabytes": given.megabytes}, rows)


if __name__ == "__main__":
    main()
