"""Seconds of weighted k-NN for four values of k: 10,000 queries in a bank of 50,000 features of width 384.

    python benchmarks/knn.py
    python benchmarks/knn.py --ranking runs/photos path/to/photos

Ours for all four at once, with products in float32 and in bfloat16, beside DINO's form (eval_knn.py at 7c446df: a pass
over the bank for each k, a one-hot tensor of all neighbours' classes) and beside what cannot be left out: one product
in blocks, the best 200, one vote. Random unit features of 1,000 classes, one thread. Stores
benchmarks/results/knn.json. --ranking compares the neighbours that the two precisions find in an encoder's features of
real images, and stores knn_ranking.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from timing import pin, store, take_turns
from torch import Tensor
from torch.nn import functional as F

import simdino as sd
from simdino.evaluate.classification.neighbours import knn_each
from simdino.features.extract import Features
from simdino.features.nearest import nearest

KS, CLASSES, TEMPERATURE = (10, 20, 100, 200), 1000, 0.07


def features(count: int, width: int, centres: Tensor) -> Features:
    """Unit vectors around the centres of their classes."""
    labels = torch.randint(CLASSES, (count,))
    vectors = F.normalize(centres[labels] + 3 * torch.randn(count, width), dim=1)
    names, classes = [str(i) for i in range(count)], tuple(str(i) for i in range(CLASSES))
    return Features(vectors=vectors, names=names, labels=labels.numpy(), classes=classes, broken={})


def written_out(bank: Features, query: Features, k: int) -> float:
    """Accuracy as DINO's code has it: a hundredth of the queries at a time, votes through a one-hot tensor."""
    labels, right = torch.from_numpy(np.asarray(bank.labels)), 0
    step = len(query) // 100
    for start in range(0, len(query), step):
        similarity = query.vectors[start : start + step] @ bank.vectors.T
        cosines, index = similarity.topk(k, largest=True, sorted=True)
        neighbours = labels.view(1, -1).expand(len(index), -1).gather(1, index)
        one_hot = torch.zeros(len(index) * k, CLASSES).scatter_(1, neighbours.view(-1, 1), 1)
        votes = cosines.clone().div_(TEMPERATURE).exp_()
        scores = (one_hot.view(len(index), -1, CLASSES) * votes.view(len(index), -1, 1)).sum(1)
        _, predicted = scores.sort(1, descending=True)
        right += int((predicted[:, 0].numpy() == np.asarray(query.labels)[start : start + step]).sum())
    return 100 * right / len(query)


def least(bank: Features, query: Features) -> None:
    """One product in blocks, the best of each row, one vote."""
    labels = torch.from_numpy(np.asarray(bank.labels))
    for block in query.vectors.split(1024):
        cosines, index = (block @ bank.vectors.T).topk(max(KS), dim=1)
        torch.zeros(len(block), CLASSES).scatter_add_(1, labels[index], (cosines / TEMPERATURE).exp())


def ranking(encoder: str, data: str) -> None:
    """How far the neighbours found through bfloat16 products are those of float32, on real features."""
    trained = sd.load_encoder(encoder)
    bank, query = (sd.embed(trained, data, split=split) for split in ("train", "val"))
    rows = []
    for k in KS:
        exact, coarse = (
            torch.cat([index for _, _, index in nearest(bank.vectors, query.vectors, k=k, precision=precision)])
            for precision in ("float32", "bfloat16")
        )
        found = [
            len(set(a) & set(b)) / k for a, b in zip(exact.tolist(), coarse.tolist(), strict=True)
        ]  # fmt: skip
        scores = [
            knn_each(bank, query, ks=[k], precision=precision)[0].top1 for precision in ("float32", "bfloat16")
        ]  # fmt: skip
        rows.append({
            "k": k, "neighbours found by bfloat16": sum(found) / len(found),
            "in the same place": (exact == coarse).double().mean().item(), "top-1, float32": scores[0],
            "top-1, bfloat16": scores[1],
        })  # fmt: skip
    store("knn_ranking", {"data": Path(data).name, "bank": len(bank), "queries": len(query)}, rows, keys=("k",))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ranking", nargs=2, metavar=("ENCODER", "DATA"))
    given = parser.parse_args()
    pin(1)
    if given.ranking:
        ranking(*given.ranking)
        return
    torch.manual_seed(0)
    centres = torch.randn(CLASSES, given.width)
    bank, query = (features(count, given.width, centres) for count in (given.bank, given.queries))
    ours = [result.top1 for result in knn_each(bank, query, ks=KS, temperature=TEMPERATURE)]
    theirs = [written_out(bank, query, k) for k in KS]
    assert np.allclose(ours, theirs, atol=0.05), (ours, theirs)  # a tie or two may fall the other way
    ours16 = [r.top1 for r in knn_each(bank, query, ks=KS, temperature=TEMPERATURE, precision="bfloat16")]
    cases = {
        "ours, four k, bfloat16": lambda: knn_each(bank, query, ks=KS, temperature=TEMPERATURE, precision="bfloat16"),
        "ours, four k": lambda: knn_each(bank, query, ks=KS, temperature=TEMPERATURE),
        "DINO's form, four k": lambda: [written_out(bank, query, k) for k in KS],
        "one product, the best 200, one vote": lambda: least(bank, query),
    }
    timings = take_turns(cases, repeats=given.repeats)
    fastest = timings["ours, four k"].median
    rows = [
        {
            "how": name, "seconds": t.median, "fastest and slowest": f"{t.low:.2f} to {t.high:.2f}",
            "ours is faster by": t.median / fastest,
        }
        for name, t in timings.items()
    ]  # fmt: skip
    settings = {
        "bank": given.bank,
        "queries": given.queries,
        "width": given.width,
        "k": KS,
        "top-1": ours,
        "top-1, bfloat16": ours16,
    }
    store("knn", {**settings, "threads": 1, "repeats": given.repeats}, rows)


if __name__ == "__main__":
    main()
