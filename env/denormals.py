"""Arithmetic without denormal numbers, for as long as an inner run computes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Numbers below the smallest normal one are 0, in this thread and those that it starts inside.

    Nets that know their data by heart have gradients whose squares are of that kind, at which a
    processor takes many times as long.
    """
    before = sys.float_info.min / 2.0 == 0.0  # torch sets this and does not tell it
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
