"""The peaks of devices: names of drivers, data sheets, and a measurement against a planted clock."""

from __future__ import annotations

import itertools

import pytest

from simdino import peaks
from simdino.contracts import InputError
from simdino.peaks import PUBLISHED, gpu_named, measured, named, peak_of, published

DRIVERS = {
    "NVIDIA H200": "H200", "NVIDIA H100 80GB HBM3": "H100", "NVIDIA H100 PCIe": "H100 PCIE",
    "NVIDIA H100 NVL": "H100 NVL", "NVIDIA A100-SXM4-40GB": "A100", "NVIDIA A100 80GB PCIe": "A100",
    "Tesla V100-SXM2-16GB": "V100",
    "Tesla V100-PCIE-32GB": "V100 PCIE", "NVIDIA L4": "L4", "NVIDIA L40S": "L40S",
    "NVIDIA GeForce RTX 3090": "RTX 3090",
    "NVIDIA GeForce RTX 4090": "RTX 4090", "NVIDIA B200": "B200", "Tesla T4": "T4", "AMD Instinct MI300X": "MI300X",
}  # fmt: skip
OTHERS = (
    "NVIDIA GeForce RTX 3090 Ti", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "NVIDIA H20",
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA GeForce GTX 1080", "",
)  # fmt: skip


@pytest.mark.parametrize("device", DRIVERS)
def test_a_driver_s_name_leads_to_the_data_sheet(device: str) -> None:
    assert named(device) == DRIVERS[device]


@pytest.mark.parametrize("device", OTHERS)
def test_another_device_and_a_slice_of_one_have_no_peak(device: str) -> None:
    assert named(device) is None


def test_peaks_follow_the_precision() -> None:
    def teraflops(name: str, precision: peaks.Precision, *, tf32: bool = False) -> float | None:
        found = published(name, precision, tf32=tf32)
        return None if found is None else found.flops / 1e12

    assert [teraflops("A100", one) for one in ("bfloat16", "float16", "float32")] == [312, 312, 19.5]
    assert teraflops("A100", "float32", tf32=True) == 156
    assert teraflops("V100", "bfloat16") is None and teraflops("V100", "float32", tf32=True) == 15.7
    for name, (bfloat16, float16, rounded, float32) in PUBLISHED.items():
        known = [one for one in (bfloat16, float16, rounded, float32) if one is not None]
        assert known == sorted(known, reverse=True), name


def test_an_unknown_gpu_is_named_with_the_nearest() -> None:
    assert gpu_named("rtx 4090") == "RTX 4090"
    with pytest.raises(InputError, match=r"--gpu 'H10' must be V100, .*; did you mean H100\?"):
        gpu_named("H10")


def test_a_processor_s_peak_is_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.accumulate([0.0, 0.05, 0.02, 0.03, 0.04])
    monkeypatch.setattr(peaks.time, "perf_counter", lambda: next(ticks))
    found = measured.__wrapped__("float32", 1)
    assert found.flops == pytest.approx(2 * 1024**3 / 0.02)
    assert found.source == "measured here, a product of 1024 x 1024 matrices in float32 on 1 thread"
    monkeypatch.undo()
    assert peak_of("cpu", "float32") is peak_of("cpu", "float32"), "measured once"
