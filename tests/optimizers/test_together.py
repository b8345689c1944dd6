from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lhopt.core.errors import ConfigurationError
from lhopt.optimizers import KFAC, InProcess, LocalSGD
from lhopt.optimizers.local_sgd import ConstantInterval
from lhopt.optimizers.together import Together, muon_with_adamw

torch.set_num_threads(1)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 6), nn.Linear(6, 2))


def drive(model: nn.Module, optimizers: list[torch.optim.Optimizer], steps: int = 10) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(5, 1, 4, 4, generator=generator)
        model.zero_grad()
        model(x).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach() for p in model.parameters()]


def test_it_equals_its_children_stepped_one_after_the_other() -> None:
    one, two = net(), net()
    matrices = [p for p in one.parameters() if p.ndim == 2]
    rest = [p for p in one.parameters() if p.ndim != 2]
    apart: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=1e-2, weight_decay=0.1),
    ]
    drive(one, apart)
    drive(two, [muon_with_adamw(two.parameters(), lr=1e-2)])
    assert all(torch.equal(a, b) for a, b in zip(values(one), values(two), strict=True))


def test_a_rate_scheduler_moves_every_child() -> None:
    optimizer = muon_with_adamw(net().parameters(), lr=1e-2)
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    assert isinstance(optimizer, Together)
    assert [g["lr"] for child in optimizer.children for g in child.param_groups] == [0.5, 0.5]


def test_a_model_of_matrices_alone_needs_no_adamw() -> None:
    optimizer = muon_with_adamw(nn.Linear(3, 3, bias=False).parameters())
    assert isinstance(optimizer, Together)
    assert [type(child) for child in optimizer.children] == [torch.optim.Muon]


def test_state_of_other_children_is_refused() -> None:
    model = net()
    saved = copy.deepcopy(Together(torch.optim.SGD(model.parameters(), lr=0.1)).state_dict())
    with pytest.raises(ConfigurationError, match="1 optimizers; this Together has 2"):
        muon_with_adamw(model.parameters()).load_state_dict(saved)


def test_a_group_goes_to_the_child_that_its_keys_fit() -> None:
    model = net()
    optimizer = muon_with_adamw(model.parameters())
    new = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [new], "betas": (0.8, 0.9)})
    assert isinstance(optimizer, Together)
    assert optimizer.children[1].param_groups[-1]["params"] == [new]
    assert optimizer.param_groups[-1]["lr"] == 1e-3
    for key, told in (("gain", "none of its children"), ("lr", "fits Muon, AdamW")):
        with pytest.raises(ConfigurationError, match=told):
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], key: 1.0})
    assert len(optimizer.param_groups) == 3


@pytest.mark.parametrize("copied", [False, True])
def test_a_state_loaded_into_a_child_is_seen(copied: bool) -> None:
    model = net()
    optimizer = muon_with_adamw(model.parameters(), lr=1e-2)
    drive(model, [optimizer], 2)
    if copied:
        model, optimizer = copy.deepcopy((model, optimizer))
    assert isinstance(optimizer, Together)
    child = optimizer.children[1]
    child.load_state_dict(copy.deepcopy(child.state_dict()))  # torch makes groups and state anew
    assert optimizer.param_groups[1] is child.param_groups[0]
    assert all(optimizer.state[p] is state for p, state in child.state.items())
    optimizer.param_groups[1]["lr"] = 0.25
    assert child.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_goes_on_alike(how: str) -> None:
    model = net()
    optimizer = muon_with_adamw(model.parameters(), lr=1e-2)
    drive(model, [optimizer], 3)
    both = model, optimizer
    copied, twin = copy.deepcopy(both) if how == "deepcopy" else pickle.loads(pickle.dumps(both))
    for net_of, stepped in ((model, optimizer), (copied, twin)):
        stepped.param_groups[0]["lr"] = 0.02  # of the child, not of a copy of its groups
        drive(net_of, [stepped], 3)
    assert all(torch.equal(a, b) for a, b in zip(values(model), values(copied), strict=True))
    assert isinstance(twin, Together)
    assert twin.children[0].param_groups[0]["lr"] == 0.02


def test_kfac_around_it_shares_its_groups_after_a_load_too() -> None:
    model = net()
    optimizer = KFAC(model, muon_with_adamw(model.parameters()), kl_clip=None)
    drive(model, [optimizer], 2)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 0.25
    assert isinstance(optimizer.inner, Together)
    assert optimizer.inner.children[0].param_groups[0]["lr"] == 0.25


def _facades() -> dict[str, torch.optim.Optimizer]:
    model, stacked = net(), [nn.Parameter(torch.ones(2, 3))]
    return {
        "together": muon_with_adamw(net().parameters()),
        "kfac": KFAC(model, torch.optim.SGD(model.parameters(), lr=0.1)),
        "local sgd": LocalSGD(torch.optim.SGD(stacked, 0.1), ConstantInterval(2), InProcess(2)),
        "torch": torch.optim.SGD(net().parameters(), lr=0.1),
    }


@pytest.mark.parametrize("kind", ["together", "kfac", "local sgd", "torch"])
def test_hooks_on_saving_and_loading_run_as_torchs_do(kind: str) -> None:
    optimizer = _facades()[kind]
    heard: list[str] = []

    def listen(word: str) -> Any:
        return lambda *_: heard.append(word)

    optimizer.register_state_dict_pre_hook(listen("before saving"))
    optimizer.register_state_dict_post_hook(listen("after saving"))
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "note": 1})
    optimizer.register_load_state_dict_pre_hook(listen("before loading"))
    optimizer.register_load_state_dict_pre_hook(
        lambda _, state: {key: state[key] for key in state if key != "note"}
    )
    optimizer.register_load_state_dict_post_hook(listen("after loading"))
    saved = optimizer.state_dict()
    assert saved["note"] == 1
    optimizer.load_state_dict(saved)
    assert saved["note"] == 1
    assert heard == ["before saving", "after saving", "before loading", "after loading"]


@pytest.mark.parametrize("lr", [-1.0, float("nan")])
def test_a_bad_rate_is_refused(lr: float) -> None:
    with pytest.raises(ConfigurationError, match="lr is"):
        muon_with_adamw(net().parameters(), lr=lr)


@pytest.mark.parametrize("model", [nn.Linear(2, 2), net()])
def test_a_model_in_place_of_its_parameters_is_refused(model: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"pass model\.parameters\(\)"):
        muon_with_adamw(model)


def test_a_parameter_with_two_masters_is_refused() -> None:
    p = [nn.Parameter(torch.ones(2))]
    with pytest.raises(ConfigurationError, match="one of them only"):
        Together(torch.optim.SGD(p), torch.optim.SGD(p))
