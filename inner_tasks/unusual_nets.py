"""Networks that are built otherwise than of linear layers and activations; as in `nets.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Params
from .nets import Net, Weights, add_linear, add_norm, embedding, layer_norm, linear, normal


@dataclass(frozen=True)
class GatedMLP:
    """Hidden layers of two linear maps, one of which gates the other through a sigmoid.

    Source: Dauphin et al., 2017, arXiv:1612.08083 (gated linear units).
    """

    widths: tuple[int, ...]  # inputs, hidden widths, outputs
    norm: str = "none"
    gain: float = 1.0

    def init(self, generator: torch.Generator) -> Params:
        """Draw "layer0" to "layerN" (hidden ones of twice their width) and the norms."""
        params: Params = {}
        for i, (fan_in, width) in enumerate(zip(self.widths, self.widths[1:-1], strict=False)):
            # values and gates side by side; gates start half open, which halves the values
            add_linear(params, f"layer{i}", (2 * width, fan_in), generator, 2.0 * self.gain)
            if self.norm == "layer":
                add_norm(params, f"norm{i}", width)
        last, head = len(self.widths) - 2, (self.widths[-1], self.widths[-2])
        add_linear(params, f"layer{last}", head, generator, self.gain)
        return params

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """(N, widths[0]) to (N, widths[-1])."""
        x = inputs
        for i in range(len(self.widths) - 2):
            value, gate = linear(x, params, f"layer{i}").chunk(2, -1)
            x = layer_norm(value * torch.sigmoid(gate), params, f"norm{i}")
        return linear(x, params, f"layer{len(self.widths) - 2}")


@dataclass(frozen=True)
class SineMLP:
    """Hidden layers whose activation is a sine, the first of a frequency of its own.

    Source: Sitzmann et al., 2020, arXiv:2006.09661.
    """

    widths: tuple[int, ...]  # inputs, hidden widths, outputs
    frequency: float = 8.0  # of the first layer
    gain: float = 1.0

    def init(self, generator: torch.Generator) -> Params:
        """Draw "layer0" to "layerN"; biases are phases, uniform over a period."""
        params: Params = {}
        last = len(self.widths) - 2
        for i, (fan_in, fan_out) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            # a sine's variance is a half, which the next layer makes good
            gain = self.frequency if i == 0 else math.sqrt(2.0)
            add_linear(params, f"layer{i}", (fan_out, fan_in), generator, gain * self.gain)
            if i < last:
                phase = torch.rand(fan_out, generator=generator)
                params[f"layer{i}.bias"] = 2.0 * math.pi * phase
        return params

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """(N, widths[0]) to (N, widths[-1])."""
        x = inputs
        for i in range(len(self.widths) - 2):
            x = torch.sin(linear(x, params, f"layer{i}"))
        return linear(x, params, f"layer{len(self.widths) - 2}")


@dataclass(frozen=True)
class RadialBasis:
    """Gaussian bumps around learned centres, each of a learned width, and a linear read-out.

    Source: Broomhead and Lowe, 1988, "Radial Basis Functions, Multi-Variable Functional
    Interpolation and Adaptive Networks".
    """

    n_inputs: int
    centres: int
    n_outputs: int
    gain: float = 1.0

    def init(self, generator: torch.Generator) -> Params:
        """Draw "centre.weight" as the inputs lie; "width.weight" is log 1, "head" as linear."""
        params: Params = {
            "centre.weight": normal(generator, (self.centres, self.n_inputs), 1.0),
            "width.weight": torch.zeros(self.centres),
        }
        add_linear(params, "head", (self.n_outputs, self.centres), generator, 4.0 * self.gain)
        return params

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """(N, n_inputs) to (N, n_outputs)."""
        centre = params["centre.weight"]
        square = inputs.square().sum(-1, keepdim=True) + centre.square().sum(-1)
        distance = (square - 2.0 * inputs @ centre.mT) / self.n_inputs
        return linear(torch.exp(-distance * params["width.weight"].exp()), params, "head")


@dataclass(frozen=True)
class CrossNet:
    """Products of the inputs: x <- x0 * (W x + b) + x, a few times, then a linear read-out.

    Source: Wang et al., 2021, arXiv:2008.13535 (DCN V2).
    """

    n_inputs: int
    layers: int
    n_outputs: int
    gain: float = 1.0

    def init(self, generator: torch.Generator) -> Params:
        """Draw "cross0" to "crossN" and "head"."""
        params: Params = {}
        square = (self.n_inputs, self.n_inputs)
        for i in range(self.layers):
            add_linear(params, f"cross{i}", square, generator, self.gain / self.layers)
        add_linear(params, "head", (self.n_outputs, self.n_inputs), generator, self.gain)
        return params

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """(N, n_inputs) to (N, n_outputs)."""
        x = inputs
        for i in range(self.layers):
            x = inputs * linear(x, params, f"cross{i}") + x
        return linear(x, params, "head")


@dataclass(frozen=True)
class WordScores:
    """A score for each word and class; a text's are the means of its words', plus a bias."""

    vocabulary: int
    n_outputs: int
    gain: float = 1.0

    def init(self, generator: torch.Generator) -> Params:
        """Draw "score.weight", a zero "score.bias"."""
        table = normal(generator, (self.vocabulary, self.n_outputs), self.gain)
        return {"score.weight": table, "score.bias": torch.zeros(self.n_outputs)}

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """Tokens (N, T) to logits (N, n_outputs)."""
        return embedding(params["score.weight"], inputs).mean(-2) + params["score.bias"]


@dataclass(frozen=True)
class InPieces:
    """A net over sequences, given flat inputs: they are cut into equal pieces, in order."""

    net: Net
    pieces: int

    def init(self, generator: torch.Generator) -> Params:
        """The net's own."""
        return self.net.init(generator)

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """(N, pieces * d) to what the net makes of (N, pieces, d)."""
        return self.net(params, inputs.reshape(inputs.shape[0], self.pieces, -1))
