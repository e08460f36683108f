"""The checks of a GPU: on one where there is one, and on the CPU, so that they work when a GPU comes."""

from __future__ import annotations

from pathlib import Path

import pytest
from checks import CHECKS, SLOW_ON_A_CPU

pytestmark = pytest.mark.slow


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHECKS)
def test_a_gpu_computes_what_the_cpu_does(name: str, tmp_path: Path) -> None:
    CHECKS[name]("cuda", tmp_path)


@pytest.mark.parametrize("name", [name for name in CHECKS if name not in SLOW_ON_A_CPU])
def test_the_checks_of_a_gpu_pass_on_the_cpu(name: str, tmp_path: Path) -> None:
    CHECKS[name]("cpu", tmp_path)
