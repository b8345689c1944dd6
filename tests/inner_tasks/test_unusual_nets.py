"""Nets that are no stack of linear layers, against the formulas of their papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lhopt.inner_tasks.nets import Net
from lhopt.inner_tasks.unusual_nets import (
    CrossNet,
    GatedMLP,
    InPieces,
    RadialBasis,
    SineMLP,
    WordScores,
)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _inputs(*shape: int) -> Tensor:
    return torch.randn(shape, generator=_generator(1))


def test_a_gate_multiplies_its_value() -> None:
    net = GatedMLP((5, 4, 3))
    params = net.init(_generator())
    x = _inputs(7, 5)
    both = x @ params["layer0.weight"].T + params["layer0.bias"]
    hidden = both[:, :4] * torch.sigmoid(both[:, 4:])
    expected = hidden @ params["layer1.weight"].T + params["layer1.bias"]
    torch.testing.assert_close(net(params, x), expected)


def test_sines_follow_the_first_layers_frequency() -> None:
    net = SineMLP((2, 4, 1), frequency=8.0)
    params = net.init(_generator())
    x = _inputs(7, 2)
    hidden = torch.sin(x @ params["layer0.weight"].T + params["layer0.bias"])
    expected = hidden @ params["layer1.weight"].T + params["layer1.bias"]
    torch.testing.assert_close(net(params, x), expected)
    slow = SineMLP((2, 4, 1), frequency=4.0).init(_generator())
    torch.testing.assert_close(params["layer0.weight"], 2.0 * slow["layer0.weight"])
    assert float(params["layer0.bias"].min()) >= 0.0
    assert float(params["layer0.bias"].max()) <= 2.0 * np.pi


def test_bumps_fall_with_the_distance_to_their_centre() -> None:
    net = RadialBasis(3, 6, 2)
    params = net.init(_generator())
    params["width.weight"] = _inputs(6)
    x = _inputs(7, 3)
    square = torch.cdist(x, params["centre.weight"]).square() / 3
    bumps = torch.exp(-square * params["width.weight"].exp())
    expected = bumps @ params["head.weight"].T + params["head.bias"]
    torch.testing.assert_close(net(params, x), expected, rtol=1e-4, atol=1e-5)


def test_a_cross_layer_multiplies_the_inputs_once_more() -> None:
    net = CrossNet(4, 2, 3)
    params = net.init(_generator())
    first, x = _inputs(7, 4), _inputs(7, 4)
    for i in range(2):
        x = first * (x @ params[f"cross{i}.weight"].T + params[f"cross{i}.bias"]) + x
    expected = x @ params["head.weight"].T + params["head.bias"]
    torch.testing.assert_close(net(params, first), expected)


def test_word_scores_do_not_mind_the_order() -> None:
    net = WordScores(9, 3)
    params = net.init(_generator())
    words = torch.tensor([[1, 8, 8], [8, 1, 8]])
    out = net(params, words)
    expected = params["score.weight"][[1, 8, 8]].mean(0)
    torch.testing.assert_close(out, expected.expand(2, 3))


def test_pieces_come_in_order() -> None:
    class Last:
        def init(self, generator: torch.Generator) -> dict[str, Tensor]:
            return {}

        def __call__(self, params: object, inputs: Tensor) -> Tensor:
            return inputs[:, -1]

    net: Net = InPieces(Last(), 3)
    assert net({}, torch.arange(12.0).reshape(1, 12)).tolist() == [[8.0, 9.0, 10.0, 11.0]]


@pytest.mark.parametrize(
    "net", [GatedMLP((16, 24, 24, 8)), SineMLP((16, 24, 24, 8)), CrossNet(16, 3, 8)], ids=repr
)
def test_outputs_start_at_about_unit_size(net: Net) -> None:
    """As those of the plain nets do: a gain of 1 is then the same everywhere."""
    out = net(net.init(_generator()), _inputs(4096, 16))
    assert 0.4 < float(out.std()) < 2.5
