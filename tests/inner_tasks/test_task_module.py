from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lhopt.core.errors import ConfigurationError
from lhopt.inner_tasks.engine import initial_params
from lhopt.inner_tasks.module import TaskModule
from lhopt.inner_tasks.registry import get_task

torch.set_num_threads(1)

#: Task, and how many layers of each kind K-FAC would find.
TASKS = {
    "digits-mlp": (2, 0),
    "digits-cnn": (1, 2),
    "digits-autoencoder": (4, 0),
    "digits-vit": (None, 0),
    "char-gru": (None, 0),
}


@pytest.mark.parametrize("name", TASKS)
def test_loss_and_gradients_are_the_tasks_own(name: str) -> None:
    task = get_task(name)
    params = initial_params(task, 0)
    module = TaskModule(task, params)
    batch = tuple(array[:8] for array in task.arrays("train"))
    loss = module(batch)
    loss.backward()
    plain = {k: p.clone().requires_grad_() for k, p in params.items()}
    expected = task.loss(plain, batch)
    expected.backward()  # type: ignore[no-untyped-call]
    assert torch.equal(loss, expected)
    assert set(module.weights) == set(params)
    for key, p in plain.items():
        found = module.weights[key].grad
        assert found is not None
        assert p.grad is not None
        assert torch.equal(found, p.grad)
    assert {id(p) for p in module.parameters()} == {id(p) for p in module.weights.values()}
    kinds = [type(m) for m in module.modules()]
    linear, conv = TASKS[name]
    assert linear is None or kinds.count(nn.Linear) == linear
    assert kinds.count(nn.Conv2d) == conv


def test_hooks_on_layers_fire() -> None:
    module = TaskModule(get_task("digits-mlp"), initial_params(get_task("digits-mlp"), 0))
    seen: list[tuple[int, ...]] = []
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape)))
    module(tuple(array[:5] for array in module.task.arrays("train")))
    assert seen == [(5, 32), (5, 10)]


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("name", ["digits-mlp", "digits-cnn"])
def test_hooks_on_the_layers_of_a_copy_fire(name: str, how: str) -> None:
    module = TaskModule(get_task(name), initial_params(get_task(name), 0))
    other = copy.deepcopy(module) if how == "deepcopy" else pickle.loads(pickle.dumps(module))
    layers = [m for m in other.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    seen: list[nn.Module] = []
    for layer in layers:
        layer.register_forward_hook(lambda m, _i, _out: seen.append(m))
    batch = tuple(array[:5] for array in module.task.arrays("train"))
    loss = other(batch)
    assert torch.equal(loss, module(batch))
    assert len(seen) == len(layers) == sum(n or 0 for n in TASKS[name])
    assert {id(m) for m in seen} == {id(m) for m in layers}
    loss.backward()
    assert all(p.grad is not None for p in other.parameters())


def test_a_stride_by_position_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(params: dict[str, Tensor], _batch: Any) -> Tensor:
        return F.conv2d(torch.ones(1, 1, 4, 4), params["w"], None, 2).mean()

    task = get_task("digits-cnn")
    monkeypatch.setattr(task, "loss", loss)
    with pytest.raises(ConfigurationError, match=r"with 4 positional arguments.*Pass stride="):
        TaskModule(task, {"w": torch.ones(1, 1, 2, 2)})


@pytest.mark.parametrize("w", ["w", "layer.weight"])
def test_a_weight_with_two_biases_and_operands_by_name(
    monkeypatch: pytest.MonkeyPatch, w: str
) -> None:
    def loss(params: dict[str, Tensor], _batch: Any) -> Tensor:
        x = torch.ones(2, 3)
        first = F.linear(x, params[w], params["a"])
        again = F.linear(x, bias=params["b"], weight=params[w])
        return (first + 10.0 * again).sum()

    task = get_task("digits-mlp")
    monkeypatch.setattr(task, "loss", loss)
    params = {w: torch.ones(1, 3), "a": torch.tensor([5.0]), "b": torch.tensor([-2.0])}
    module = TaskModule(task, params)
    assert module(()).item() == loss(params, ()).item() == 2 * (8.0 + 10.0)


def test_parameters_come_in_the_tasks_order() -> None:
    task = get_task("digits-vit")
    module = TaskModule(task, initial_params(task, 0))
    nested = [name for name in module.weights if "." in name]
    found = {id(p): i for i, p in enumerate(module.parameters())}
    order = [found[id(module.weights[name])] for name in nested]
    assert order == sorted(order)
