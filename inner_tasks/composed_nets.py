"""Networks that are composed of parts: pieces, experts, one layer many times, polynomials."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Params
from .nets import ACTIVATIONS, Weights, add_linear, add_norm, layer_norm, linear


@dataclass(frozen=True)
class MaxoutMLP:
    """Hidden layers of several linear maps, of which each unit takes the largest.

    Source: Goodfellow et al., 2013, arXiv:1302.4389.
    """

    widths: tuple[int, ...]  # inputs, hidden widths, outputs
    pieces: int = 2
    gain: float = 1.0

    def init(self, generator: torch.Generator) -> Params:
        """Draw "layer0" to "layerN", hidden ones of `pieces` times their width."""
        params: Params = {}
        last = len(self.widths) - 2
        for i, (fan_in, fan_out) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            n = fan_out * (self.pieces if i < last else 1)
            # the largest of two or three normal numbers is of about unit size
            add_linear(params, f"layer{i}", (n, fan_in), generator, self.gain)
        return params

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """(N, widths[0]) to (N, widths[-1])."""
        x = inputs
        for i in range(len(self.widths) - 2):
            x = linear(x, params, f"layer{i}").reshape(len(x), self.pieces, -1).amax(-2)
        return linear(x, params, f"layer{len(self.widths) - 2}")


@dataclass(frozen=True)
class Experts:
    """Hidden layers side by side, weighted by a softmax of the inputs, and what each makes of it.

    Source: gate and experts of Jacobs et al., 1991, "Adaptive Mixtures of Local Experts", their
    answers blended, with one bias for all, where Jacobs et al. let them compete.
    """

    n_inputs: int
    experts: int
    hidden: int  # of each
    n_outputs: int
    activation: str = "relu"
    gain: float = 1.0

    def init(self, generator: torch.Generator) -> Params:
        """Draw "gate", "up" (all experts' hidden units) and "down"."""
        params: Params = {}
        n = self.experts * self.hidden
        add_linear(params, "gate", (self.experts, self.n_inputs), generator, self.gain)
        add_linear(params, "up", (n, self.n_inputs), generator, self.gain, self.activation)
        # each read-out by itself is that of `hidden` units, not of all experts'
        gain = self.gain * math.sqrt(self.experts)
        add_linear(params, "down", (self.n_outputs, n), generator, gain)
        return params

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """(N, n_inputs) to (N, n_outputs)."""
        share = torch.softmax(linear(inputs, params, "gate"), -1)
        units = ACTIVATIONS[self.activation](linear(inputs, params, "up"))
        weighted = units.reshape(len(units), self.experts, -1) * share.unsqueeze(-1)
        return linear(weighted.flatten(-2), params, "down")


@dataclass(frozen=True)
class TiedMLP:
    """A residual branch that is gone through several times with the same weights.

    Source: Dehghani et al., 2019, arXiv:1807.03819 (recurrence in depth), without attention.
    """

    n_inputs: int
    width: int
    times: int
    n_outputs: int
    activation: str = "relu"
    norm: str = "none"
    gain: float = 1.0

    def init(self, generator: torch.Generator) -> Params:
        """Draw "stem", the branch's "up" and "down", its norm and "head"."""
        params: Params = {}
        square = (self.width, self.width)
        add_linear(params, "stem", (self.width, self.n_inputs), generator, self.gain)
        if self.norm == "layer":
            add_norm(params, "norm", self.width)
        add_linear(params, "up", square, generator, self.gain, self.activation)
        # the same branch each time: what it adds adds up, as it would not from different ones
        add_linear(params, "down", square, generator, self.gain / self.times)
        add_linear(params, "head", (self.n_outputs, self.width), generator, self.gain)
        return params

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """(N, n_inputs) to (N, n_outputs)."""
        x = linear(inputs, params, "stem")
        for _ in range(self.times):
            up = linear(layer_norm(x, params, "norm"), params, "up")
            x = x + linear(ACTIVATIONS[self.activation](up), params, "down")
        return linear(x, params, "head")


@dataclass(frozen=True)
class PolynomialNet:
    """Layers of sums of one-dimensional functions: Chebyshev polynomials of what tanh bounds.

    Source: Liu et al., 2024, arXiv:2404.19756 (Kolmogorov-Arnold networks), with Chebyshev's
    polynomials of tanh in place of splines, as SS et al., 2024, arXiv:2405.07200; the bias is
    T_0, and there is no function beside them.
    """

    widths: tuple[int, ...]  # inputs, hidden widths, outputs
    degree: int = 3
    gain: float = 1.0

    def init(self, generator: torch.Generator) -> Params:
        """Draw "layer0" to "layerN", of `degree` coefficients for each pair of units."""
        params: Params = {}
        for i, (fan_in, fan_out) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            # a polynomial's mean square is about a half, which the coefficients make good
            gain = math.sqrt(2.0) * self.gain
            add_linear(params, f"layer{i}", (fan_out, fan_in * self.degree), generator, gain)
        return params

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """(N, widths[0]) to (N, widths[-1])."""
        x = inputs
        for i in range(len(self.widths) - 1):
            x = linear(chebyshev(torch.tanh(x), self.degree).flatten(-2), params, f"layer{i}")
        return x


def chebyshev(x: Tensor, degree: int) -> Tensor:
    """T_1(x) to T_degree(x), `(..., d)` to `(..., d, degree)`: T_k+1 = 2 x T_k - T_k-1."""
    found = [torch.ones_like(x), x]
    while len(found) <= degree:
        found.append(2.0 * x * found[-1] - found[-2])
    return torch.stack(found[1 : degree + 1], -1)
