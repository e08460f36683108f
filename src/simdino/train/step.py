"""One training step, to be read first: views -> embeddings -> loss of the global batch -> gradients -> weights."""

import torch
from torch import Tensor

from simdino.config import OptimConfig
from simdino.contracts import AllReduce, Views, identity
from simdino.losses.objective import Objective
from simdino.models.groups import set_values
from simdino.models.projector import update_teacher
from simdino.train.optim import clip, drop_frozen, put_together, values_at
from simdino.train.parallel import accumulating
from simdino.train.state import State


class NotFinite(FloatingPointError):
    """A loss term or the gradient is not a finite number. The weights are those of the step before."""


def step(
    state: State,
    views: Views,
    loss: Objective,
    *,
    steps: int,
    optim: OptimConfig,
    all_reduce: AllReduce = identity,
    micro_batch: int | None = None,
    autocast: torch.autocast,
) -> dict[str, Tensor | float]:
    """Train on one batch and return what happened: loss, terms, health, gradient norm and schedules.

    With `micro_batch` that many images at a time go through the network, and the result is the same: a first pass
    without a graph gathers what the loss must know of the whole batch, a second back-propagates each micro-batch.
    Raises NotFinite before any weight has changed."""
    values = values_at(state.step, steps=steps, config=optim)
    pieces = views.split(micro_batch)
    model, metrics = state.model or state.student, {}
    with autocast:
        whole = model(pieces[0]) if len(pieces) == 1 and state.teaches_itself(views, optim) else None
    with torch.no_grad(), autocast:
        twice = len(pieces) > 1 and loss.needs_global_statistics
        own = whole and [whole.targets(len(views.global_views))]
        teachers, students = (own, None) if own else state.embeddings(pieces, students=twice)
        statistics = loss.global_statistics(teachers, students, temperature=values.temperature, all_reduce=all_reduce)
    del students  # of the whole batch

    for i, piece in enumerate(pieces):
        with accumulating(model, last=i == len(pieces) - 1):
            with autocast:
                student = whole or model(piece)
            result = loss(student, teachers[i], statistics[i], all_reduce=all_reduce)
            state.scaler.scale(result.total).backward()
        if i == 0 and len(pieces) > 1:
            put_together(state.student)
        for name, share in {**result.terms, **result.health, "loss": result.total.detach()}.items():
            metrics[name] = metrics[name] + share if name in metrics else share
    metrics |= loss.health(teachers, statistics, all_reduce=all_reduce)
    state.scaler.unscale_(state.optimizer)
    drop_frozen(state.student, values, optim)
    metrics["grad_norm"] = clip(state.student, optim)
    check_finite(metrics, state, scaled=state.scaler.is_enabled())
    set_values(state.optimizer, **values.of_groups())
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    update_teacher(state.teacher, state.student, momentum=values.momentum)
    loss.update_buffers(teachers, all_reduce=all_reduce)
    state.step += 1
    return {**metrics, "lr": values.lr, "weight_decay": values.weight_decay, "momentum": values.momentum}


def check_finite(metrics: dict[str, Tensor], state: State, *, scaled: bool) -> None:
    """Raise NotFinite for the first number that is not finite. All processes hold the same numbers, so all stop.
    Under a gradient scaler an infinite gradient is no error: the scaler skips that step and lowers its scale."""
    checked = {name: value for name, value in metrics.items() if not (scaled and name == "grad_norm")}
    finite = torch.stack([value.isfinite().to(metrics["loss"].device) for value in checked.values()])
    if not finite.all():
        name = list(checked)[int(finite.int().argmin())]
        raise NotFinite(f"{name} is {float(metrics[name])} in step {state.step + 1}; the weights were not changed")
