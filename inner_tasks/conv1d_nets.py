"""One-dimensional convolutions as matmuls over windows; the conventions are those of `nets.py`.

Windows side by side and one linear layer compute the same as `torch.nn.Conv1d`, and under vmap
they are one batched matmul where a convolution becomes one group per run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import ConfigurationError
from .base import Params
from .nets import (
    ACTIVATIONS,
    Weights,
    add_linear,
    add_norm,
    embedding,
    layer_norm,
    linear,
    normal,
)


@dataclass(frozen=True)
class CausalConv:
    """Next-token model: embeddings, causal convolutions of dilation 1, 2, 4, ..., logits.

    A position sees 1 + (kernel - 1) * (2**layers - 1) tokens, itself and those before it.

    Source: van den Oord et al., 2016, arXiv:1609.03499, without gates and skips.
    """

    vocabulary: int
    embed: int
    width: int
    layers: int
    kernel: int = 3
    activation: str = "relu"
    norm: str = "none"
    gain: float = 1.0

    def init(self, generator: torch.Generator) -> Params:
        """Draw "embed", "conv0" to "convN" of shape (width, kernel * inputs), norms, "head"."""
        params: Params = {"embed.weight": normal(generator, (self.vocabulary, self.embed), 1.0)}
        fan_in = self.embed
        for i in range(self.layers):
            shape = (self.width, self.kernel * fan_in)
            add_linear(params, f"conv{i}", shape, generator, self.gain, self.activation)
            if self.norm == "layer":
                add_norm(params, f"norm{i}", self.width)
            fan_in = self.width
        add_linear(params, "head", (self.vocabulary, self.width), generator, self.gain)
        return params

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """Tokens (N, T) to logits (N, T, vocabulary)."""
        x = embedding(params["embed.weight"], inputs)
        for i in range(self.layers):
            # Oldest first, as in the kernel of nn.Conv1d.
            shifts = [2**i * back for back in reversed(range(self.kernel))]
            windows = torch.cat([F.pad(x, (0, 0, s, 0))[:, : x.shape[1]] for s in shifts], -1)
            out = layer_norm(linear(windows, params, f"conv{i}"), params, f"norm{i}")
            x = ACTIVATIONS[self.activation](out)
        return linear(x, params, "head")


@dataclass(frozen=True)
class StridedConv1d:
    """Convolutions of kernel 4, stride 2, padding 1 over a one-channel signal, then a linear layer.

    Each layer halves the length. With `norm` "layer" each position is normalised over channels.
    """

    length: int
    channels: tuple[int, ...]
    n_outputs: int
    activation: str = "relu"
    norm: str = "none"
    gain: float = 1.0

    def __post_init__(self) -> None:
        if self.length % 2 ** len(self.channels):
            raise ConfigurationError(
                f"length is {self.length}; {len(self.channels)} layers halve it, so it must be a "
                f"multiple of {2 ** len(self.channels)}."
            )

    def init(self, generator: torch.Generator) -> Params:
        """Draw "conv0" to "convN" of shape (channels, 4 * inputs), norms and "head"."""
        params: Params = {}
        fan_in = 1
        for i, channels in enumerate(self.channels):
            shape = (channels, 4 * fan_in)
            add_linear(params, f"conv{i}", shape, generator, self.gain, self.activation)
            if self.norm == "layer":
                add_norm(params, f"norm{i}", channels)
            fan_in = channels
        head = (self.n_outputs, fan_in * self.length // 2 ** len(self.channels))
        add_linear(params, "head", head, generator, self.gain)
        return params

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """Signals (N, length) to (N, n_outputs)."""
        x = inputs.unsqueeze(-1)
        for i in range(len(self.channels)):
            # Pairs of neighbours: two pairs in a row are a window of 4, two apart.
            pairs = F.pad(x, (0, 0, 1, 1)).reshape(x.shape[0], -1, 2 * x.shape[2])
            windows = torch.cat((pairs[:, :-1], pairs[:, 1:]), -1)
            out = layer_norm(linear(windows, params, f"conv{i}"), params, f"norm{i}")
            x = ACTIVATIONS[self.activation](out)
        return linear(x.reshape(x.shape[0], -1), params, "head")
