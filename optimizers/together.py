"""Several optimizers on different parameters, as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core.errors import ConfigurationError
from .saving import loading, saving


class Together(Optimizer):
    """One face for optimizers that share the parameters out between them.

    `torch.optim.Muon` takes matrices alone, so a model needs another optimizer for the rest, and
    whatever listens to "the optimizer" (a scheduler, a Tuner, a checkpoint) needs one object.
    Parameter groups and state are the children's own; a new group goes to the child that its keys
    fit. Load a saved state into Together; a child loaded alone is seen as well.

    Args:
        children: At least one; no parameter may stand in two.

    Raises:
        ConfigurationError: No child, or a parameter in two of them.
    """

    def __init__(self, *children: Optimizer) -> None:
        params = [p for child in children for g in child.param_groups for p in g["params"]]
        if not params or len({id(p) for p in params}) != len(params):
            raise ConfigurationError(
                f"Together got {len(children)} optimizers with {len(params)} parameters; give it "
                "at least one optimizer, and each parameter to one of them only."
            )
        self.children = children
        super().__init__(params, {})
        self._share()
        self._listen()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "children": self.children}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._listen()  # copies of optimizers come without hooks

    def _listen(self) -> None:
        # torch puts new groups in place of the old ones when a state is loaded
        for child in self.children:
            child.register_load_state_dict_post_hook(lambda _: self._share())

    def _share(self) -> None:
        self.param_groups = [group for child in self.children for group in child.param_groups]
        self.state.clear()
        for child in self.children:
            self.state.update(child.state)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Any:  # type: ignore[override]
        """One step of every child; the closure is called once, first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for child in self.children:
            child.step()
            self.state.update(child.state)
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the one child whose groups have its keys ("betas" is AdamW's, say).

        Raises:
            ConfigurationError: Several children have such groups, or none has.
        """
        if not self.param_groups:
            super().add_param_group(param_group)  # torch's own __init__, before the children share
            return
        keys = set(param_group)
        fitting = [child for child in self.children if keys <= set(child.param_groups[0])]
        if len(fitting) != 1:
            names = ", ".join(type(child).__name__ for child in fitting) or "none of its children"
            raise ConfigurationError(
                f"A group with the keys {sorted(keys)} fits {names}; name a key that exactly one "
                "of them has, so that Together can tell whose it is."
            )
        fitting[0].add_param_group(param_group)
        self._share()

    @saving
    def state_dict(self) -> dict[str, Any]:
        """The children's, in order."""
        return {"children": [child.state_dict() for child in self.children]}

    @loading
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the children's.

        Raises:
            ConfigurationError: They are of another number of children.
        """
        states = state_dict.get("children", [])
        if len(states) != len(self.children):
            raise ConfigurationError(
                f"The state is of {len(states)} optimizers; this Together has "
                f"{len(self.children)}. Build it as it was when the state was saved."
            )
        for child, state in zip(self.children, states, strict=True):
            child.load_state_dict(state)
        self._share()


def muon_with_adamw(
    params: Iterable[nn.Parameter], lr: float = 1e-3, *, weight_decay: float = 0.1, **muon: Any
) -> Optimizer:
    """`torch.optim.Muon` for matrices, AdamW for everything else, at one learning rate.

    Args:
        params: A model's parameters. Convolutions go to AdamW: torch's Muon takes 2-D alone.
        lr: Of both; Muon's steps are scaled to the size of AdamW's ("match_rms_adamw").
        weight_decay: Of both.
        **muon: Passed to `torch.optim.Muon`.

    Raises:
        ConfigurationError: A model itself, no parameter, or a rate below 0.
    """
    if isinstance(params, nn.Module):
        raise ConfigurationError(
            f"params is the model {type(params).__name__}; pass model.parameters()."
        )
    if not lr >= 0.0:
        raise ConfigurationError(f"lr is {lr}; it must be 0 or more.")
    everything = list(params)
    matrices = [p for p in everything if p.ndim == 2]
    rest = [p for p in everything if p.ndim != 2]
    muon.setdefault("adjust_lr_fn", "match_rms_adamw")
    children: list[Optimizer] = []
    if matrices:
        children.append(torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, **muon))
    if rest:
        children.append(torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay))
    return Together(*children)
