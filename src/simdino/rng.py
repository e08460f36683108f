"""Random numbers as pure functions of counters.

Nothing here has a state. The key of a sample depends on (seed, epoch, sample id) only, so the same image gets the same
crops, colours and drop path in any worker, process, micro-batch or resumed run. The generator is SplitMix64 (Steele,
Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014), vectorised over keys.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)

# One stream of numbers per purpose. Streams with a view index use PURPOSE + view.
GEOMETRY, PHOTOMETRY, DROP_PATH, SUBSTITUTE, MASKS, SAMPLE, BANDS = 0, 1_000, 2_000, 3_000, 4_000, 5_000, 6_000
LOST, TURNS, NOISE = 7_000, 8_000, 9_000

RUNS = 16  # of neighbours in a block that is shuffled as one


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return SplitMix64's finaliser of 64-bit words: a bijection whose every output bit depends on every input bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def words(values: ArrayLike) -> NDArray[np.uint64]:
    """Return integers (negative ones too) as 64-bit words, with at least one axis."""
    return np.atleast_1d(np.asarray(values, dtype=np.int64)).view(np.uint64)


def sample_keys(seed: int, epochs: ArrayLike, ids: ArrayLike) -> NDArray[np.int64]:
    """Return the rng key of each sample in each epoch: int64 [B]."""
    key = mix(words(seed) + GOLDEN)
    key = mix(key + GOLDEN * words(epochs))
    return mix(key + GOLDEN * words(ids)).view(np.int64)


def uniform(keys: ArrayLike, stream: int, count: int) -> NDArray[np.float64]:
    """Return `count` uniform numbers in [0, 1) for each key of [B]: float64 [B, count]."""
    start = mix(words(keys) + GOLDEN * words(stream + 1))
    steps = GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
    return (mix(start[:, None] + steps) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """Return the order of `size` samples in one epoch: int64 [size]."""
    key = np.array([seed % 2**64, epoch], dtype=np.uint64)  # without the type, large words become floats
    return np.random.Generator(np.random.Philox(key=key)).permutation(size)


def block_permutation(seed: int, epoch: int, size: int, block: int) -> NDArray[np.int64]:
    """Return the order of `size` samples in one epoch in which every `block` in a row come from few places: int64
    [size].

    The samples are cut into runs of block / RUNS neighbours, at other places in each epoch; the runs are shuffled, and
    then the samples of every block of RUNS of them."""
    if block >= size:
        return permutation(seed, epoch, size)
    key = np.array([seed % 2**64, epoch], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key))
    run = max(1, block // RUNS)
    run_of = (np.arange(size) + generator.integers(run)) // run
    order = np.argsort(generator.permutation(run_of[-1] + 1)[run_of], kind="stable")
    whole = size // block * block
    blocks = generator.permuted(order[:whole].reshape(-1, block), axis=1)
    return np.concatenate([blocks.ravel(), generator.permutation(order[whole:])])
