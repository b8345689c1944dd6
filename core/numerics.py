"""Small unitless transforms. Every function takes and returns arrays of one shape, any rank."""

from __future__ import annotations

import numpy as np

from .types import FloatArray

TINY = 1e-8


def log_ratio(new: FloatArray, old: FloatArray, *, bound: float = 5.0) -> FloatArray:
    """Log of new / old, clipped to [-bound, bound] nats; shapes equal, any rank.

    Losses of different tasks differ by orders of magnitude; their log-ratios do not, so one
    policy can read both. A diverged run gives inf or nan: read as `bound`, the worst value.
    Where either value is not positive the logarithm does not exist; the relative difference
    2 (new - old) / (|new| + |old|), which agrees with it to second order, stands in.

    >>> float(log_ratio(np.array(2.0), np.array(1.0)).round(3))
    0.693
    """
    new, old = np.asarray(new, np.float64), np.asarray(old, np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        logarithm = np.log(new) - np.log(old)
        difference = 2.0 * (new - old) / np.maximum(np.abs(new) + np.abs(old), 1e-300)
    ratio = np.where((new > 0) & (old > 0), logarithm, difference)
    return np.asarray(
        np.nan_to_num(ratio, nan=bound, posinf=bound, neginf=-bound).clip(-bound, bound)
    )


def normal_cdf(x: FloatArray) -> FloatArray:
    """Standard normal distribution function, absolute error below 1e-7, numpy alone.

    Numpy has no erf. Source: Abramowitz and Stegun, 1964, equation 26.2.17.

    >>> float(normal_cdf(np.array(0.0)).round(6))
    0.5
    """
    x = np.asarray(x, np.float64)
    magnitude = np.abs(x)
    k = 1.0 / (1.0 + 0.2316419 * magnitude)
    polynomial = k * (
        0.319381530 + k * (-0.356563782 + k * (1.781477937 + k * (-1.821255978 + k * 1.330274429)))
    )
    tail = np.exp(-0.5 * np.minimum(magnitude, 40.0) ** 2) / np.sqrt(2.0 * np.pi) * polynomial
    return np.asarray(np.where(x >= 0, 1.0 - tail, tail))


def logit(p: FloatArray, *, margin: float = 1e-8) -> FloatArray:
    """log(p / (1 - p)) with p held inside [margin, 1 - margin], so the result is finite."""
    p = np.clip(np.asarray(p, np.float64), margin, 1.0 - margin)
    return np.asarray(np.log(p) - np.log1p(-p))


def sigmoid(x: FloatArray) -> FloatArray:
    """Inverse of `logit`, without overflow for large |x|."""
    x = np.asarray(x, np.float64)
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))
