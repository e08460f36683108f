"""Seconds of exact search in a million embeddings beside a plain product and topk; and approximate search.

    python benchmarks/index.py
    python benchmarks/index.py --count 100000 --threads 1 --repeats 3

1,000 queries, the 10 nearest. Vectors lie around the centres of 1,000 clusters: centres are normal in all directions,
and what a vector has beside its centre is normal along the axes with variances that fall as 1/i, as the spectrum of
embeddings of pictures does; queries are made alike. (With equal variances all vectors of a cluster would be equally
far, and the nearest mere chance.) --noise says how much that is: clusters overlap at 0.5, and are apart at 0.25, where
approximate search has an easier task. The plain search is what people write: unit vectors made beforehand, a product
of 128 queries with all of them, topk. Memory is what the process needs at its peak beyond what it held before the
search. Without faiss approximate search is left out. Stores benchmarks/results/index.json.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
from timing import pin, store, take_turns
from torch import Tensor
from torch.nn import functional as F

import simdino as sd
from simdino.features.index import Neighbours

PART = 2**14


def made(count: int, centres: Tensor, *, noise: float, seed: int) -> Tensor:
    """Vectors [count, D] around centres, in parts, so that no second copy is in memory."""
    random, width = torch.Generator().manual_seed(seed), centres.shape[1]
    stds = (width / torch.arange(1, width + 1)).sqrt()
    vectors = torch.empty(count, width)
    for part in vectors.split(PART):
        labels = torch.randint(len(centres), (len(part),), generator=random)
        part.normal_(generator=random).mul_(noise * stds).add_(centres[labels])
    return vectors


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def plain(unit: Tensor, queries: Tensor, k: int) -> Tensor:
    """Positions [Q, k]."""
    return torch.cat([(part @ unit.T).topk(k, dim=1).indices for part in F.normalize(queries, dim=1).split(128)])


def shared(found: Tensor, right: Tensor) -> float:
    """The mean share of the right positions among those found: recall."""
    return float((found[:, :, None] == right[:, None, :]).any(2).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    pin(given.threads)
    centres = torch.randn(given.clusters, given.width, generator=torch.Generator().manual_seed(0))
    vectors, queries = (
        made(count, centres, noise=given.noise, seed=seed) for seed, count in ((1, given.count), (2, given.queries))
    )
    held = peak_bytes()
    index = sd.EmbeddingIndex(vectors, names=[""] * given.count)
    exact = index.search(queries, given.k)
    beyond = peak_bytes() - held
    print(f"exact search: {beyond / 1e6:,.0f} MB beyond the {vectors.nbytes / 1e6:,.0f} MB of the vectors", flush=True)
    rows = approximate(index, queries, exact, given)
    unit = F.normalize(vectors, dim=1)
    agree = shared(plain(unit, queries, given.k), exact.indices)
    cases = {
        "ours, exact": lambda: index.search(queries, given.k),
        "a plain product and topk": lambda: plain(unit, queries, given.k),
    }
    timings = take_turns(cases, repeats=given.repeats, threads=given.threads)
    least = timings["a plain product and topk"].median
    best = timings["ours, exact"].median
    row = {"build s": 0.0, "MB beyond": beyond // 10**6}
    rows = [
        {"how": "ours, exact", "seconds": best, "of the plain": best / least, "recall": 1.0, **row},
        {
            "how": "a plain product and topk",
            "seconds": least,
            "of the plain": 1.0,
            "recall": agree,
            **row,
            "MB beyond": "",
        },
        *({**one, "of the plain": one["seconds"] / least} for one in rows),
    ]
    settings = {
        name: getattr(given, name) for name in ("count", "width", "queries", "k", "clusters", "threads", "repeats")
    }
    store(
        "index",
        settings,
        [{"vectors": given.count, "noise": given.noise, **one} for one in rows],
        keys=("vectors", "noise", "how"),
    )


def approximate(
    index: sd.EmbeddingIndex, queries: Tensor, exact: Neighbours, given: argparse.Namespace
) -> list[dict[str, object]]:
    """The row of approximate search, or none without faiss."""
    started = time.perf_counter()
    try:
        index.search(queries[:1], given.k, approximate=True)
    except sd.InputError as error:
        print(error)
        return []
    build = time.perf_counter() - started
    found = index.search(queries, given.k, approximate=True)
    timing = take_turns(
        {"graph": lambda: index.search(queries, given.k, approximate=True)},
        repeats=given.repeats,
        threads=given.threads,
    )["graph"]
    recall = shared(found.indices, exact.indices)
    return [{"how": "ours, approximate", "seconds": timing.median, "recall": recall, "build s": build, "MB beyond": ""}]


if __name__ == "__main__":
    main()
