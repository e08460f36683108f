"""The operations of `photometric`, compiled for a CPU by numba: one image at a time, in the CPU's caches.

The torch form copies the batch for every operation and takes nine times as long on one core (docs/log.md, views on a
CPU). Both give the same views within 1e-5 of the range. The fastmath flags allow sums to be reordered and products to
be fused, so that loops become vector instructions; nothing else is relaxed."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

Code = TypeVar("Code", bound=Callable[..., Any])


def compiled(function: Code) -> Code:
    """Return the function, compiled when it is first called and cached on disk where there is a folder for that."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
    try:
        return njit(cache=True, **options)(function)  # pyright: ignore[reportReturnType]
    except RuntimeError:  # neither this folder nor the user's cache can be written to
        return njit(**options)(function)  # pyright: ignore[reportReturnType]


Pixels = NDArray[np.float32]
Number = float | np.floating
F = np.float32


@compiled
def distort(
    crops: NDArray[np.uint8] | Pixels, views: Pixels, order: NDArray[np.int64], factors: Pixels, bands: Pixels,
    grey: NDArray[np.bool_], sigma: Pixels, solarized: NDArray[np.bool_], mean: Pixels, std: Pixels, radius: int,
    reflect: bool, white: Number,
) -> None:  # fmt: skip
    """Fill `views` float32 [B, C, h, w] with the distorted and normalised `crops` [B, C, h, w], uint8 or float32, whose
    values are from 0 to `white`. The other arguments are those of `photometric.Distortions`, and mean and std of each
    channel."""
    count, channels, height, width = crops.shape
    for i in range(count):
        flat, source = views[i].reshape(-1), crops[i].reshape(-1)
        for j in range(source.size):
            flat[j] = F(source[j]) / white
        x = flat.reshape(channels, height * width)
        for operation in order[i]:
            if operation >= 0 and bands.size:
                for c in range(channels):
                    jitter(x[c : c + 1], operation, bands[i, operation, c])
            elif operation >= 0:
                jitter(x, operation, factors[i, operation])
        if grey[i]:
            make_grey(x)
        if sigma[i] > 0:
            blur(views[i], sigma[i], radius, reflect)
        for c in range(channels):
            finish(x[c], solarized[i], mean[c], std[c])


@compiled
def jitter(x: Pixels, operation: int, factor: Number) -> None:
    """Apply brightness, contrast, saturation or hue, by its number, in place to [C, h w]."""
    if operation == 0:
        scale(x, factor, F(0))
    elif operation == 1:
        scale(x, factor, F(mean_luminance(x)) * (F(1) - factor))
    elif operation == 2:
        saturate(x[0], x[1], x[2], factor)
    else:
        turn(x[0], x[1], x[2], F(6) * factor)


@compiled
def clamped(value: Number) -> Number:
    """Return the value clamped to [0, 1]."""
    return min(max(value, F(0)), F(1))


@compiled
def luminance(r: Number, g: Number, b: Number) -> Number:
    """Return the luminance by ITU-R 601, as in Pillow."""
    return F(0.299) * r + F(0.587) * g + F(0.114) * b


@compiled
def scale(x: Pixels, factor: Number, offset: Number) -> None:
    """Multiply every value by the factor and add the offset: brightness and contrast."""
    flat = x.reshape(-1)
    for i in range(flat.size):
        flat[i] = clamped(flat[i] * factor + offset)


@compiled
def mean_luminance(x: Pixels) -> Number:
    """Return the luminance of the mean colour of an image [C, h w]."""
    if x.shape[0] == 1:
        return mean_of(x[0])
    return 0.299 * mean_of(x[0]) + 0.587 * mean_of(x[1]) + 0.114 * mean_of(x[2])


@compiled
def mean_of(plane: Pixels) -> Number:
    """Return the mean of a plane, summed in float32 over 4,096 pixels at a time, which is exact enough and fast."""
    total = 0.0
    for start in range(0, plane.size, 4096):
        part = F(0)
        for i in range(start, min(start + 4096, plane.size)):
            part += plane[i]
        total += part
    return total / plane.size


@compiled
def saturate(r: Pixels, g: Pixels, b: Pixels, factor: Number) -> None:
    """Scale around the luminance of each pixel."""
    for i in range(r.size):
        offset = luminance(r[i], g[i], b[i]) * (F(1) - factor)
        r[i], g[i], b[i] = (
            clamped(r[i] * factor + offset),
            clamped(g[i] * factor + offset),
            clamped(b[i] * factor + offset),
        )


@compiled
def turn(r: Pixels, g: Pixels, b: Pixels, sectors: Number) -> None:
    """Turn the hue of HSV by `sectors` sixths of a circle."""
    for i in range(r.size):
        red, green, blue = r[i], g[i], b[i]
        value = max(red, green, blue)
        chroma = value - min(red, green, blue)
        inverse = F(1) / (chroma if chroma > F(0) else F(1))
        if value == red:
            sector = (green - blue) * inverse
        elif value == green:
            sector = F(2) + (blue - red) * inverse
        else:
            sector = F(4) + (red - green) * inverse
        sector += sectors
        r[i] = value - chroma * tent(F(5) + sector)
        g[i] = value - chroma * tent(F(3) + sector)
        b[i] = value - chroma * tent(F(1) + sector)


@compiled
def tent(k: Number) -> Number:
    """Return how far a channel is below the value, as a share of the chroma, at the position k on the circle of six."""
    k -= F(6) * np.floor(k * F(1 / 6))
    return clamped(min(k, F(4) - k))


@compiled
def make_grey(x: Pixels) -> None:
    """Set all three channels to the luminance."""
    for i in range(x.shape[1]):
        value = luminance(x[0, i], x[1, i], x[2, i])
        x[0, i], x[1, i], x[2, i] = value, value, value


@compiled
def finish(plane: Pixels, solarized: bool, mean: Number, std: Number) -> None:
    """Invert values at or above the threshold where the image is solarised, then normalise."""
    threshold = F(128 / 255) if solarized else F(2)
    for i in range(plane.size):
        value = plane[i]
        value = F(1) - value if value >= threshold else value
        plane[i] = (value - mean) / std


@compiled
def blur(image: Pixels, sigma: Number, radius: int, reflect: bool) -> None:
    """Blur [C, h, w] in place with a Gaussian, rows, then columns; edges are repeated or reflected."""
    channels, height, width = image.shape
    taps = gaussian(sigma, radius)
    line = np.zeros(width + taps.size, F)
    lines = np.zeros((height + taps.size, width), F)
    for c in range(channels):
        for y in range(height):
            line[radius : radius + width] = image[c, y]
            for x in range(radius):
                line[x] = image[c, y, inside(x - radius, width, reflect)]
                line[radius + width + x] = image[c, y, inside(width + x, width, reflect)]
            weighted_sum(lines[radius + y], line, taps, 1)
        for y in range(radius):
            lines[y] = lines[radius + inside(y - radius, height, reflect)]
            lines[radius + height + y] = lines[radius + inside(height + y, height, reflect)]
        for y in range(height):
            weighted_sum(image[c, y], lines.reshape(-1)[y * width :], taps, width)


@compiled
def inside(place: int, size: int, reflect: bool) -> int:
    """Return the pixel of a line that stands for a position beyond its ends: the last one, or its mirror image."""
    if reflect and size > 1:
        last = size - 1
        place = last - abs(place % (2 * last) - last)
    return min(max(place, 0), size - 1)


@compiled
def gaussian(sigma: Number, radius: int) -> Pixels:
    """Return weights from -radius to radius that sum to 1, padded with zeros to a multiple of four."""
    taps = np.zeros((2 * radius + 4) // 4 * 4, F)
    total = 0.0
    for k in range(-radius, radius + 1):
        total += np.exp(-0.5 * (k / sigma) ** 2)
    for k in range(-radius, radius + 1):
        taps[radius + k] = np.exp(-0.5 * (k / sigma) ** 2) / total
    return taps


@compiled
def weighted_sum(out: Pixels, values: Pixels, taps: Pixels, step: int) -> None:
    """Set out[i] to the sum over k of taps[k] * values[k step + i], four taps at a time to touch `out` less often."""
    out[:] = 0
    for k in range(0, taps.size, 4):
        a, b, c, d = taps[k], taps[k + 1], taps[k + 2], taps[k + 3]
        first, second = values[k * step :], values[(k + 1) * step :]
        third, fourth = values[(k + 2) * step :], values[(k + 3) * step :]
        for i in range(out.size):
            out[i] += a * first[i] + b * second[i] + c * third[i] + d * fourth[i]
