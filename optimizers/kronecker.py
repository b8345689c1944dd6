"""Kronecker factors of one layer: what hooks see of it, their averages, and the inverse."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Sums:
    """Sums over rows of inputs and output gradients; a row is a case at a location.

    Attributes:
        a: Sum of a a^T over rows, `(groups, inputs, inputs)`.
        g: Sum of g g^T over rows, `(groups, outputs, outputs)`.
        rows: How many rows.
        cases: How many cases, the terms of which the loss is a mean or a sum.
    """

    a: Tensor
    g: Tensor
    rows: int
    cases: int

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.a + other.a, self.g + other.g, self.rows + other.rows, self.cases + other.cases
        )


class KroneckerLayer:
    """Factors A and G of a Linear or Conv2d, whose Fisher block is about A (x) G.

    A is the mean of a a^T over cases and locations, with the input patch a (and a 1 for the bias);
    G the mean over cases (the sum, if the loss is a sum) of the sum over locations of g g^T, with g
    the derivative of one case's loss by the output. A grouped convolution has a pair of factors per
    group, so everything has a leading dimension of groups.

    Args:
        module: The layer; its weight is out x rest.
        bias: Whether the bias is a column of the weight, and so of the factors.
        mean: Whether the loss is a mean over cases; else it is a sum.
        loss_dims: How many leading dimensions of a Linear's output are cases.
    """

    def __init__(
        self, module: nn.Linear | nn.Conv2d, bias: bool, mean: bool, loss_dims: int
    ) -> None:
        self.module, self.bias, self._mean, self._loss_dims = module, bias, mean, loss_dims
        self.groups: int = getattr(module, "groups", 1)
        self.count = 0
        #: Whether the last `average` moved the factors; how often it should have and did not.
        self.fresh, self.missed = False, 0
        #: A and G; then their eigenvalues and eigenvectors, as of the last `decompose`.
        self.factors: tuple[Tensor, Tensor] | None = None
        self.eigen: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        self._open: Sums | None = None
        self._closed: Sums | None = None

    def record(self, x: Tensor, gradient: Tensor) -> None:
        """Take in the input and the output gradient of one call of the module."""
        # the weight's dtype now: the model may have been converted since the last time
        dtype = torch.promote_types(self.module.weight.dtype, torch.float32)
        a, g, cases = self._rows(x, gradient)
        a, g = a.to(dtype), g.to(dtype)
        if self.bias:
            a = torch.cat([a, a.new_ones(*a.shape[:2], 1)], 2)
        sums = Sums(a.mT @ a, g.mT @ g, a.shape[1], cases)
        self._open = sums if self._open is None else self._open + sums

    def _rows(self, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, int]:
        """Inputs and output gradients as `(groups, rows, entries)`, and the number of cases."""
        module = self.module
        if isinstance(module, nn.Linear):
            cases = math.prod(x.shape[:-1][: self._loss_dims])
            return x.reshape(1, -1, x.shape[-1]), gradient.reshape(1, -1, gradient.shape[-1]), cases
        if x.dim() == 3:  # one image without a batch dimension
            x, gradient = x.unsqueeze(0), gradient.unsqueeze(0)
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, module._reversed_padding_repeated_twice, mode)
        patches = F.unfold(x, module.kernel_size, module.dilation, stride=module.stride)

        def grouped(t: Tensor) -> Tensor:
            parts = t.reshape(len(t), self.groups, t.shape[1] // self.groups, -1)
            return parts.permute(1, 0, 3, 2).reshape(self.groups, -1, parts.shape[2])

        return grouped(patches), grouped(gradient.flatten(2)), len(x)

    def close(self, loss_scale: float = 1.0) -> None:
        """Turn what was recorded since the last time into sums over derivatives of single cases.

        Args:
            loss_scale: What the losses were multiplied by.
        """
        if self._open is None:
            return
        # with a mean, hooks saw the derivatives of cases over their number
        cases = float(self._open.cases) if self._mean else 1.0
        self._open.g = self._open.g * (cases / loss_scale) ** 2
        self._closed = self._open if self._closed is None else self._closed + self._open
        self._open = None

    def drop(self) -> None:
        """Forget what was recorded since the last `close`."""
        self._open = None

    def average(self, decay: float) -> None:
        """Move the factors towards what was closed; the first time they become it.

        Statistics that are not finite are left out: an average would never forget them.
        """
        sums, self._closed = self._closed, None
        self.fresh = False
        if sums is None or not sums.cases:
            return
        new = sums.a / sums.rows, sums.g / sums.cases if self._mean else sums.g
        if not all(bool(factor.isfinite().all()) for factor in new):
            return
        self.count += 1
        self.fresh, self.missed = True, 0
        keep = min(1.0 - 1.0 / self.count, decay)
        a, g = self.factors or new
        self.factors = (
            torch.lerp(new[0], a.to(new[0]), keep),
            torch.lerp(new[1], g.to(new[1]), keep),
        )

    @property
    def column(self) -> bool:
        """Whether the gradient has a column of the bias: a frozen bias has none."""
        return self.bias and self.module.bias is not None and self.module.bias.grad is not None

    @property
    def resized(self) -> bool:
        """Whether the gradient has a column more or less than the last `decompose` was for."""
        if self.eigen is None or self.module.weight.grad is None:
            return False
        return self.eigen[1].shape[-1] != self.shape[2] - self.bias + self.column

    def decompose(self) -> None:
        """Eigenvalues and eigenvectors of the factors; those lost in rounding become 0.

        Where the gradient has no column of the bias, A is without its row and column: the weights'
        curvature is what it is while the bias stays.
        """
        assert self.factors is not None
        a, g = self.factors
        if self.bias and not self.column and self.module.weight.grad is not None:
            a = a[..., :-1, :-1]
        out: list[Tensor] = []
        for factor in (a, g):
            values, vectors = torch.linalg.eigh(factor)
            noise = values[..., -1:] * factor.shape[-1] * torch.finfo(factor.dtype).eps
            out += [torch.where(values > noise, values, 0.0), vectors]
        self.eigen = (out[0], out[1], out[2], out[3])

    def precondition(self, gradient: Tensor, damping: float) -> Tensor:
        """(G + sqrt(damping) / pi)^-1 gradient (A + pi sqrt(damping))^-1; any out x rest.

        pi**2 is the ratio of the mean eigenvalues of A and G (Martens and Grosse, section 6.3). At
        a damping of 0 it is the pseudo-inverse.
        """
        assert self.eigen is not None
        a, of_a, g, of_g = self.eigen
        mean_a, mean_g = a.mean(-1, keepdim=True), g.mean(-1, keepdim=True)
        pi = torch.where((mean_a > 0) & (mean_g > 0), (mean_a / mean_g).sqrt(), 1.0)
        root = damping**0.5
        both = (g + root / pi).unsqueeze(2) * (a + root * pi).unsqueeze(1)
        v = gradient.to(a.dtype).reshape(self.groups, of_g.shape[-1], of_a.shape[-1])
        v = of_g.mT @ v @ of_a
        v = torch.where(both > 0, v / both, 0.0)
        return (of_g @ v @ of_a.mT).reshape(gradient.shape)

    def state_dict(self) -> dict[str, Any]:
        """Everything that later steps depend on."""
        return {"count": self.count, "factors": self.factors, "eigen": self.eigen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict()`, to the bit; what was recorded is forgotten."""

        def here(tensors: Any) -> Any:
            device = self.module.weight.device
            return tensors and tuple(t.to(device, copy=True) for t in tensors)

        self.count, self._open, self._closed = state["count"], None, None
        self.missed = 0
        self.factors, self.eigen = here(state["factors"]), here(state["eigen"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Groups, outputs and inputs of the factors."""
        out, rest = self.module.weight.shape[0], self.module.weight[0].numel()
        return self.groups, out // self.groups, rest + self.bias
