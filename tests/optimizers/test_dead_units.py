"""What dead units leave in `SteerableAdamW`: nothing that a processor is slow at."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lhopt.optimizers import SteerableAdamW, steerable_adamw
from lhopt.optimizers.update import STEERABLE, StepRule

TINY = torch.finfo(torch.float32).tiny


def _trained(
    steps: int, *, size: float = 1.0, rule: StepRule = STEERABLE, shape: tuple[int, int] = (6, 4)
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Weights, state and which rows are dead from the second step on: half of them."""
    weights = torch.nn.Parameter(torch.ones(shape))
    optimizer = SteerableAdamW([weights], lr=0.01, rule=rule)
    dead = torch.arange(shape[0]) < shape[0] // 2
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        gradient = size * torch.randn(shape, generator=generator)
        weights.grad = torch.where(dead[:, None] & (step > 0), 0.0, gradient)
        optimizer.step()
    return weights.detach(), optimizer.state[weights], dead


def _denormal(values: Tensor) -> Tensor:
    """By their bits: a comparison of numbers may flush them."""
    bits = values.view(torch.int32) & 0x7FFFFFFF
    return (bits > 0) & (bits < 0x00800000)


@pytest.mark.parametrize("shape", [(6, 4), (600, 120)], ids=["packed", "alone"])
def test_their_momentum_goes_before_it_is_denormal(shape: tuple[int, int]) -> None:
    for steps in (400, 560, 580):  # 0.85 ** 540 is below the smallest normal number
        _, state, dead = _trained(steps, shape=shape)
        assert not bool(_denormal(state["exp_avg"]).any())
        assert bool((state["exp_avg"][dead] == 0.0).all())
        assert bool((state["exp_avg"][~dead] != 0.0).all())
        # their second moment is no such number for thousands of steps to come
        assert bool((state["exp_avg_sq"][dead] > 1e3 * TINY).all())


def test_their_second_moment_goes_too() -> None:
    _, state, dead = _trained(1400, size=1e-14)  # 1e-30 * 0.99 ** 1400 is 8e-37
    assert bool((state["exp_avg_sq"][dead] == 0.0).all())
    assert bool((state["exp_avg_sq"][~dead] > 0.0).all())


@pytest.mark.parametrize("size", [1.0, 1e-8])
def test_no_weight_is_moved_otherwise_by_it(size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    swept, _, _ = _trained(300, size=size)
    monkeypatch.setattr(steerable_adamw, "_SWEEP", 10**9)
    kept, state, dead = _trained(300, size=size)
    assert bool((state["exp_avg"][dead] != 0.0).all())  # or there was nothing to sweep
    assert torch.equal(swept, kept)


def test_gradients_of_any_size_are_alike_where_eps_is_relative() -> None:
    rule = replace(STEERABLE, relative_eps=True)
    plain, _, _ = _trained(64, rule=rule)
    for size in (1e-18, 1e15):
        scaled, _, _ = _trained(64, size=size, rule=rule)
        torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=1e-5)
