from __future__ import annotations

import numpy as np
import pytest

from lhopt.core.averages import LAST, LONG, MIXES, OWN, SHORT, UPDATES, pick, share, stride
from lhopt.optimizers.update import STEERABLE


def averaged(values: list[float], horizon: float) -> float:
    out = 0.0
    for count, value in enumerate(values, 1):
        out += share(horizon, count) * (value - out)
    return out


def test_at_horizon_one_it_is_the_mean_and_at_zero_the_last() -> None:
    values = [3.0, -1.0, 4.0, 1.0, 5.0]
    assert averaged(values, 1.0) == pytest.approx(np.mean(values))
    assert averaged(values, 0.0) == 5.0


def test_a_longer_horizon_reaches_further_back() -> None:
    line = list(np.linspace(0.0, 1.0, 400))
    lags = [1.0 - averaged(line, horizon) for horizon in (SHORT, LONG)]
    assert lags == pytest.approx([SHORT / (1 + SHORT), LONG / (1 + LONG)], rel=0.02)


@pytest.mark.parametrize("steps", [1, 150, 512, 513, 8000])
def test_a_run_takes_in_hundreds_of_weights_and_no_more(steps: int) -> None:
    taken = steps // stride(steps)
    assert min(steps, UPDATES // 2) <= taken <= UPDATES


def test_mixes_are_shares_of_a_whole_and_the_optimizers_own_is_among_them() -> None:
    assert all(sum(mix) == pytest.approx(1.0) and min(mix) >= 0.0 for mix in MIXES)
    assert len(set(MIXES)) == len(MIXES)
    assert MIXES[OWN] == (0.0, 1.0, 0.0)
    assert MIXES[LAST] == (1.0, 0.0, 0.0)
    assert STEERABLE.average == SHORT


@pytest.mark.parametrize("untold", [OWN, LAST])
def test_each_run_keeps_its_lowest_loss_and_the_untold_mix_without_one(untold: int) -> None:
    losses = np.ones((len(MIXES), 6))
    losses[1, 0], losses[-1, 1] = 0.5, 0.5
    losses[:, 3] = np.nan
    losses[:, 4] = np.inf
    losses[untold, 5] = np.nan  # and others are finite
    first = min(i for i in range(len(MIXES)) if i != untold)
    expected = [1, len(MIXES) - 1, untold, untold, untold, first]
    assert pick(losses, untold).tolist() == expected
