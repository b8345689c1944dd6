"""Families that cross modules and data: whose data they have, how much of it, and which nets."""

from __future__ import annotations

from itertools import product
from typing import ClassVar

import pytest
import torch

from lhopt.core.errors import ConfigurationError
from lhopt.inner_tasks import crossing, get_family
from lhopt.inner_tasks.composed_nets import Experts, MaxoutMLP, PolynomialNet, TiedMLP
from lhopt.inner_tasks.crossing import ROWS, Crossing, Module
from lhopt.inner_tasks.mixing_nets import ResidualMLP
from lhopt.inner_tasks.nets import MLP
from lhopt.inner_tasks.signals import ChaosMLP
from lhopt.inner_tasks.supervised import SupervisedFamily
from lhopt.inner_tasks.tabular import AdultMLP
from lhopt.inner_tasks.unusual_nets import GatedMLP, InPieces, RadialBasis, SineMLP
from lhopt.policy.families import (
    COMPARE_FAMILIES,
    CONFIRM_FAMILIES,
    CROSSED_FAMILIES,
    FURTHER_FAMILIES,
    TRAIN_FAMILIES,
    VALID_FAMILIES,
)

#: Keys of settings that say which net, or how it is trained; all others say which data.
NET = {"width", "depth", "activation", "norm", "loss", "batch_size", "channels", "patch"}
#: What each kind of net is, by the name that the held-out rule compares.
KINDS: dict[str, type] = {
    "mlp": MLP,
    "residual-mlp": ResidualMLP,
    "gated-mlp": GatedMLP,
    "maxout-mlp": MaxoutMLP,
    "mixture-of-experts": Experts,
    "tied-mlp": TiedMLP,
    "radial-basis": RadialBasis,
    "sine-mlp": SineMLP,
    "polynomial-net": PolynomialNet,
    "rnn": InPieces,
}
MODULES = [value for value in vars(crossing).values() if isinstance(value, Module)]


def _crossing(name: str) -> Crossing:
    family = get_family(name)
    assert isinstance(family, Crossing)
    return family


@pytest.mark.parametrize("name", CROSSED_FAMILIES)
def test_a_crossing_has_its_parents_data(name: str) -> None:
    """All splits but the rows to train on, under settings other than the parent's plain ones."""
    family = _crossing(name)
    assert set(family.data) == set(family.parent.settings) - NET
    wanted = {key: family.settings[key][1][-1] for key in family.data}
    loss = family.parent().settle({**family.parent().plain_config(), **wanted})["loss"]
    mine = family.build({**wanted, "loss": loss})
    theirs = family.parent().build({**wanted, "loss": loss})
    for split in ("inner_valid", "outer_valid", "test"):
        for a, b in zip(mine.arrays(split), theirs.arrays(split), strict=True):
            assert torch.equal(a, b)
    n, full = len(mine.arrays("train")[0]), len(theirs.arrays("train")[0])
    assert n == (min(1600, full) if family.rows else full)
    for a, b in zip(mine.arrays("train"), theirs.arrays("train"), strict=True):
        assert torch.equal(a, b[:n])


@pytest.mark.parametrize("name", [n for n in CROSSED_FAMILIES if _crossing(n).rows])
def test_a_crossing_sees_only_the_rows_that_it_drew(name: str) -> None:
    """And the most that is drawn is there."""
    family = _crossing(name)
    for rows in (600, ROWS[0], ROWS[-1]):
        assert len(family.build({"rows": rows}).arrays("train")[0]) == rows


def test_rows_are_drawn_once() -> None:
    for name in CROSSED_FAMILIES:
        family = _crossing(name)
        assert not (family.rows and "rows" in family.parent.settings)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.architecture)
def test_a_module_is_the_net_that_it_is_called(module: Module) -> None:
    """At the least and the most of everything that is drawn, and at twice the gain: finite."""
    ends = [(values[0], values[-1]) for _, values in module.settings.values()]
    for values in product(*ends):
        config = {**dict(zip(module.settings, values, strict=True)), "init_gain": 2.0}
        net = module.build(16, 3, config)
        assert type(net) is KINDS[module.architecture]
        params = net.init(torch.Generator().manual_seed(0))
        out = net(params, torch.randn(5, 16, generator=torch.Generator().manual_seed(1)))
        assert out.shape == (5, 3)
        assert bool(torch.isfinite(out).all())


def test_every_module_crosses_something() -> None:
    used = {_crossing(name).module.architecture for name in CROSSED_FAMILIES}
    assert used == {module.architecture for module in MODULES} == set(KINDS)


def test_a_row_that_cannot_be_cut_into_equal_pieces_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="12 columns cannot be cut into 8"):
        crossing.PIECES.build(12, 3, {"width": 16, "norm": "none", "init_gain": 1.0})


def test_what_a_parent_needs_its_crossing_needs_too() -> None:
    class Parent(ChaosMLP):
        selection: ClassVar = "best"
        undrawn: ClassVar = {"activation": ("softplus",)}
        data_files = AdultMLP.data_files

    class Child(Crossing):
        name = "child"
        parent: ClassVar[type[SupervisedFamily]] = Parent
        data: ClassVar[tuple[str, ...]] = ("system", "ahead", "noise", "data_seed")
        module: ClassVar[Module] = crossing.PLAIN

    assert Child.data_files
    assert (Child.data_files, Child.undrawn) == (Parent.data_files, Parent.undrawn)
    assert Child().default().selection == "best"


def test_values_have_no_cross_entropy_whatever_the_net() -> None:
    for name in ("tabular-resmlp", "tabular-gated"):
        family = _crossing(name)
        assert family.build({"table": "diabetes"}).config["loss"] == "squared-error"
        assert family.build({"table": "wine"}).config["loss"] == "cross-entropy"


def test_no_two_families_have_the_same_net_on_the_same_data() -> None:
    kinds = [(get_family(n).dataset, get_family(n).architecture) for n in CROSSED_FAMILIES]
    assert len(set(kinds)) == len(kinds)
    others = (*TRAIN_FAMILIES, *COMPARE_FAMILIES, *FURTHER_FAMILIES)
    assert not set(kinds) & {(get_family(n).dataset, get_family(n).architecture) for n in others}


def test_what_judges_a_policy_has_data_that_no_crossing_has() -> None:
    judged = {get_family(n).dataset for n in (*VALID_FAMILIES, *CONFIRM_FAMILIES)}
    assert not judged & {get_family(n).dataset for n in CROSSED_FAMILIES}
