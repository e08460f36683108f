"""Ten steps of every method end in the same weights on one, two or four processes, whole or in micro-batches, and with
a state that each process holds whole (DDP) or a part of (FSDP2); and a state saved under one goes on under another."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from two_processes import AUTOCAST, Case, make_views_of, on_two_processes, relative, share

from encoders import made
from simdino.config import OptimConfig
from simdino.contracts import Views
from simdino.methods import METHODS
from simdino.models.projector import Embedder, Projector, Prototypes
from simdino.models.starting import recompute_blocks
from simdino.models.vit import ViT
from simdino.train.parallel import Processes
from simdino.train.state import State
from simdino.train.step import step

pytestmark = pytest.mark.slow

STEPS, BATCH = 10, 16
BASE = OptimConfig(
    lr=3e-4, momentum=0.9, warmup=0.2, clip=0.1, freeze_prototypes=0.2, temperature=(0.04, 0.07), layer_decay=0.9
)
FORMS: dict[str, OptimConfig] = {
    "plain": BASE,
    "parts": replace(BASE, clip_per="part", frozen_prototypes="no_rate", patch_embed_lr=0.2),
    "frozen": replace(BASE, freeze_encoder=0.3),
    "muon": replace(BASE, optimizer="muon"),
    "alone": replace(BASE, teacher="none"),
}
OF_METHODS = {"simdino": "plain", "simdinov2": "parts", "dino": "plain", "dinov2": "parts"}


class Run(NamedTuple):
    """A method and an optimizer."""

    case: Case
    form: str

    @property
    def optim(self) -> OptimConfig:
        return FORMS[self.form]

    def __str__(self) -> str:
        return f"{self.case.method}-{str(self.case.dtype)[6:]}-{self.form}"


class Layout(NamedTuple):
    """How a step is spread. recompute: activations are computed twice."""

    parallel: str = "ddp"
    micro: bool = False
    recompute: bool = False

    def __str__(self) -> str:
        return self.parallel + "-quarters" * self.micro + "-recomputed" * self.recompute


def run_of(method: str, dtype: torch.dtype, form: str | None = None) -> Run:
    return Run(Case(dtype, "balanced", method=method, separate=method == "dinov2"), form or OF_METHODS[method])


EXACT = [run_of(method, torch.float64) for method in METHODS]
SINGLE = [run_of(method, torch.float32) for method in METHODS]
FORMED = [run_of("dino", torch.float64, "frozen"), run_of("dinov2", torch.float64, "muon")]
FORMED.append(run_of("simdino", torch.float64, "alone"))
RUNS = [*EXACT, *SINGLE, *FORMED]
WAYS = ("ddp", "fsdp")
Asked = list[tuple[Layout, Run]]
ALONE: Asked = [(layout, run) for layout in (Layout(micro=True), Layout(recompute=True)) for run in RUNS]
TWO: Asked = [(Layout(way, micro), run) for way in WAYS for micro in (False, True) for run in EXACT]
TWO += [(Layout(way, True), run) for way in WAYS for run in SINGLE]
TWO += [(Layout("fsdp", True, True), run) for run in FORMED]
FOUR: Asked = [(layout, run) for layout in (Layout("ddp", True), Layout("fsdp")) for run in EXACT]
HALF = STEPS // 2


def loss_of(case: Case) -> Any:
    return case.loss(BATCH)


def start(run: Run, among: Processes, layout: Layout) -> State:
    """A ViT of 2 blocks with drop path; the teacher is not the student. Each process holds it as the layout says."""
    case, divided = run.case, layout.parallel == "fsdp"
    spare: list[Any] = [None]

    def head() -> Projector:
        last = Prototypes(dim=16, count=24, train_lengths=case.masked) if case.prototypes else None
        return Projector(embed_dim=32, hidden_dim=48, out_dim=16, prototypes=last)

    def prepare(student: Embedder, teacher: Embedder) -> None:
        for parameter in [*student.parameters(), *teacher.parameters()]:
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.data += scale * torch.randn(parameter.shape)  # drawn in float32 for both float types
        if run.form == "alone":
            teacher.load_state_dict(student.state_dict())
        spare[0] = deepcopy(student.encoder)
        if layout.recompute:
            recompute_blocks(student.encoder)
        for network in (student, teacher) if divided else ():
            among.divide(network, network.encoder.stages())

    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = made(
            ViT, image_size=8, patch_size=2 if case.masked else 4, in_chans=1, embed_dim=32, depth=2, num_heads=2,
            drop_path=0.0 if run.form == "alone" else 0.3, mask_token=case.masked, registers=1,
        )  # fmt: skip
        student = Embedder(encoder, head(), head() if case.separate else None).to(case.dtype)
        device = torch.device("cpu")
        state = State.create(student, optim=run.optim, device=device, precision="float32", prepare=prepare)
    state.spare = spare[0] if divided and among.first else None
    state.model = among.wrap(state.student)
    return state


@cache
def views_of(case: Case, seed: int) -> Views:
    views = make_views_of(case._replace(gamma=None), seed=seed)
    return next(iter(views.split(BATCH)))


def train(run: Run, state: State, loss: Any, among: Processes, layout: Layout, steps: Iterable[int]) -> dict[str, Any]:
    """The state after these steps, as a checkpoint has it, and the weights of the encoder that is evaluated."""
    state.buffers = loss.buffers
    own = BATCH // among.world
    for i in steps:
        step(
            state, share(views_of(run.case, i), among), loss, steps=STEPS, optim=run.optim, all_reduce=among.sum,
            micro_batch=own // 4 if layout.micro else None, autocast=AUTOCAST,
        )  # fmt: skip
    tensors = state.tensors()
    with state.whole_encoder() as encoder:
        weights = deepcopy(encoder.state_dict()) if among.first else {}
    return {**tensors, "encoder": weights} if among.first else {}


def ten_steps(run: Run, among: Processes, layout: Layout) -> dict[str, Any]:
    return train(run, start(run, among, layout), loss_of(run.case), among, layout, range(STEPS))


def first_half(run: Run, among: Processes, layout: Layout) -> dict[str, Any]:
    found = train(run, start(run, among, layout), loss_of(run.case), among, layout, range(HALF))
    return deepcopy(found)


def second_half(run: Run, among: Processes, layout: Layout, saved: dict[str, Any]) -> dict[str, Any]:
    state, loss = start(run, among, layout), loss_of(run.case)
    state.buffers = loss.buffers
    state.load(deepcopy(saved))  # its tensors become the state's
    assert state.step == HALF
    return train(run, state, loss, among, layout, range(HALF, STEPS))


CHANGED = [*EXACT, FORMED[1]]
"""The runs that go on elsewhere: one of each method, and one with Muon."""


def everything(among: Processes, asked: Asked, saved: dict[Run, Any]) -> dict[str, Any]:
    """What this file asks of several processes, in one go: starting them costs more than their work."""
    found = {
        "ten": {(layout, run): ten_steps(run, among, layout) for layout, run in asked},
        "went on": {
            (way, run): second_half(run, among, Layout(way), state) for way in WAYS for run, state in saved.items()
        },
        "half": {(way, run): first_half(run, among, Layout(way)) for way in WAYS for run in saved},
    }
    return found if among.first else {}


@cache
def alone(run: Run) -> dict[str, Any]:
    return ten_steps(run, Processes(), Layout())


@cache
def half_alone(run: Run) -> dict[str, Any]:
    return first_half(run, Processes(), Layout())


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    saved = {run: half_alone(run) for run in CHANGED}
    return on_two_processes(everything, tmp_path_factory.mktemp("two"), TWO, saved)[0]


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return on_two_processes(everything, tmp_path_factory.mktemp("four"), FOUR, {}, world=4)[0]


def networks(state: dict[str, Any]) -> dict[str, Tensor]:
    """Every tensor of student and teacher, and of what the loss remembers."""
    return {f"{part}.{name}": x for part in ("student", "teacher", "buffers") for name, x in state[part].items()}


def check_same(found: dict[str, Any], run: Run, *, otherwise: dict[str, Any] | None = None) -> None:
    """float64: each tensor. float32: all weights together, as a gradient that is zero but for rounding is a step of
    AdamW."""
    ours, theirs = networks(found), networks(otherwise or alone(run))
    assert ours.keys() == theirs.keys()
    assert all(x.shape == theirs[name].shape and x.dtype == theirs[name].dtype for name, x in ours.items())
    if run.case.dtype == torch.float64:
        far = {name: relative(x, theirs[name]) for name, x in ours.items()}
        assert max(far.values()) < 1e-9, max(far.items(), key=lambda one: one[1])
    else:
        flat = [torch.cat([x.flatten() for x in of.values()]) for of in (ours, theirs)]
        assert relative(*flat) < 1e-5
    for name, x in found["encoder"].items():
        assert torch.equal(x, found["teacher"][f"encoder.{name}"]), "what is evaluated is the teacher"


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_ten_steps_move_the_weights(run: Run) -> None:
    begun, ended = (networks(of) for of in (start(run, Processes(), Layout()).tensors(), alone(run)))
    moved = {name: (x - ended[name]).norm() / x.norm() for name, x in begun.items()}
    fixed = {f"{part}.projector.prototypes.lengths" for part in ("student", "teacher") if run.case.method == "dino"}
    assert {name for name, distance in moved.items() if distance < 1e-6} <= fixed
    assert torch.cat([x.flatten() for x in ended.values()]).isfinite().all()


@pytest.mark.parametrize(("layout", "run"), ALONE, ids=str)
def test_one_process(layout: Layout, run: Run) -> None:
    found = ten_steps(run, Processes(), layout)
    check_same(found, run)
    if layout.recompute:
        assert all(torch.equal(x, networks(alone(run))[name]) for name, x in networks(found).items())


@pytest.mark.parametrize(("layout", "run"), TWO, ids=str)
def test_two_processes(two: dict[str, Any], layout: Layout, run: Run) -> None:
    check_same(two["ten"][layout, run], run)


@pytest.mark.parametrize(("layout", "run"), FOUR, ids=str)
def test_four_processes(four: dict[str, Any], layout: Layout, run: Run) -> None:
    check_same(four["ten"][layout, run], run)


@pytest.mark.parametrize("run", CHANGED, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_a_state_of_one_process_goes_on_on_two(two: dict[str, Any], way: str, run: Run) -> None:
    check_same(two["went on"][way, run], run)


@pytest.mark.parametrize("run", CHANGED, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_a_state_of_two_processes_goes_on_on_one(two: dict[str, Any], way: str, run: Run) -> None:
    check_same(second_half(run, Processes(), Layout(), two["half"][way, run]), run)


@pytest.mark.parametrize("run", CHANGED, ids=str)
def test_a_divided_state_is_saved_as_a_whole_one_is(two: dict[str, Any], run: Run) -> None:
    divided, plain = two["half"]["fsdp", run], half_alone(run)
    assert divided["optimizer"]["param_groups"] == plain["optimizer"]["param_groups"]
    for i, moments in plain["optimizer"]["state"].items():
        for name, x in moments.items():
            ours = divided["optimizer"]["state"][i][name]
            assert type(ours) is Tensor and ours.shape == x.shape and ours.stride() == x.stride()
            assert relative(ours, x) < 1e-8, (i, name)


def test_another_seed_of_views_ends_elsewhere(two: dict[str, Any]) -> None:
    """The comparison is able to fail."""
    run = EXACT[0]
    state, loss = start(run, Processes(), Layout()), loss_of(run.case)
    found = train(run, state, loss, Processes(), Layout(), range(1, STEPS + 1))
    with pytest.raises(AssertionError):
        check_same(found, run, otherwise=two["ten"][Layout("fsdp"), run])
