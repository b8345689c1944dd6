"""Layers with a structured best response: linear, 2-d convolution, dropout.

Source: MacKay et al., 2019, arXiv:1903.03088, section 3; the centred net input is that of Bae and
Grosse, 2020, arXiv:2010.13514. With net input h (n numbers per example), a layer of weights W and
bias b computes

    y = W x + b + (Q_w h) * (V x) + (Q_b h) * c

that is, row i of the weights is W_i + (Q_w h)_i V_i. With Q = 0, its start, it is the plain layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.errors import ConfigurationError
from .hyperspace import HyperSpace


def along(value: Tensor, ndim: int, batch_dim: int = 0) -> Tensor:
    """One number per example, (B,), in the shape that multiplies `ndim` dimensions."""
    return value.view(*(-1 if i == batch_dim else 1 for i in range(ndim)))


def spread(rows: Tensor, y: Tensor, batch_dim: int, channel_dim: int) -> Tensor:
    """Rows (B, out) in the shape that multiplies `y`.

    Raises:
        ConfigurationError: `y` does not have B examples in its dimension `batch_dim`.
    """
    shape = [1] * y.ndim
    if y.ndim < 2 or len(rows) not in (1, y.shape[batch_dim]):
        raise ConfigurationError(
            f"A converted layer made a tensor of shape {tuple(y.shape)} where dimension "
            f"{batch_dim} should count {len(rows)} examples. Keep the batch a dimension of its "
            "own on the way through the model, and set batch_dim (of the tuner) to where it is."
        )
    shape[batch_dim], shape[channel_dim] = rows.shape
    return rows.view(shape)


class Response(nn.Module):
    """How one weight matrix, and its bias, respond to the net input.

    Args:
        weight: What responds, (out, ...).
        bias: (out,) or `None`; a frozen one does not respond.
        n: Size of the net input.

    Attributes:
        weight: V, uniform in +-1 / sqrt(fan in).
        bias: c, likewise.
        q_weight: Q_w, (out, n), zero.
        q_bias: Q_b, (out, n), zero.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, n: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(max(1, weight[0].numel()))
        self.weight = nn.Parameter(torch.empty_like(weight).uniform_(-bound, bound))
        self.q_weight = nn.Parameter(weight.new_zeros(len(weight), n))
        self.bias: nn.Parameter | None = None
        self.q_bias: nn.Parameter | None = None
        if bias is not None and bias.requires_grad:
            self.bias = nn.Parameter(torch.empty_like(bias).uniform_(-bound, bound))
            self.q_bias = nn.Parameter(bias.new_zeros(len(bias), n))

    def rows(self, h: Tensor) -> Tensor:
        """Factors of the rows of V, (B, out), for net inputs (B, n)."""
        return h.to(self.q_weight.dtype) @ self.q_weight.T

    def shift(self, h: Tensor) -> Tensor | None:
        """What the bias responds, (B, out); `None` where there is none."""
        if self.q_bias is None or self.bias is None:
            return None
        return (h.to(self.q_bias.dtype) @ self.q_bias.T) * self.bias

    def add(
        self, y: Tensor, elementary: Tensor, h: Tensor, batch_dim: int, channel_dim: int
    ) -> Tensor:
        """The plain output `y` plus the response; `elementary` is V x."""
        y = y + spread(self.rows(h), y, batch_dim, channel_dim) * elementary
        shift = self.shift(h)
        return y if shift is None else y + spread(shift, y, batch_dim, channel_dim)

    def change(self, h: Tensor) -> tuple[Tensor, Tensor | None]:
        """Change of weight and bias at one net input (n,), which is its Jacobian times `h`."""
        rows, shift = self.rows(h[None])[0], self.shift(h[None])
        weight = along(rows, self.weight.ndim) * self.weight
        return weight, None if shift is None else shift[0]


class ResponseLayer(nn.Module):
    """What converted layers with weights have in common."""

    space: HyperSpace

    def responses(self) -> Iterator[tuple[str, str, Response]]:
        """Names of each weight and its bias, and their response."""
        raise NotImplementedError


class _OneResponse(ResponseLayer):
    weight: Any
    bias: Any
    response: Response

    def attach(self, space: HyperSpace) -> None:
        """Give a layer that was plain its response."""
        self.space = space
        self.response = Response(self.weight, self.bias, len(space))

    def responses(self) -> Iterator[tuple[str, str, Response]]:
        """Names of weight and bias, and their response."""
        yield "weight", "bias", self.response


class ResponseLinear(_OneResponse, nn.Linear):
    """`nn.Linear` whose weights respond to the net input of its space."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, ..., in) to (B, ..., out), the batch where the tuner's `batch_dim` says."""
        y = super().forward(input)
        draw = self.space.draw
        if draw.net_input is None:
            return y
        elementary = F.linear(input, self.response.weight)
        return self.response.add(y, elementary, draw.net_input, draw.batch_dim, y.ndim - 1)


class ResponseConv2d(_OneResponse, nn.Conv2d):
    """`nn.Conv2d` whose filters respond to the net input of its space, each by a factor."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, in, height, width) to (B, out, ...), or (in, height, width) outside of a tuner."""
        y = super().forward(input)
        h = self.space.draw.net_input
        if h is None:
            return y
        if y.ndim != 4:
            raise ConfigurationError(
                f"A converted convolution got an input of shape {tuple(input.shape)}; "
                "(batch, channels, height, width) is wanted."
            )
        elementary = self._conv_forward(input, self.response.weight, None)
        return self.response.add(y, elementary, h, 0, 1)


def drop(x: Tensor, rate: Tensor, batch_dim: int, generator: torch.Generator | None) -> Tensor:
    """Inverted dropout with a rate per example, (B,) or (1,)."""
    rate = spread(rate[:, None], x, batch_dim, (batch_dim + 1) % x.ndim).to(x.dtype)
    noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return x.masked_fill(noise < rate, 0.0) / (1.0 - rate)


class ResponseDropout(nn.Dropout):
    """`nn.Dropout` whose rate is a hyperparameter: per example in a tuner's step."""

    space: HyperSpace
    rate: str

    def attach(self, space: HyperSpace, rate: str) -> None:
        """Bind a dropout that was plain to a name of the space."""
        self.space, self.rate = space, rate

    def forward(self, input: Tensor) -> Tensor:
        """Any shape with a batch; the input itself in eval mode."""
        if not self.training:
            return input
        draw = self.space.draw
        return drop(input, draw.values[self.rate], draw.batch_dim, self.space.generator)


def squared_norm(model: nn.Module) -> Tensor:
    """Squared norm of all weights with two or more dimensions, for a weight decay that is tuned.

        loss + 0.5 * (values["weight_decay"] * squared_norm(model)).mean()

    Biases and normalisation gains are left out. Of converted layers it is the norm with the best
    response in it, per example and without ever making the weights of one: of a row
    |W + a V|^2 = |W|^2 + 2 a W V + a^2 |V|^2.

    Args:
        model: A converted model, or a plain one, where it is the sum of squares alone.

    Returns:
        (B,) inside a tuner's perturbed step, else (1,).
    """
    inner = {id(p) for m in model.modules() if isinstance(m, Response) for p in m.parameters()}
    plain = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in inner]
    if not plain:
        raise ConfigurationError("The model has no weight matrix, so there is nothing to decay.")
    total = torch.stack([p.square().sum() for p in plain]).sum()[None]
    for module in model.modules():
        h = module.space.draw.net_input if isinstance(module, ResponseLayer) else None
        if not isinstance(module, ResponseLayer) or h is None:
            continue
        for name, _, response in module.responses():
            weight, rows = getattr(module, name).flatten(1), response.rows(h)
            v = response.weight.flatten(1)
            total = total + 2.0 * (rows @ (weight * v).sum(1)) + rows.square() @ v.square().sum(1)
    return total
