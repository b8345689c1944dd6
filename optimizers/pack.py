"""Small parameters side by side: one block instead of many, for the price of one update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .blocks import Matrix, matrices
from .moments import held_in
from .numbers import placed
from .update import Hyperparameters, RunState

#: Parameters of up to this many entries are packed: beyond it the arithmetic outweighs the calls.
PACKED = 1 << 16

State = dict[str, Any]


class Pack:
    """Parameters of one group, dtype, device and history, whose state lies in one block.

    Every parameter's entries of the optimizer's state are views into the block, so that a
    checkpoint looks as if each had its own.

    Args:
        params: Which; each no larger than `PACKED`.
        states: Their states, all empty or all with equal steps and products of betas.
        average: Whether averaged weights are kept.

    Attributes:
        run: Step and products of betas, shared by all.
        hyper: Values of the last step; `None` before the first.
    """

    def __init__(self, params: Sequence[Tensor], states: Sequence[State], average: bool) -> None:
        self.params = tuple(params)
        self.hyper: Hyperparameters | None = None
        self.matrices: tuple[Matrix, ...] = matrices([tuple(p.shape) for p in params])
        self._sizes = [p.numel() for p in params]
        self._dtype = held_in(params[0].dtype)
        keys = ("exp_avg", "exp_avg_sq", "average") if average else ("exp_avg", "exp_avg_sq")
        self.blocks: dict[str, Tensor] = {}
        for key in keys:
            like = [p if key == "average" else torch.zeros_like(p) for p in params]
            held = [s.get(key, v) for s, v in zip(states, like, strict=True)]
            self.blocks[key] = self._flat(held).to(self._dtype)
        self.run = RunState()
        if states[0]:
            self.run.step = states[0]["step"]
            self.run.product1, self.run.product2 = (
                placed(states[0][key], params[0].device) for key in ("product1", "product2")
            )
        views = {key: self._split(block) for key, block in self.blocks.items()}
        self._moments = views["exp_avg"]
        for i, state in enumerate(states):
            state.update({key: view[i] for key, view in views.items()})

    def holds(self, states: Sequence[State]) -> bool:
        """Whether the parameters' state is still the one inside."""
        return all(s.get("exp_avg") is m for s, m in zip(states, self._moments, strict=True))

    def leave(self, state: State) -> None:
        """Give a parameter that leaves its state in memory of its own, so that ours is freed."""
        state.update({key: state[key].clone() for key in self.blocks if key in state})

    def values(self) -> Tensor:
        """A copy of the parameters in the state's dtype, `(1, d)`."""
        return self._flat([p.detach() for p in self.params]).to(self._dtype)

    def gradients(self) -> Tensor:
        """The gradients in the state's dtype, `(1, d)`."""
        return self._flat([p.grad.to(self._dtype) for p in self.params if p.grad is not None])

    def write(self, values: Tensor) -> None:
        """Put `(1, d)` back into the parameters."""
        torch._foreach_copy_([p.detach() for p in self.params], self._split(values))

    @staticmethod
    def _flat(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([t.reshape(-1) for t in tensors]).view(1, -1)

    def _split(self, block: Tensor) -> list[Tensor]:
        parts = torch.split(block.view(-1), self._sizes)
        return [part.view(p.shape) for part, p in zip(parts, self.params, strict=True)]


def packs(params: Sequence[Tensor], states: Sequence[State], average: bool) -> Iterator[Pack]:
    """As few packs as the histories of those parameters allow."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for i, (p, state) in enumerate(zip(params, states, strict=True)):
        history = (
            (state["step"], float(state["product1"]), float(state["product2"])) if state else ()
        )
        alike.setdefault((p.dtype, p.device, history), []).append(i)
    for rows in alike.values():
        yield Pack([params[i] for i in rows], [states[i] for i in rows], average)
