"""Which arithmetic a run takes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from simdino import device


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    device.fastest.cache_clear()
    yield
    device.fastest.cache_clear()


def cpu(monkeypatch: pytest.MonkeyPatch, *, has_bfloat16: bool, seconds: dict[torch.dtype, float]) -> str:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bfloat16)
    monkeypatch.setattr(device, "product_seconds", lambda dtype: seconds[dtype])
    return device.fastest("cpu")


@pytest.mark.parametrize(
    ("bfloat16", "expected"),
    [(0.2, "bfloat16"), (0.8, "bfloat16"), (0.9, "float32"), (1.9, "float32")],
    ids=["amd", "a little", "too little", "intel without amx"],
)
def test_a_cpu_takes_bfloat16_only_where_it_is_measured_faster(
    monkeypatch: pytest.MonkeyPatch, bfloat16: float, expected: str
) -> None:
    assert cpu(monkeypatch, has_bfloat16=True, seconds={torch.float32: 1.0, torch.bfloat16: bfloat16}) == expected


def test_without_instructions_for_bfloat16_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu(monkeypatch, has_bfloat16=False, seconds={}) == "float32"


@pytest.mark.parametrize(("native", "expected"), [(True, "bfloat16"), (False, "float16")])
def test_gpus_without_bfloat16_take_float16(monkeypatch: pytest.MonkeyPatch, native: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert device.fastest("cuda:0") == expected


def test_a_product_takes_time() -> None:
    assert 0 < device.product_seconds(torch.float32, size=64, tries=2) < float("inf")


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_autocast_computes_in_the_precision_asked_for(kind: device.Precision) -> None:
    a = torch.ones(4, 4)
    with device.make_autocast("cpu", kind):
        assert (a @ a).dtype == getattr(torch, kind)
