"""Turning a plain model into one whose layers have a best response, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from ...core.errors import ConfigurationError
from .hyperspace import HyperSpace
from .layers import Response, ResponseConv2d, ResponseDropout, ResponseLayer, ResponseLinear
from .lstm import ResponseLSTM

M = TypeVar("M", bound=nn.Module)


def dropout_names(
    model: nn.Module, dropout: str | Mapping[str, str]
) -> dict[str, tuple[nn.Module, str]]:
    """Modules that drop, by path, with the hyperparameter that is their rate.

    Args:
        model: A plain model.
        dropout: One name for all of them, or names by path; paths that are not in it stay fixed.

    Raises:
        ConfigurationError: A path is none of a module that drops.
    """
    found = {
        path: module
        for path, module in model.named_modules()
        if type(module) is nn.Dropout
        or (
            type(module) is nn.LSTM
            and module.num_layers > 1
            and module.dropout > 0
            and not _frozen(module)
        )
    }
    if isinstance(dropout, str):
        return {path: (module, dropout) for path, module in found.items()}
    for path in dropout:
        if path not in found:
            raise ConfigurationError(
                f"dropout names the module {path!r}; this model drops in: "
                f"{', '.join(map(repr, found)) or 'no module'}. An nn.LSTM counts where it has "
                "several layers, a dropout > 0, and no frozen matrix."
            )
    return {path: (found[path], name) for path, name in dropout.items()}


def convert(model: M, space: HyperSpace, dropout: str | Mapping[str, str] = "dropout") -> M:
    """Give the layers of a model a best response to the hyperparameters of a space.

    In place: every `nn.Linear`, `nn.Conv2d` and `nn.LSTM` becomes a subclass of itself that holds
    the same parameters under the same names, and more beside them; `nn.Dropout` takes its rate
    from the space. Subclasses of those, and other layers, stay as they are: their weights are
    trained but do not respond. So do layers with frozen weights; of a frozen bias there is no
    response. Until something is tuned, outputs are what they were.

    Args:
        model: A plain model.
        space: The hyperparameters; all registered by now.
        dropout: The name whose value is the rate of every `nn.Dropout`, and of the dropout
            between the layers of an `nn.LSTM`; or names by module path, other modules keeping the
            rate they have. `{}` tunes none of them.

    Returns:
        The same model.

    Raises:
        ConfigurationError: Nothing can be converted, or was converted before; a dropout's name is
            not registered, or is and nothing drops, or its range leaves [0, 1).
    """
    rates = dropout_names(model, dropout)
    for path, (_, name) in rates.items():
        if name not in space.names:
            raise ConfigurationError(
                f"{path!r} drops, and {name!r}, its rate, is not among the hyperparameters "
                f"{', '.join(space.names)}. Register it, or pass dropout={{path: name}} with "
                "those that you tune; {} leaves all rates as they are."
            )
        entry = space.hyperparameters[space.index(name)]
        if not 0.0 <= entry.low < entry.high < 1.0:
            raise ConfigurationError(
                f"{name!r} is a dropout rate in [{entry.low}, {entry.high}]; it must stay in "
                "[0, 1). Register it with low=0.0 and high=0.95."
            )
    if any(isinstance(module, Response) for module in model.modules()):
        raise ConfigurationError("The model was converted before; convert() takes a plain one.")
    if isinstance(dropout, str) and not rates and dropout in space.names:
        raise ConfigurationError(
            f"The model has no nn.Dropout that could use {dropout!r}. Add one, or pass "
            "dropout={} if a loss or an augmentation reads that value."
        )
    plain = (nn.Linear, nn.Conv2d, nn.LSTM)
    layers = [m for m in model.modules() if type(m) in plain and not _frozen(m)]
    if not layers:
        raise ConfigurationError(
            f"{type(model).__name__} has no nn.Linear, nn.Conv2d or nn.LSTM to convert; "
            "subclasses of them, and frozen ones, are left as they are."
        )
    space.close()
    names = {id(module): name for module, name in rates.values()}
    for module in layers:
        # the object stays itself, so that hooks, shared modules and optimizers go on
        if isinstance(module, nn.Linear):
            module.__class__ = ResponseLinear
            assert isinstance(module, ResponseLinear)
            module.attach(space)
        elif isinstance(module, nn.Conv2d):
            module.__class__ = ResponseConv2d
            assert isinstance(module, ResponseConv2d)
            module.attach(space)
        else:
            module.__class__ = ResponseLSTM
            assert isinstance(module, ResponseLSTM)
            module.attach(space, names.get(id(module)))
    for module, name in rates.values():
        if isinstance(module, nn.Dropout):
            module.__class__ = ResponseDropout
            assert isinstance(module, ResponseDropout)
            module.attach(space, name)
    return model


def _frozen(module: nn.Module) -> bool:
    """Whether a matrix of a layer takes no gradient."""
    return any(not p.requires_grad for p in module.parameters(recurse=False) if p.ndim > 1)


def response_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that conversion added: Q, V and c of every layer."""
    found = [m for m in model.modules() if isinstance(m, Response)]
    return [p for module in found for p in module.parameters()]


def plain_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that the model had before conversion."""
    added = {id(p) for p in response_parameters(model)}
    return [p for p in model.parameters() if id(p) not in added]


@torch.no_grad()
def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state of the plain model, at the current hyperparameters; for `load_state_dict` there.

    With the uncentred STN the current weights are W plus their response, which is added here.
    """
    modules = list(model.named_modules(remove_duplicate=False))  # a shared one under each path
    added = tuple(f"{path}." for path, module in modules if isinstance(module, Response))
    state = {
        name: value.detach().clone()
        for name, value in model.state_dict().items()
        if not name.startswith(added)
    }
    for path, module in modules:
        net_input = module.space.draw.net_input if isinstance(module, ResponseLayer) else None
        if not isinstance(module, ResponseLayer) or net_input is None:
            continue
        for weight, bias, response in module.responses():
            change, shift = response.change(net_input[0])
            prefix = f"{path}." if path else ""
            state[prefix + weight] += change
            if shift is not None:
                state[prefix + bias] += shift
    return state
