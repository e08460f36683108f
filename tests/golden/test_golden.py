"""Whole steps keep their numbers from one commit to the next."""

from __future__ import annotations

import json

import pytest
from ten_steps import CASES, HERE, TOY, ten_steps

from simdino.models.catalogue import ENCODERS


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("one_thread")
def test_ten_steps_have_the_stored_numbers(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, "vit_toy", TOY)
    stored = json.loads((HERE / f"{case}.json").read_text())
    for number, (now, before) in enumerate(zip(ten_steps(case), stored, strict=True), start=1):
        assert now == pytest.approx(before, rel=1e-5, abs=1e-8), f"step {number}"
