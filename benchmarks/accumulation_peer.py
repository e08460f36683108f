"""Is a step in micro-batches the step of the whole batch? The experiment of lightly-train's issues 968 (DINO) and 973
(DenseCL), on theirs and on ours side by side.

    pip install -r benchmarks/requirements.txt
    python benchmarks/accumulation_peer.py

Both get the same views of the same images in the same order, a ViT of the same shape in float32, and the learning rate
of the same batch: 128 at once, or four times 32 (theirs: gradient_accumulation_steps=4; ours: --micro-batch 32). All
else is each one's own choice. Told are relative distances between both ways, |a - b| / |b|:

    first gradient    of the first step, from random weights
    later gradient    of a step from the state, which is the same, that ten steps of the whole batch have reached
    weights           of the student after ten steps, as a share of how far they have moved

Prints a Markdown table and stores benchmarks/results/accumulation_peer.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rows import keep
from torch import Tensor
from torchvision.io import write_jpeg

from simdino import recipes
from simdino.assembly import build
from simdino.contracts import Views
from simdino.methods import METHODS
from simdino.options import Options
from simdino.runs.folder import machine, source_revision
from simdino.train.loop import Training
from simdino.train.parallel import Processes

DATA, BATCH, PARTS, STEPS = "scattered-digits", 128, 4, 10
SIZE, LOCAL, PATCH = 32, 16, 4
THEIRS = ("dino", "densecl")
SHAPE = {"embed_dim": 192, "depth": 4, "num_heads": 3}  # our vit_nano
Named = dict[str, Tensor]


def distance(a: Named, b: Named, of: Named | None = None) -> float:
    """The length of a - b over the length of b, all tensors together; or over the length of `of`."""

    def length(x: list[Tensor]) -> float:
        return torch.stack([one.double().norm() for one in x]).norm().item()

    return length([a[name].double() - b[name].double() for name in b]) / length(list((of or b).values()))


def difference(a: Named, b: Named) -> Named:
    """a - b by name."""
    return {name: a[name].double() - b[name].double() for name in b}


def made(**words: Any) -> Training:
    """A run of ours, before its first step. Its gradients are not clipped before they are compared."""
    options = Options(
        {"optim.clip": 10**9, "views.local_size": LOCAL}, encoder="vit_nano", batch=BATCH, steps=STEPS, image_size=SIZE,
        patch_size=PATCH, local_views=2, channels=3, device="cpu", precision="float32", workers=0,
        threads=torch.get_num_threads(), **words,
    )  # fmt: skip
    return build(recipes.resolve(DATA, options), Processes())


class Taken:
    """What was seen of a few steps: the first gradient, the weights before and after, and the whole state after."""

    def __init__(self, gradient: Named, before: Named, after: Named, state: Any) -> None:
        self.gradient, self.before, self.after, self.state = gradient, before, after, state


def ours(method: str, micro_batch: int | None, steps: int, start: Any = None) -> Taken:
    """Steps of ours, from a state or from random weights."""
    training = made(method=method, micro_batch=micro_batch)
    state, seen = training.state, []
    if start is not None:
        state.load(start)

    def look(*_: Any) -> None:
        seen.append({n: p.grad.clone() for n, p in state.student.named_parameters() if p.grad is not None})

    state.optimizer.register_step_pre_hook(look)
    before = {n: p.detach().clone() for n, p in state.student.named_parameters()}
    for views, _ in training.loader.steps(0, steps):
        training.step(views)
    after = {n: p.detach().clone() for n, p in state.student.named_parameters()}
    return Taken(seen[0], before, after, state.tensors())


def batches() -> list[list[Tensor]]:
    """The views [B, C, H, W] of the batches, which theirs get too."""

    def both(views: Views) -> list[Tensor]:
        assert views.local_views is not None
        return [*views.global_views, *views.local_views]

    return [both(views) for views, _ in made().loader.steps(0, STEPS)]


def theirs(method: str, parts: int, steps: int, folder: Path, start: Any = None) -> Taken:
    """Steps of theirs, in a process of its own."""
    name = f"{method}-{parts}-{steps}-{start is not None}"
    torch.save(start, folder / f"{name}.start")
    words = ["--their", method, str(parts), str(steps), str(folder / name), "--folder", str(folder)]
    env = {**os.environ, "LIGHTLY_TRAIN_EVENTS_DISABLED": "1"}
    done = subprocess.run([sys.executable, __file__, *words], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"lightly-train's {method} failed:\n{done.stdout}\n{done.stderr}")
    return Taken(*torch.load(folder / f"{name}.taken", weights_only=True))


def their_run(method: str, parts: int, steps: int, name: Path, folder: Path) -> None:
    """Call their `pretrain` with our views in the place of its own, and keep what its steps do."""
    import lightly_train  # noqa: PLC0415
    from lightly_train._methods.densecl.densecl import DenseCL  # noqa: PLC0415
    from lightly_train._methods.dino.dino import DINO  # noqa: PLC0415

    kind = {"dino": DINO, "densecl": DenseCL}[method]
    views, start = torch.load(folder / "views"), torch.load(f"{name}.start", weights_only=True)
    calls, gradients, before = [], [], {}
    step, hook = kind.training_step_impl, kind.on_before_optimizer_step

    def student(model: Any) -> Named:
        return {n: p for n, p in model.named_parameters() if not n.startswith(("teacher", "key_encoder"))}

    def begin(model: Any) -> None:
        if start is not None:
            model.load_state_dict(start)
        before.update({n: p.detach().clone() for n, p in student(model).items()})

    def own_step(model: Any, batch: Any, index: int) -> Any:
        whole = views[len(calls) // parts][: 2 if method == "densecl" else None]
        batch["views"] = [view.chunk(parts)[len(calls) % parts] for view in whole]
        calls.append(index)
        return step(model, batch, index)

    def look(model: Any, optimizer: Any, *more: Any) -> None:
        gradients.append({n: p.grad.clone() for n, p in student(model).items() if p.grad is not None})
        hook(model, optimizer, *more)

    def end(model: Any) -> None:
        after = {n: p.detach().clone() for n, p in student(model).items()}
        torch.save((gradients[0], before, after, model.state_dict()), f"{name}.taken")

    kind.training_step_impl, kind.on_before_optimizer_step = own_step, look
    kind.on_train_start, kind.on_train_end = begin, end
    images = folder / "images"
    local = {"local_view": {"num_views": 2, "view_size": (LOCAL, LOCAL)}} if method == "dino" else {}
    lightly_train.pretrain(
        out=f"{name}.out", data=str(images), model="timm/vit_tiny_patch16_224", method=method, seed=0,
        model_args={**SHAPE, "patch_size": PATCH, "img_size": SIZE, "dynamic_img_size": True},
        transform_args={"image_size": (SIZE, SIZE), **local}, batch_size=BATCH // parts,
        gradient_accumulation_steps=parts, num_workers=0, accelerator="cpu", precision="32-true", epochs=1000,
        trainer_args={"max_steps": steps},
    )  # fmt: skip


def row(who: str, method: str, take: Any) -> dict[str, Any]:
    """The distances of one method. take: takes steps, given in how many parts, how many and from where."""
    whole, parted = take(1, STEPS), take(PARTS, STEPS)
    assert distance(parted.before, whole.before) == 0, "both ways begin with the same weights"
    later = [take(parts, 1, whole.state) for parts in (1, PARTS)]
    return {
        "who": who, "method": method, "first gradient": distance(parted.gradient, whole.gradient),
        "later gradient": distance(later[1].gradient, later[0].gradient),
        "weights": distance(parted.after, whole.after, difference(whole.after, whole.before)),
        "batch": BATCH, "parts": PARTS, "steps": STEPS, "machine": machine(), "source_revision": source_revision(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--their", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.their is not None:
        method, parts, steps, name = given.their
        their_run(method, int(parts), int(steps), Path(name), given.folder)
        return
    rows = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        torch.save(batches(), folder / "views")
        (folder / "images").mkdir()
        for i in range(BATCH):
            write_jpeg(torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), str(folder / "images" / f"{i}.jpg"))
        for method in THEIRS:
            who = f"lightly-train {version('lightly-train')}"
            rows.append(row(who, method, lambda *how, method=method: theirs(method, how[0], how[1], folder, *how[2:])))
    for method in METHODS:
        take = lambda parts, *how, method=method: ours(method, BATCH // parts if parts > 1 else None, *how)  # noqa: E731
        rows.append(row("simdino", method, take))
    columns = ("first gradient", "later gradient", "weights")
    keep("accumulation_peer", rows, keys=("who", "method"), columns={name: name for name in columns})


if __name__ == "__main__":
    main()
