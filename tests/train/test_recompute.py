"""--recompute: the same weights to the bit, with a fraction of the activations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from simdino import recipes
from simdino.assembly import build, step_bytes
from simdino.contracts import InputError
from simdino.options import Options
from simdino.train.loop import Training
from simdino.train.parallel import Processes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
WORDS: dict[str, Any] = {
    "steps": 4, "batch": 8, "patch_size": 4, "threads": 1, "precision": "float32", "device": "cpu", "workers": 0,
    "drop_path": 0.2, "local_views": 1,
}  # fmt: skip


def built(**words: Any) -> Training:
    return build(recipes.resolve("digits", Options(**{**WORDS, **words})), Processes())


def trained(**words: Any) -> dict[str, Tensor]:
    training = built(**words)
    for views, _ in training.loader.steps(0, 2):
        training.step(views)
    return {
        f"{part}.{name}": x for part in ("student", "teacher") for name, x in training.state.tensors()[part].items()
    }


@pytest.mark.parametrize("encoder", ["vit_pico", "crate_nano", "conv_pico", "hybrid_nano", "bag:vit_pico"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recomputing_changes_no_bit(encoder: str, precision: str) -> None:
    plain, again = (trained(encoder=encoder, precision=precision, recompute=so) for so in (False, True))
    assert plain.keys() == again.keys()
    assert all(torch.equal(x, again[name]) for name, x in plain.items())


def kept(training: Training) -> int:
    """The bytes that one forward of the student keeps for its backward, parameters aside."""
    found: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in training.state.student.parameters()}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return x

    views, _ = next(training.loader.steps(0, 1))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        embeddings = training.state.student(views)
    assert embeddings.cls.requires_grad
    return sum(found.values())


def test_recomputing_keeps_fewer_activations() -> None:
    words = {"encoder": "vit_nano", "projector.layers": 1}
    plain, again = (
        kept(build(recipes.resolve("digits", Options(words, **WORDS, recompute=so)), Processes()))
        for so in (False, True)
    )
    assert again < plain / 4


def test_the_memory_that_is_asked_for_is_less() -> None:
    configs = [recipes.resolve("digits", Options(**WORDS, encoder="vit_nano", recompute=so)) for so in (False, True)]
    plain, again = map(step_bytes, configs)
    assert again["activations"] < plain["activations"] / 3
    assert {**again, "activations": 0} == {**plain, "activations": 0}


@pytest.mark.parametrize(
    ("encoder", "why"), [("timm:resnet10t", "normalises over its batch"), ("timm:pit_ti_224", "has no blocks")]
)
def test_what_cannot_be_recomputed_is_refused(encoder: str, why: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(InputError, match=why):
        built(encoder=encoder, patch_size=None, drop_path=None, image_size=224, local_views=0, recompute=True)


@pytest.mark.parametrize("name", ["vit_nano", "crate_nano", "conv_pico", "hybrid_nano", "bag:conv_pico"])
def test_encoders_of_each_kind_have_stages(name: str) -> None:
    """So that each can be divided and recomputed block by block."""
    encoder = built(encoder=name).state.student.encoder
    of_blocks = {id(p) for stage in encoder.stages() for p in stage.parameters()}
    assert len(encoder.stages()) >= encoder.depth > 1
    assert sum(p.numel() for p in encoder.parameters() if id(p) in of_blocks) > encoder.embed_dim**2
