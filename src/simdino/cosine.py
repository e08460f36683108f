"""The half cosine, with or without a warm-up: the schedule of everything that is trained here."""

from math import cos, pi


def cosine(step: float, steps: float, *, start: float, end: float) -> float:
    """Return half a cosine's value at `step`, from `start` at step 0 to `end` at step `steps`."""
    return end + 0.5 * (start - end) * (1 + cos(pi * min(step, steps) / max(steps, 1)))


def warmup_cosine(step: int, steps: int, *, warmup: int, peak: float, end: float, start: float = 0.0) -> float:
    """Return the value at `step`: a line from `start` to `peak` at step `warmup`, then half a cosine to `end` at
    `steps`."""
    if step < warmup:
        return start + (peak - start) * step / warmup
    return cosine(step - warmup, steps - warmup, start=peak, end=end)
