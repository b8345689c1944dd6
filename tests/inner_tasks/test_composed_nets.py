"""Nets composed of parts, against the formulas of their papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lhopt.inner_tasks.composed_nets import (
    Experts,
    MaxoutMLP,
    PolynomialNet,
    TiedMLP,
    chebyshev,
)
from lhopt.inner_tasks.nets import Net
from lhopt.inner_tasks.registry import get_family, get_task
from lhopt.inner_tasks.relations import PairMLP
from lhopt.policy.families import COMPARE_FAMILIES, FURTHER_FAMILIES


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _inputs(*shape: int) -> Tensor:
    return torch.randn(shape, generator=_generator(1))


def test_a_maxout_unit_is_the_largest_of_its_maps() -> None:
    net = MaxoutMLP((5, 4, 3), pieces=3)
    params = net.init(_generator())
    params["layer0.bias"] = _inputs(12)
    x = _inputs(7, 5)
    maps = x @ params["layer0.weight"].T + params["layer0.bias"]
    hidden = torch.maximum(torch.maximum(maps[:, :4], maps[:, 4:8]), maps[:, 8:])
    expected = hidden @ params["layer1.weight"].T + params["layer1.bias"]
    torch.testing.assert_close(net(params, x), expected)


def test_experts_count_by_the_gates_softmax() -> None:
    net = Experts(5, 3, 4, 2, "tanh")
    params = net.init(_generator())
    params["down.bias"] = _inputs(2)
    x = _inputs(7, 5)
    share = torch.softmax(x @ params["gate.weight"].T + params["gate.bias"], -1)
    expected = params["down.bias"].expand(7, 2).clone()
    for i in range(3):
        mine = slice(4 * i, 4 * i + 4)
        hidden = torch.tanh(x @ params["up.weight"][mine].T + params["up.bias"][mine])
        expected = expected + share[:, i : i + 1] * (hidden @ params["down.weight"][:, mine].T)
    torch.testing.assert_close(net(params, x), expected)


def test_a_tied_branch_is_gone_through_again() -> None:
    net = TiedMLP(5, 4, 3, 2, norm="layer")
    params = net.init(_generator())
    params["norm.bias"] = _inputs(4)
    x = _inputs(7, 5) @ params["stem.weight"].T + params["stem.bias"]
    for _ in range(3):
        seen = torch.nn.functional.layer_norm(x, (4,), params["norm.weight"], params["norm.bias"])
        up = torch.relu(seen @ params["up.weight"].T + params["up.bias"])
        x = x + up @ params["down.weight"].T + params["down.bias"]
    expected = x @ params["head.weight"].T + params["head.bias"]
    torch.testing.assert_close(net(params, _inputs(7, 5)), expected)
    assert sorted(params) == sorted(TiedMLP(5, 4, 8, 2, norm="layer").init(_generator()))


def test_polynomials_are_chebyshevs() -> None:
    x = torch.linspace(-1.0, 1.0, 9, dtype=torch.float64)
    for degree in (1, 2, 5):
        expected = np.polynomial.chebyshev.chebvander(x.numpy(), degree)[:, 1:]
        np.testing.assert_allclose(chebyshev(x, degree).numpy(), expected, atol=1e-12)


def test_a_polynomial_layer_adds_up_functions_of_single_inputs() -> None:
    net = PolynomialNet((3, 2), degree=4)
    params = net.init(_generator())
    x = _inputs(7, 3)
    alone = [net(params, torch.zeros_like(x).index_copy(1, torch.tensor([i]), x[:, [i]]))
             for i in range(3)]  # fmt: skip
    nothing = net(params, torch.zeros_like(x))
    torch.testing.assert_close(net(params, x), sum(alone) - 2.0 * nothing)


@pytest.mark.parametrize(
    ("net", "size"),
    [
        (MaxoutMLP((16, 256, 8)), 1.0),
        (MaxoutMLP((16, 256, 8), pieces=3), 1.13),  # the mean square of the largest of three
        (Experts(16, 3, 64, 8), 0.75),  # their shares' root mean square
        (Experts(16, 8, 64, 8), 0.49),
        (TiedMLP(16, 256, 1, 8, norm="layer"), 1.41),
        (TiedMLP(16, 256, 5, 8, norm="layer"), 1.41),  # however often
        (PolynomialNet((16, 8), degree=2), 1.0),
        (PolynomialNet((16, 8), degree=4), 1.0),
    ],
    ids=repr,
)
def test_outputs_start_at_about_unit_size(net: Net, size: float) -> None:
    """As those of the plain nets do: a gain of 1 is then the same everywhere."""
    sizes = [
        float(net(net.init(_generator(i)), _inputs(2048, 16)).square().mean()) for i in range(16)
    ]
    assert np.sqrt(np.mean(sizes)) == pytest.approx(size, rel=0.15)


def test_three_names_vectors_lie_side_by_side() -> None:
    net = PairMLP(9, 4, (), 2, columns=3)
    params = net.init(_generator())
    names = torch.tensor([[0, 5, 8], [5, 0, 8]])
    vectors = params["name.weight"][names].reshape(2, 12)
    expected = vectors @ params["layer0.weight"].T + params["layer0.bias"]
    torch.testing.assert_close(net(params, names), expected)


@pytest.mark.parametrize("family", FURTHER_FAMILIES)
def test_further_families_have_the_data_of_those_that_compare(family: str) -> None:
    """Where both draw the same setting: the same test split."""
    dataset = get_family(family).dataset
    (first,) = [f for f in COMPARE_FAMILIES if get_family(f).dataset == dataset]
    mine, theirs = (get_task(f"{name}:data_seed=2").arrays("test") for name in (family, first))
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_further_families_are_other_nets_on_the_data_that_compares() -> None:
    first = {(get_family(f).dataset, get_family(f).architecture) for f in COMPARE_FAMILIES}
    further = [(get_family(f).dataset, get_family(f).architecture) for f in FURTHER_FAMILIES]
    assert {data for data, _ in further} <= {data for data, _ in first}
    assert len(set(further)) == len(further)
    # but for the one that sees fewer rows
    again = [f for f, kind in zip(FURTHER_FAMILIES, further, strict=True) if kind in first]
    assert again == ["pendulum-few"]
