"""The nearest vectors by cosine, in blocks of queries and of the bank: memory is bounded, whatever the numbers of both.

A product in float32 finds a few more than are asked for. Where the order must be exact, these candidates' cosines are
computed again in float64 from the vectors as given, and a bound on the product's rounding proves that no other vector
can be among the nearest; the rare queries for which it does not are compared with the whole bank in float64.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from simdino.config import Precision

Block = tuple[int, Tensor, Tensor]
ROWS, COLUMNS = 512, 2**14  # of a block of cosines: 32 MB
GROUPS = (64, 32)  # columns whose highest cosine is looked at first
SPARE = 64  # candidates beyond k that are looked at again after a coarse product
SPARE_EXACT = 16  # the same after a product in float32
AT_ONCE = 2**12  # candidates whose vectors are in memory together
SHORTEST = 1e-30  # a vector below this length has no direction that float32 could tell
LOW = 2**32  # above every position in a bank


def nearest(
    bank: Tensor, queries: Tensor | None, *,
    k: int, own: Tensor | None = None, rows: int = ROWS, precision: Precision = "float32", exact: bool = False,
    inverse: Tensor | None = None,
) -> Iterator[Block]:  # fmt: skip
    """Yields (first query, cosines [rows, k], bank positions [rows, k]) for blocks of queries, most alike first, on the
    bank's device.

    bank: float32 [N, D], of any lengths. queries: None asks for the neighbours of the bank's own vectors, without
    themselves. own: int64 [Q], the position in the bank of each query, which is left out of its own list. precision: of
    the product with the whole bank. Where it is coarser than float32, more candidates than k are taken and their
    cosines computed again in float32, so that the order among them is exact and only a neighbour that was no candidate
    can be missing. exact: the order is that of cosines in float64, rounded to float32; of equals the earlier comes
    first. inverse: what `inverse_lengths` says of the bank, where it is known.
    """
    inverse = inverse_lengths(bank) if inverse is None else inverse
    if queries is None:
        queries, own = bank, torch.arange(len(bank), device=bank.device)
    again = exact or precision != "float32"
    most = len(bank) - (own is not None)
    for start in range(0, len(queries), rows):
        block = unit_rows(queries[start : start + rows].to(bank.device))
        mine = None if own is None else own[start : start + rows].to(bank.device)
        count = min(k + (SPARE if precision != "float32" else SPARE_EXACT if exact else 0), most)
        cosines, index = candidates(bank, inverse, block, mine, count=count, precision=precision)
        if exact:
            given = queries[start : start + rows].to(bank.device)
            cosines, index = proved(bank, given, mine, cosines, index, k=k, complete=count == most)
        elif again:
            cosines, index = best_of(among(bank, block, index, dtype=torch.float32), index, k=k)
        yield start, cosines, index


def inverse_lengths(vectors: Tensor) -> Tensor:
    """1/length of each vector [N, D], float32 [N]; 0 for a vector without a direction."""
    parts = [1 / lengths_of(part) for part in vectors.split(COLUMNS)]
    inverse = torch.cat(parts) if parts else vectors.new_zeros(0)
    return inverse.where(inverse <= 1 / SHORTEST, 0).float()


def lengths_of(vectors: Tensor) -> Tensor:
    """Lengths of vectors [N, D], in float64 where the device has it."""
    dtype = torch.float32 if vectors.device.type == "mps" else torch.float64
    return torch.linalg.vector_norm(vectors, dim=1, dtype=dtype)


def unit_rows(vectors: Tensor) -> Tensor:
    """Vectors [N, D] of length 1, float32; one without a direction becomes zero."""
    return vectors * inverse_lengths(vectors)[:, None]


def rounding(width: int) -> float:
    """The most by which a cosine of float32 vectors [width] from a float32 product can be wrong: each product and each
    sum rounds once (Higham 2002, 3.1), and so do the lengths."""
    return (width + 8) * 2.0**-24


@contextmanager
def full_precision() -> Iterator[None]:
    """Let products of float32 be that while the body runs: `rounding` holds for no coarser ones, which a program may
    have allowed by torch.set_float32_matmul_precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def cosines_with(bank: Tensor, inverse: Tensor, block: Tensor, *, precision: Precision) -> Iterator[tuple[int, Tensor]]:
    """Yields (first position, cosines [rows, columns]) of unit vectors with one part of the bank after the other. All
    are in the same memory, which costs a fifth less time than new memory for each: look at one before the next."""
    dtype = getattr(torch, precision)
    block = block.to(dtype)
    space = block.new_empty(len(block) * min(COLUMNS, len(bank)))
    for start in range(0, len(bank), COLUMNS):
        part, scale = bank[start : start + COLUMNS], inverse[start : start + COLUMNS]
        cosines = space[: len(block) * len(part)].view(len(block), len(part))
        if dtype == torch.float32:
            with full_precision():
                torch.mm(block, part.T, out=cosines).mul_(scale)
        else:
            torch.mm(block, (part * scale[:, None]).to(dtype).T, out=cosines)
        yield start, cosines


def candidates(
    bank: Tensor, inverse: Tensor, block: Tensor, own: Tensor | None, *, count: int, precision: Precision
) -> tuple[Tensor, Tensor]:
    """Cosines [rows, count] and bank positions [rows, count] of the most alike by one product, in falling order."""
    best = index = None
    for start, cosines in cosines_with(bank, inverse, block, precision=precision):
        if own is not None:
            leave_out(cosines, own - start)
        values, columns = highest(cosines, min(count, cosines.shape[1]))
        best = values if best is None else torch.cat([best, values], 1)
        index = columns if index is None else torch.cat([index, columns + start], 1)
        best, order = best.topk(min(count, best.shape[1]), dim=1)
        index = index.gather(1, order)
    assert best is not None and index is not None, "an empty bank has no neighbours"
    return best, index


def leave_out(cosines: Tensor, own: Tensor) -> None:
    """Put minus infinity into column own[i] of row i, where there is that column."""
    column = own.clamp(0, cosines.shape[1] - 1)[:, None]
    kept = cosines.gather(1, column).where(column != own[:, None], -torch.inf)
    cosines.scatter_(1, column, kept)


def highest(cosines: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest of each row and their columns, in any order. They lie in the k groups of columns with the highest
    maxima: to find these takes a fraction of the time of a search in all columns."""
    rows, columns = cosines.shape
    size = next((size for size in GROUPS if columns % size == 0 and columns >= 4 * size * k), None)
    if size is None:
        return cosines.topk(k, dim=1, sorted=False)
    count = columns // size
    grouped = cosines.view(rows * count, size)
    group = grouped.amax(1).view(rows, count).topk(k, dim=1, sorted=False).indices
    first = count * torch.arange(rows, device=cosines.device)[:, None]
    inside = grouped.index_select(0, (first + group).flatten()).view(rows, k * size)
    values, order = inside.topk(k, dim=1, sorted=False)
    return values, group.gather(1, order // size) * size + order % size


def among(bank: Tensor, block: Tensor, index: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Cosines [rows, c], float32, of vectors [rows, D] with those at `index` [rows, c], computed in `dtype` from the
    vectors themselves."""
    found, rows = list[Tensor](), max(1, AT_ONCE // index.shape[1])
    for one, of_one in zip(block.to(dtype).split(rows), index.split(rows), strict=True):
        others = bank.index_select(0, of_one.flatten()).view(*of_one.shape, bank.shape[1]).to(dtype)
        lengths = one.norm(dim=1, keepdim=True) * others.norm(dim=2)
        products = torch.einsum("rd,rcd->rc", one, others)
        found.append(torch.where(lengths > 0, products / lengths, 0).clamp(-1, 1).float())
    return torch.cat(found)


def best_of(cosines: Tensor, index: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """The k highest of float32 cosines [rows, c] and their positions, in falling order; of equals the earlier position
    comes first. Both go into one whole number, whose order is that."""
    bits = (cosines + 0.0).view(torch.int32).long()  # -0 becomes 0
    ordered = bits.where(bits >= 0, bits ^ 0x7FFFFFFF)
    keys = (ordered * LOW + (LOW - 1 - index)).topk(k, dim=1).values
    ordered = keys >> 32
    bits = ordered.where(ordered >= 0, ordered ^ 0x7FFFFFFF)
    return bits.int().view(torch.float32), LOW - 1 - (keys & (LOW - 1))


def proved(
    bank: Tensor, given: Tensor, own: Tensor | None, coarse: Tensor, index: Tensor, *, k: int, complete: bool
) -> tuple[Tensor, Tensor]:
    """The k nearest among candidates in the order of float64, and those of the whole bank where some vector that is no
    candidate may be nearer.

    given: the queries [rows, D]. coarse, index: of `candidates`. complete: whether they are the whole bank."""
    cosines, found = best_of(among(bank, given, index, dtype=torch.float64), index, k=k)
    doubtful = coarse[:, -1] + 2 * rounding(bank.shape[1]) >= cosines[:, -1]
    if not complete and doubtful.any():
        mine = None if own is None else own[doubtful]
        cosines[doubtful], found[doubtful] = without_candidates(bank, given[doubtful], mine, k=k)
    return cosines, found


def without_candidates(bank: Tensor, given: Tensor, own: Tensor | None, *, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest of queries [rows, D] by float64 products with the whole bank."""
    block, columns = directions(given), COLUMNS // 8
    best, index = given.new_empty(len(given), 0), torch.empty(len(given), 0, dtype=torch.int64, device=given.device)
    for start in range(0, len(bank), columns):
        cosines = (block @ directions(bank[start : start + columns]).T).clamp(-1, 1).float()
        if own is not None:
            leave_out(cosines, own - start)
        positions = torch.arange(start, start + cosines.shape[1], device=bank.device).expand(len(block), -1)
        best, index = torch.cat([best, cosines], 1), torch.cat([index, positions], 1)
        best, index = best_of(best, index, k=min(k, best.shape[1]))
    return best, index


def directions(vectors: Tensor) -> Tensor:
    """Vectors [N, D] of length 1 in float64; a zero vector stays zero."""
    return torch.nn.functional.normalize(vectors.double(), dim=1, eps=torch.finfo(torch.float64).tiny)
