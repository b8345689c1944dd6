"""`LAMB`: Adam whose layers move by a share of their own norm, for large batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ..core.errors import ConfigurationError
from .layerwise import (
    check,
    gradients,
    norms,
    not_negative,
    number,
    positive,
    refuse_complex,
    with_gradient,
    with_trust,
)
from .moments import held_in, reload

_MOMENTS = ("exp_avg", "exp_avg_sq")


class LAMB(torch.optim.Optimizer):
    r"""Adam whose layers move by a share of their own norm.

    Per parameter w with gradient g:

        m = beta1 m + (1 - beta1) g;    v = beta2 v + (1 - beta2) g**2
        r = (m / c1) / (sqrt(v / c2) + eps) + weight_decay w
        w = w - lr phi(||w||) / ||r|| r

    so that every step of a matrix has the norm lr phi(||w||), the first one too: bias correction
    and weight decay stand inside the ratio. c = 1 - (product of the betas really used), which stays
    right while betas move. phi(z) is min(max(z, low), high), or z itself. The ratio phi / ||r|| is
    1 where ||w|| or ||r|| is 0, and for biases and scales of norms (fewer than two dimensions)
    unless `adapt_vectors`; they then take steps of Adam at the same lr. Weight decay acts on every
    parameter of its group; put biases into a group of their own to spare them.

    Every value of a parameter group may be changed between steps. Gradients are never modified.
    Moments of half-precision parameters are float32, and so is r.

    Args:
        params: Parameters or groups of them; each group may have its own values.
        lr: The relative change of a layer per step; 1e-4 to 3e-2. 0 is allowed, for warm-ups.
        betas: Decays of both moments; 0.8 to 0.95 and 0.9 to 0.999.
        eps: Added to the denominator; the paper has 1e-6.
        weight_decay: Inside the ratio; the paper has 0.01.
        phi: `(low, high)` of the clamp on ||w||; `None` for the identity.
        adapt_vectors: Whether parameters of fewer than two dimensions get a ratio too.

    Raises:
        ConfigurationError: A value is out of its range, a parameter is complex, or a gradient is
            sparse.

    Source: You et al., 2020, arXiv:1904.00962, algorithm 2.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        phi: tuple[float, float] | None = None,
        adapt_vectors: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "phi": phi,
                "adapt_vectors": adapt_vectors,
            },
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; values that the group does not name are the optimizer's defaults."""
        group = {**self.defaults, **param_group}
        for key in ("lr", "weight_decay"):
            check(group, key, not_negative, "a finite number of at least 0")
        check(group, "eps", positive, "greater than 0, or an entry without gradient is 0 / 0")
        betas, phi = group["betas"], group["phi"]
        if not _two(betas) or not all(0.0 <= number(beta) < 1.0 for beta in betas):
            raise ConfigurationError(
                f"betas is {betas!r}; two numbers in [0, 1) are wanted, the decays of both moments."
            )
        if phi is not None and not (_two(phi) and 0.0 <= number(phi[0]) < number(phi[1])):
            raise ConfigurationError(
                f"phi is {phi!r}; (low, high) with 0 <= low < high is wanted, the clamp on the "
                "norm of a layer's weights, or None for no clamp."
            )
        super().add_param_group(param_group)
        refuse_complex(self)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step.

        Args:
            closure: Computes the loss and its gradients again; its result is returned.

        Raises:
            ConfigurationError: A gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        lists = [(group, with_gradient(self, group)) for group in self.param_groups]
        for group, parts in lists:
            for params in parts:
                self._update(group, params)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a `state_dict()`, to the bit."""
        super().load_state_dict(state_dict)
        reload(self, state_dict, _MOMENTS)

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        beta1, beta2 = (float(beta) for beta in group["betas"])
        dtype = held_in(params[0].dtype)
        grads, states = gradients(params, dtype), [self.state[p] for p in params]
        for p, state in zip(params, states, strict=True):
            if not state:
                # floats, which a checkpoint keeps in full; torch casts tensors to p's dtype
                state["product1"], state["product2"] = 1.0, 1.0
                for key in _MOMENTS:
                    state[key] = torch.zeros_like(p, dtype=dtype)
            # counted per parameter: one that joins late has its own bias correction
            state["product1"] *= beta1
            state["product2"] *= beta2
        first = [state["exp_avg"] for state in states]
        second = [state["exp_avg_sq"] for state in states]
        torch._foreach_lerp_(first, grads, 1.0 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1.0 - beta2)
        denominator = torch._foreach_sqrt(second)
        torch._foreach_div_(denominator, [(1.0 - s["product2"]) ** 0.5 for s in states])
        torch._foreach_add_(denominator, float(group["eps"]))
        r = torch._foreach_div(first, [1.0 - s["product1"] for s in states])
        torch._foreach_div_(r, denominator)
        torch._foreach_add_(r, params, alpha=float(group["weight_decay"]))
        w, size = norms(params), norms(list(r))
        low, high = group["phi"] or (None, None)
        phi = w if low is None else w.clamp(low, high)
        ratio = with_trust(phi / size, params, w, size, vectors=group["adapt_vectors"])
        torch._foreach_mul_(r, (group["lr"] * ratio).unbind())
        torch._foreach_sub_(params, r)


def _two(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2
