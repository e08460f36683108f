"""Workers chosen by what was measured: the rule against written-out cases, the measurement against planted delays."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from simdino import recipes, timing
from simdino.assembly import build
from simdino.config import Config, SpeedConfig
from simdino.options import Options
from simdino.plan import plan
from simdino.timing import Pace, batches_ahead, chosen, pace, workers_beside_cpu, workers_beside_gpu
from simdino.train.parallel import Processes

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = {"encoder": "vit_toy", "patch_size": 4, "batch": 8, "steps": 4, "precision": "float32"}


def measured(read: float, step: float, *, slowest: float | None = None) -> Pace:
    return Pace(read=read, slowest_read=slowest or read, step=step)


def tiny() -> Config:
    return recipes.resolve("digits", Options(**WORDS))


@pytest.mark.parametrize(
    ("read", "step", "cores", "workers"),
    [(0.5, 0.1, 16, 7), (0.5, 0.1, 4, 3), (0.01, 1.0, 16, 1), (8.0, 0.1, 64, 63), (1.0, 1.0, 2, 1), (1.0, 1.0, 1, 1)],
)
def test_a_gpu_gets_the_readers_that_keep_up_and_a_quarter_more(
    read: float, step: float, cores: int, workers: int
) -> None:
    assert workers_beside_gpu(measured(read, step), cores=cores) == workers


@pytest.mark.parametrize(
    ("read", "step", "cores"), list(product((0.01, 0.1, 0.5, 1.0, 4.0), (0.1, 1.0), (1, 2, 4, 8, 16)))
)
def test_beside_a_cpu_no_other_number_of_workers_is_faster(read: float, step: float, cores: int) -> None:
    def seconds(workers: int) -> float:
        return max(read / workers, step * cores / (cores - workers)) if workers else read + step

    number = workers_beside_cpu(measured(read, step), cores=cores)
    fastest = min(map(seconds, range(cores)))
    assert seconds(number) == fastest or (number == 0 and fastest >= 0.9 * seconds(0))


def test_cores_that_train_are_not_given_away_for_little() -> None:
    assert workers_beside_cpu(measured(0.02, 1.0), cores=16) == 0
    assert workers_beside_cpu(measured(1.0, 1.0), cores=16) == 1
    assert workers_beside_cpu(measured(4.0, 1.0), cores=16) == 3
    assert workers_beside_cpu(measured(1.0, 1.0), cores=1) == 0


def test_uneven_batches_are_made_further_ahead() -> None:
    assert [batches_ahead(measured(1.0, 1.0, slowest=slowest)) for slowest in (1.0, 3.5, 99.0)] == [2, 4, 8]


def test_threads_are_what_the_workers_leave() -> None:
    found, cpu, gpu = measured(1.0, 1.0), SpeedConfig(), SpeedConfig(device="cuda", workers=15)
    assert chosen(found, cpu, cores=16) == replace(cpu, workers=1, prefetch=2, threads=15)
    assert chosen(found, cpu, cores=1) == cpu
    assert chosen(found, gpu, cores=16) == replace(gpu, workers=2, prefetch=2)


@pytest.mark.slow
def test_reading_is_timed_apart_from_the_step() -> None:
    config = tiny()
    parts = build(config, Processes())
    read, delay = parts.data.train.read, 0.02
    before = parts.state.student.state_dict()["encoder.cls_token"].clone()

    def slow(i: int, channels: int | None = None, *, at_least: int | None = None) -> Tensor:
        time.sleep(delay)
        assert torch.get_num_threads() == 1
        return read(i, channels, at_least=at_least)

    parts.data.train.read = slow
    found = pace(parts)
    assert found.read >= 8 * delay
    assert found.slowest_read >= found.read
    assert found.step > 0
    assert not torch.equal(before, parts.state.student.state_dict()["encoder.cls_token"])  # it was a real step


@pytest.mark.slow
def test_a_run_takes_the_workers_that_were_measured_unless_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(timing, "pace", lambda *_, **__: measured(1.0, 0.5, slowest=2.5))
    out = tmp_path_factory.mktemp("runs")

    def speed(**words: int) -> SpeedConfig:
        return plan("digits", Options(**WORDS, **words), out / "run", log=lambda _: None).config.speed

    expected = workers_beside_cpu(measured(1.0, 0.5), cores=8)
    assert expected > 0
    assert (speed().workers, speed().prefetch, speed().threads) == (expected, 3, 8 - expected)
    assert (speed(workers=0).workers, speed(workers=0).threads) == (0, None)
    assert speed(workers=1).workers == 1
    assert speed(threads=1).workers == 0


def test_a_machine_with_few_cores_is_not_probed(monkeypatch: pytest.MonkeyPatch, tmp_path_factory) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(timing, "pace", lambda *_, **__: pytest.fail("there is nothing to choose"))
    out = tmp_path_factory.mktemp("runs") / "run"
    assert plan("digits", Options(**WORDS), out, log=lambda _: None).config.speed.workers == 0
