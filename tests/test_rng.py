"""Random numbers from counters: the reference generator, uniformity, independence, permutations."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import stats

from simdino import rng as counters

WORD = 2**64
GOLDEN = 0x9E3779B97F4A7C15
KEYS = counters.sample_keys(0, 0, np.arange(2_000))
NEGLIGIBLE = 1e-4  # p-values below this would be a failure; the seeds are fixed, so a pass stays a pass


def slow_mix(x: int) -> int:
    """SplitMix64's finaliser in Python's own integers, as in the reference C code of Vigna."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % WORD
    return x ^ (x >> 31)


def slow_splitmix(state: int, count: int) -> list[int]:
    out = []
    for _ in range(count):
        state = (state + GOLDEN) % WORD
        out.append(slow_mix(state))
    return out


def signed(word: int) -> int:
    return word - WORD if word >= WORD // 2 else word


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_the_slow_version_gives_the_published_first_outputs_of_splitmix64() -> None:
    assert slow_splitmix(1234567, 5) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize("state", [0, 1, 1234567, WORD - 1, 2**63])
def test_mix_equals_splitmix64(state: int) -> None:
    states = np.array([(state + i * GOLDEN) % WORD for i in range(1, 101)], dtype=np.uint64)
    assert counters.mix(states).tolist() == slow_splitmix(state, 100)


@pytest.mark.parametrize(
    ("seed", "pass_index", "sample"),
    [(0, 0, 0), (7, 3, 12345), (-1, 2, 9), (2**63 - 1, 10**6, 10**9), (-(2**63), 0, 1)],
)
def test_sample_keys_equal_their_definition_in_python_integers(seed: int, pass_index: int, sample: int) -> None:
    key = slow_mix((seed + GOLDEN) % WORD)
    key = slow_mix((key + GOLDEN * pass_index) % WORD)
    key = slow_mix((key + GOLDEN * sample) % WORD)
    assert counters.sample_keys(seed, pass_index, sample).tolist() == [signed(key)]


@pytest.mark.parametrize("stream", [counters.GEOMETRY, counters.PHOTOMETRY + 3, counters.DROP_PATH])
def test_uniform_is_splitmix64_from_a_mixed_start_with_its_top_53_bits(stream: int) -> None:
    for key in KEYS[:5].tolist():
        start = slow_mix((key + GOLDEN * (stream + 1)) % WORD)
        slow = [(word >> 11) / 2**53 for word in slow_splitmix(start, 20)]
        assert counters.uniform(key, stream, 20)[0].tolist() == slow


def test_a_batch_of_keys_draws_what_each_key_draws_alone() -> None:
    together = counters.uniform(KEYS[:10], 5, 7)
    alone = np.concatenate([counters.uniform(key, 5, 7) for key in KEYS[:10]])
    assert (together == alone).all()


def test_more_draws_begin_with_the_fewer() -> None:
    assert (counters.uniform(KEYS, 1, 9)[:, :4] == counters.uniform(KEYS, 1, 4)).all()


def test_draws_lie_in_the_half_open_unit_interval() -> None:
    draws = counters.uniform(KEYS, 0, 500)
    assert draws.dtype == np.float64 and draws.shape == (2_000, 500)
    assert draws.min() >= 0 and draws.max() < 1
    assert draws.max() > 1 - 1e-5 and draws.min() < 1e-5


def test_the_largest_word_stays_below_one() -> None:
    assert float(np.uint64(WORD - 1) >> np.uint64(11)) * 2.0**-53 < 1


@pytest.mark.parametrize(
    "stream", [counters.GEOMETRY, counters.PHOTOMETRY, counters.PHOTOMETRY + 11, counters.DROP_PATH]
)
def test_draws_are_uniform(stream: int) -> None:
    draws = counters.uniform(KEYS, stream, 50)
    assert stats.kstest(draws.ravel(), "uniform").pvalue > NEGLIGIBLE
    assert stats.chisquare(np.histogram(draws, bins=256, range=(0, 1))[0]).pvalue > NEGLIGIBLE
    columns = [stats.kstest(column, "uniform").pvalue for column in draws.T]
    assert stats.kstest(columns, "uniform").pvalue > NEGLIGIBLE  # p-values of true uniforms are uniform


@pytest.mark.parametrize("stride", [1, 2, 1024, 2**32])
def test_first_draws_are_uniform_over_regularly_spaced_ids(stride: int) -> None:
    keys = counters.sample_keys(0, 0, stride * np.arange(20_000))
    assert stats.kstest(counters.uniform(keys, 0, 1)[:, 0], "uniform").pvalue > NEGLIGIBLE


def test_low_bits_of_keys_are_fair() -> None:
    bits = (KEYS.view(np.uint64)[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(len(KEYS))


def keys_of(seed: int, pass_index: int, first: int = 0) -> np.ndarray:
    return counters.sample_keys(seed, pass_index, np.arange(first, first + len(KEYS)))


NEIGHBOURS = {
    "stream": (KEYS, 0, KEYS, 1),
    "purpose": (KEYS, counters.GEOMETRY, KEYS, counters.PHOTOMETRY),
    "id": (KEYS, 0, keys_of(0, 0, first=1), 0),
    "pass": (KEYS, 0, keys_of(0, 1), 0),
    "seed": (KEYS, 0, keys_of(1, 0), 0),
    "sign of the seed": (keys_of(1, 0), 0, keys_of(-1, 0), 0),
    "seed and pass exchanged": (keys_of(3, 5), 0, keys_of(5, 3), 0),
    "key": (KEYS, 0, KEYS + 1, 0),
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_neighbours_are_uncorrelated(name: str) -> None:
    keys_a, stream_a, keys_b, stream_b = NEIGHBOURS[name]
    a, b = counters.uniform(keys_a, stream_a, 50), counters.uniform(keys_b, stream_b, 50)
    bound = 5 / np.sqrt(a.size)
    assert abs(correlation(a, b)) < bound
    assert abs(correlation(a[:, 1:], b[:, :-1])) < bound


def test_draws_of_one_key_are_uncorrelated_at_every_lag() -> None:
    draws = counters.uniform(KEYS, 0, 50)
    assert max(abs(correlation(draws[:, lag:], draws[:, :-lag])) for lag in range(1, 20)) < 5 / np.sqrt(2_000 * 30)


def test_keys_differ_between_ids_passes_and_seeds() -> None:
    keys = [counters.sample_keys(seed, p, np.arange(1_000)) for seed in (-2, -1, 0, 1, 2) for p in range(5)]
    assert len(np.unique(np.concatenate(keys))) == 25_000


def test_flipping_any_bit_of_an_id_changes_half_of_the_bits_of_its_key() -> None:
    ids = np.arange(500)
    keys = counters.sample_keys(0, 0, ids).view(np.uint64)
    for bit in range(0, 63, 3):
        other = counters.sample_keys(0, 0, ids ^ (1 << bit)).view(np.uint64)
        changed = np.unpackbits((keys ^ other).view(np.uint8)).mean()
        assert abs(changed - 0.5) < 5 * 0.5 / np.sqrt(64 * len(ids))


SEEDS = [0, 1, 2, -1, -2, -12345, 2**31, 2**62, -(2**62)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [1, 2, 1_000])
def test_a_permutation_visits_everything_once(seed: int, size: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        order = counters.permutation(seed, 3, size)
    assert sorted(order.tolist()) == list(range(size))


def test_permutations_differ_between_passes_and_seeds_of_either_sign() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        orders = {counters.permutation(seed, p, 100).tobytes() for seed in SEEDS for p in range(10)}
    assert len(orders) == 10 * len(SEEDS)


def test_a_permutation_repeats_for_the_same_seed_and_pass() -> None:
    assert (counters.permutation(4, 2, 500) == counters.permutation(4, 2, 500)).all()


def test_every_place_of_a_permutation_is_equally_likely() -> None:
    size, trials = 10, 3_000
    table = np.zeros((size, size))
    for pass_index in range(trials):
        table[np.arange(size), counters.permutation(0, pass_index, size)] += 1
    statistic = ((table - trials / size) ** 2 / (trials / size)).sum()
    assert stats.chi2.sf(statistic, (size - 1) ** 2) > NEGLIGIBLE


def test_orders_of_consecutive_passes_are_uncorrelated() -> None:
    first, second = counters.permutation(0, 0, 10_000), counters.permutation(0, 1, 10_000)
    assert abs(correlation(first, second)) < 5 / np.sqrt(10_000)
