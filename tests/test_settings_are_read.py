"""Every setting is read by the code that it is for, and not only by what checks, writes and describes it."""

from __future__ import annotations

import sys
from dataclasses import fields
from typing import Any

import pytest

import simdino as sd
from simdino.assembly import build
from simdino.methods import GROUPS, METHODS
from simdino.options import setting_of
from simdino.train.parallel import Processes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
WRITERS = ("dataclasses", "copy", "simdino.settings", "simdino.recipes", "simdino.plan", "simdino.options")
"""What handles all settings alike, or decides them, and does nothing with their values."""
TINY: dict[str, Any] = {
    "steps": 3, "batch": 64, "encoder": "vit_toy", "patch_size": 2, "threads": 1, "precision": "float32",
    "device": "cpu", "evaluate_every": 2, "local_views": 1, "scope": "shards", "views.blur": (1.0, 1.0, 1.0),
    "views.solarize": (1.0, 1.0, 1.0), "views.jitter": 1.0, "views.grey": 1.0, "views.flip": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory, pico: None) -> set[tuple[str, str]]:
    """The fields that a run of each method and its report read, by the name of the dataclass."""
    found: set[tuple[str, str]] = set()
    groups = {*GROUPS.values(), *(method.settings for method in METHODS.values())}
    plain = {group: group.__getattribute__ for group in groups}

    def spy(self: Any, name: str) -> Any:
        if not sys._getframe(1).f_globals.get("__name__", "").startswith(WRITERS):
            found.update((owner.__name__, name) for owner in type(self).__mro__)
        return object.__getattribute__(self, name)

    for group in groups:
        group.__getattribute__ = spy
    try:
        for method, own in METHODS.items():
            words = {name: value for name, value in TINY.items() if setting_of(name).of(own) is not None}
            words |= {"prototypes": 16} if "prototypes" in own.parts else {}
            folder = tmp_path_factory.mktemp(method) / "run"
            done = sd.pretrain("digits", folder, settings=words, method=method, log=lambda _: None)
        build(sd.recipes.auto("digits", encoder="conv_pico", steps=2, batch=8, device="cpu"), Processes())
        build(done.config, Processes())  # which opens the data by the configuration, as a run that goes on does
    finally:
        for group in groups:
            group.__getattribute__ = plain[group]
    return found


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (owner.__name__, field.name)
        for owner in dict.fromkeys([*GROUPS.values(), *(method.settings for method in METHODS.values())])
        for field in fields(owner)
    ],
)
def test_every_setting_is_read_by_a_run(owner: str, name: str, read: set[tuple[str, str]]) -> None:
    assert (owner, name) in read


def test_a_setting_that_nothing_reads_is_noticed(read: set[tuple[str, str]]) -> None:
    assert ("ViewsConfig", "batch") not in read and ("RunConfig", "batch") in read
