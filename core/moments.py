"""Sums over one tensor's entries, from which every statistic is computed.

The only code here that meets tensors. It uses tensor methods and operators alone, so that
importing it needs no torch, runs on any device, and serves the batched engine (K rows) and the
client (one row) alike. Everything after these sums is numpy (`core/statistics.py`).
"""

from __future__ import annotations

from typing import Any

from .numerics import TINY

MOMENTS: tuple[str, ...] = (
    "numel",  # d, entries measured
    "gg",  # |g|^2, gradient before clipping
    "mm",  # |m|^2, momentum (bias-corrected where the optimizer does so)
    "uu",  # |u|^2, update before the learning rate: (p_before - p_after) / lr
    "pp",  # |p|^2, parameters before the step
    "gm",  # <g, m>
    "gp",  # <g, p>
    "gu",  # <g, u>
    "nn",  # |m - g|^2
    "log_abs_u",  # mean of log(|u| + 1e-8)
    "adam_like",  # mean of [sqrt(v) > eps]; nan where there is no second moment
)
NUMEL = MOMENTS.index("numel")


def tensor_moments(
    gradient: Any, momentum: Any, update: Any, param: Any, adam_like: Any | None
) -> list[Any]:
    """Moments of one tensor over the last dimension, in the order of `MOMENTS[1:]`.

    Args:
        gradient: `(K, d)` tensor g.
        momentum: `(K, d)` tensor m; pass the gradient itself where there is no momentum.
        update: `(K, d)` tensor u, the step taken divided by the learning rate.
        param: `(K, d)` tensor p, before the step.
        adam_like: `(K, d)` boolean tensor sqrt(v) > eps, or `None`.

    Returns:
        Ten `(K,)` tensors on the same device. The caller stacks them and moves them to numpy in
        one transfer, so that a measurement costs one device synchronisation.
    """
    noise = momentum - gradient
    nan = float("nan")
    return [
        (gradient * gradient).sum(-1),
        (momentum * momentum).sum(-1),
        (update * update).sum(-1),
        (param * param).sum(-1),
        (gradient * momentum).sum(-1),
        (gradient * param).sum(-1),
        (gradient * update).sum(-1),
        (noise * noise).sum(-1),
        (abs(update) + TINY).log().mean(-1),
        (gradient[..., 0] * 0.0 + nan)
        if adam_like is None
        else adam_like.to(gradient.dtype).mean(-1),
    ]
