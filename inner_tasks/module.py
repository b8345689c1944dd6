"""An inner task as a `torch.nn.Module`, for whatever wants modules instead of a dict of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..core.errors import ConfigurationError
from .base import Batch, InnerTask


class TaskModule(nn.Module):
    """One run of an inner task; `module(batch)` is its loss.

    Where the task calls `F.linear` or `F.conv2d` with a parameter as the weight, the call goes
    through an `nn.Linear` or `nn.Conv2d` that holds it, so that hooks on layers fire (K-FAC lives
    on them). The other tensors are plain parameters.

    Args:
        task: What is trained.
        params: One run's initial parameters, e.g. `initial_params(task, seed)`; copied.

    Attributes:
        task: As given.
        weights: The parameters under the task's own names.

    Raises:
        ConfigurationError: The task gives `F.conv2d` a stride or what follows it by position.
    """

    def __init__(self, task: InnerTask, params: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.task = task
        self.weights = {name: nn.Parameter(p.detach().clone()) for name, p in params.items()}
        seen = _Seen()
        rows = tuple(array[:2] for array in task.arrays("train"))
        with torch.no_grad(), seen:
            task.loss(self.weights, rows)
        # by name, not by id: a copy of the module has other tensors
        self._layers: dict[str, nn.Module] = {}
        for name, weight in self.weights.items():
            # a layer holds its weight by that name; another's would stay without one
            if id(weight) in seen.layers and name.endswith(".weight"):
                self._layers[name], bias = seen.layers[id(weight)]
                self._layers[name].register_parameter("bias", bias)
        # in the task's order: AGD, for one, reads which bias follows which matrix
        for name, weight in self.weights.items():
            layer_name, _, leaf = name.rpartition(".")
            holder: nn.Module = self
            if layer_name:
                child = _plain(layer_name)
                if child not in self._modules:
                    self.add_module(child, self._layer(layer_name))
                holder = self.get_submodule(child)
            setattr(holder, leaf, weight)

    def forward(self, batch: Batch) -> Tensor:
        """Mean loss of a batch of `task.arrays` rows."""
        with _Routed({id(self.weights[name]): layer for name, layer in self._layers.items()}):
            return self.task.loss(self.weights, batch)

    def _layer(self, name: str) -> nn.Module:
        return self._layers.get(f"{name}.weight", nn.Module())


def _plain(name: str) -> str:
    return name.replace(".", "_")


class _Seen(TorchFunctionMode):
    """Notes which parameters are the weight of a linear layer or a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: dict[int, tuple[nn.Linear | nn.Conv2d, nn.Parameter | None]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (F.linear, F.conv2d):
            _, weight, bias = _operands(args, kwargs)
            if len(args) > 3:
                raise ConfigurationError(
                    f"The task calls F.conv2d with {len(args)} positional arguments; TaskModule "
                    "reads those after the bias by name. Pass stride=, padding=, dilation= and "
                    "groups= so."
                )
            named = isinstance(weight, nn.Parameter) and isinstance(bias, nn.Parameter | None)
            if named and id(weight) not in self.layers:
                self.layers[id(weight)] = _empty_layer(func, weight, kwargs), bias
        return func(*args, **kwargs)


def _operands(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Input, weight and bias of such a call, by position or by name."""
    given = (*args[:3], *(None,) * (3 - len(args)))
    inputs, weight, bias = (
        kwargs.get(name, value)
        for name, value in zip(("input", "weight", "bias"), given, strict=True)
    )
    return inputs, weight, bias


def _empty_layer(
    func: Callable[..., Any], weight: Tensor, kwargs: Mapping[str, Any]
) -> nn.Linear | nn.Conv2d:
    if func is F.linear:
        return nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    shape = {k: v for k, v in kwargs.items() if k in ("stride", "padding", "dilation", "groups")}
    inputs = weight.shape[1] * shape.get("groups", 1)
    kernel = (weight.shape[2], weight.shape[3])
    return nn.Conv2d(inputs, weight.shape[0], kernel, **shape, device="meta")


class _Routed(TorchFunctionMode):
    """Sends those calls through the layers; torch switches the mode off inside."""

    def __init__(self, layers: Mapping[int, nn.Module]) -> None:
        super().__init__()
        self._layers = layers

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (F.linear, F.conv2d):
            inputs, weight, bias = _operands(args, kwargs)
            layer = self._layers.get(id(weight))
            # a weight that is called with two biases has one layer, which knows the first
            if layer is not None and layer.bias is bias:
                return layer(inputs)
        return func(*args, **kwargs)
