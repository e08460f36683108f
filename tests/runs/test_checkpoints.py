"""Checkpoints that survive a kill at any instruction, and refuse what is not theirs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from full_disk import nearly_full
from simdino.assembly import build
from simdino.config import Config
from simdino.contracts import InputError
from simdino.files import write_aside
from simdino.options import Options
from simdino.recipes import resolve
from simdino.runs.checkpoints import checkpoints, load_checkpoint, remove_leftovers, same_run, save_checkpoint, step_of
from simdino.settings import shown
from simdino.train.loop import Training
from simdino.train.parallel import Processes

OPTIONS = Options(steps=9, batch=8, encoder="vit_toy", patch_size=4, precision="float32", device="cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def config(pico: None) -> Config:
    return resolve("digits", OPTIONS)


@pytest.fixture(scope="module")
def parts(config: Config) -> Training:
    return build(config, Processes())


def save(run: Path, parts: Training, config: Config, step: int, keep: set[int] | None = None) -> Path:
    parts.state.step = step
    return save_checkpoint(run, parts.state.tensors(), config, revision=None, keep=keep or set())


def test_a_checkpoint_gives_back_every_tensor(tmp_path: Path, parts: Training, config: Config) -> None:
    saved = save(tmp_path, parts, config, 3)
    fresh = build(dataclasses.replace(config, run=dataclasses.replace(config.run, seed=1)), Processes())
    load_checkpoint(saved, config, into=fresh.state.load)
    assert fresh.state.step == 3
    for name, value in parts.state.teacher.state_dict().items():
        assert torch.equal(value, fresh.state.teacher.state_dict()[name]), name


def test_the_same_state_gives_the_same_bytes(tmp_path: Path, parts: Training, config: Config) -> None:
    first, second = (save(tmp_path / name, parts, config, 3) for name in ("a", "b"))
    assert (first / "state.pt").read_bytes() == (second / "state.pt").read_bytes()


def test_saving_keeps_the_named_steps_and_deletes_the_others(tmp_path: Path, parts: Training, config: Config) -> None:
    for step in (1, 2, 3):
        save(tmp_path, parts, config, step, keep={1, 2})
    save(tmp_path, parts, config, 4, keep={1, 3})
    assert [step_of(path) for path in checkpoints(tmp_path)] == [1, 3, 4]


def test_what_a_kill_left_behind_is_no_checkpoint_and_goes_away(
    tmp_path: Path, parts: Training, config: Config
) -> None:
    save(tmp_path, parts, config, 1)
    for name in (".writing-00000002", ".deleting-step-00000000"):
        (tmp_path / "checkpoints" / name).mkdir()
        (tmp_path / "checkpoints" / name / "state.pt").write_bytes(b"half")
    (tmp_path / ".writing-metrics.jsonl").write_text("half")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / ".writing-4711").write_text("half")
    (tmp_path / "encoder.safetensors").write_text("whole")
    assert [step_of(path) for path in checkpoints(tmp_path)] == [1]
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "checkpoints", "encoder.safetensors", "manifest.json", "pictures", "state.pt", "step-00000001",
    ]  # fmt: skip


@pytest.mark.parametrize("failing", ["torch.save", "simdino.runs.checkpoints.hash_file", "pathlib.Path.rename"])
def test_a_failure_while_saving_leaves_the_checkpoint_before_whole(
    failing: str, tmp_path: Path, parts: Training, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    save(tmp_path, parts, config, 1)
    with monkeypatch.context() as patch:
        patch.setattr(failing, fail)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, parts, config, 2)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [1]
    load_checkpoint(checkpoints(tmp_path)[-1], config, into=parts.state.load)
    assert parts.state.step == 1
    save(tmp_path, parts, config, 2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_a_checkpoint_is_replaced_as_a_whole(tmp_path: Path, parts: Training, config: Config) -> None:
    first = save(tmp_path, parts, config, 1)
    (first / "state.pt").write_bytes(b"damaged")
    save(tmp_path, parts, config, 1)
    load_checkpoint(first, config, into=parts.state.load)


def test_the_checkpoint_of_another_step_is_refused(tmp_path: Path, parts: Training, config: Config) -> None:
    moved = save(tmp_path, parts, config, 1).rename(tmp_path / "checkpoints" / "step-00000007")
    with pytest.raises(InputError, match="belongs to another configuration"):
        load_checkpoint(moved, config, into=parts.state.load)


def test_the_checkpoint_of_a_network_of_other_shape_is_refused(tmp_path: Path, parts: Training, config: Config) -> None:
    wider = dataclasses.replace(config, projector=dataclasses.replace(config.projector, out_dim=8))
    saved = save_checkpoint(tmp_path, build(wider, Processes()).state.tensors(), config, revision=None, keep=set())
    with pytest.raises(InputError, match="does not fit this version of simdino"):
        load_checkpoint(saved, config, into=parts.state.load)


@pytest.mark.parametrize(
    ("group", "values"),
    [
        ("run", {"seed": 1}), ("optim", {"lr": 1e-4}), ("optim", {"weight_decay": 0.05}),
        ("data", {"train_images": 17}),
        ("views", {"flip": 0.25}), ("views", {"hue": 0.2}), ("loss", {"shard_size": 32}), ("run", {"knn_bank": 7}),
        ("encoder", {"positions": "plain"}), ("run", {"method": "simdinov2"}),
    ],
)  # fmt: skip
def test_a_checkpoint_made_with_another_value_is_refused_by_its_name(
    group: str, values: dict[str, object], tmp_path: Path, parts: Training, config: Config
) -> None:
    saved = save(tmp_path, parts, config, 1)
    ((name, value),) = values.items()
    edited = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **values)})
    before = getattr(getattr(config, group), name)
    with pytest.raises(InputError) as caught:
        load_checkpoint(saved, edited, into=parts.state.load)
    assert f"{group}.{name} is {shown(value)}, and was {shown(before)}; put that back" in str(caught.value)


def test_what_changes_no_more_than_rounding_may_differ_and_is_said(
    tmp_path: Path, parts: Training, config: Config
) -> None:
    saved = save(tmp_path, parts, config, 1)
    elsewhere = dataclasses.replace(
        config,
        speed=dataclasses.replace(config.speed, workers=3, micro_batch=2),
        run=dataclasses.replace(config.run, keep=9, checkpoint_every=5),
        data=dataclasses.replace(config.data, root="/elsewhere"),
    )
    assert same_run(saved, config) == []
    assert same_run(saved, elsewhere) == ["speed.micro_batch is 2, and was null"]


@pytest.mark.parametrize("edited", [{"config": None}, {"config": {}}, {"config": {"run": 3}}, {"step": "1"}])
def test_a_manifest_edited_by_hand_is_one_line(
    edited: dict[str, object], tmp_path: Path, parts: Training, config: Config
) -> None:
    saved = save(tmp_path, parts, config, 1)
    manifest = saved / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | edited))
    with pytest.raises(InputError, match=r"is damaged|belongs to another configuration") as caught:
        load_checkpoint(saved, config, into=parts.state.load)
    assert "\n" not in str(caught.value)


def test_a_file_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.json"
    write_aside(file, b"old")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", die)
        with pytest.raises(KeyboardInterrupt):
            write_aside(file, b"new")
    assert file.read_bytes() == b"old"


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, parts: Training, config: Config) -> None:
    saved = save(tmp_path, parts, config, 3)
    with nearly_full(), pytest.raises(OSError, match="") as error:
        save(tmp_path, parts, config, 4)
    assert str(error.value) == f"{tmp_path}/checkpoints/step-00000004 cannot be written: File too large"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [saved.name]
    load_checkpoint(saved, config, into=parts.state.load)
    assert save(tmp_path, parts, config, 4).name == "step-00000004"
