"""The operations of a training step, counted."""

from contextlib import nullcontext, suppress
from copy import deepcopy

import torch
from torch.utils.flop_counter import FlopCounterMode

from simdino.train.loop import Training
from simdino.train.step import NotFinite


def flops_of_step(training: Training) -> float:
    """Return the operations of the step that comes next, on all processes together: those of its matrix products and
    convolutions, two for a product and its sum, of student and teacher, forward and backward, loss and update.

    The step is taken with the images' own rng keys and masks, which decide how much is dropped and hidden, on pixels
    that are all 0, which change nothing of that: no image is read. Afterwards the state is as it was. Of shapes
    alone (on torch's meta device) it cannot be counted: losses select patches and pairs by masks."""
    state, loader = training.state, training.loader
    pixels = loader.batches.unread(state.step)
    for crops in (pixels.global_views, pixels.local_views):
        if crops is not None:
            crops.zero_()
    views, before, model = loader.batch(pixels, loader.micro_batch), deepcopy(state.tensors(own=True)), state.model
    eager = torch.compiler.set_stance("force_eager") if state.encoder.compiled else nullcontext()
    state.model = None  # what DDP adds is no product, and it would note the order of gradients
    try:
        with eager, suppress(NotFinite), FlopCounterMode(display=False) as counter:
            training.step(views)
    finally:
        state.optimizer.zero_grad(set_to_none=True)
        state.load(before)
        state.model = model
    if loader.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(loader.device)  # the copy of the state is no part of a run
    return training.processes.total(counter.get_total_flops())[0]
