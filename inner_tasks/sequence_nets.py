"""Networks over sequences and sets of tokens; the conventions are those of `nets.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import ConfigurationError
from .base import Params
from .nets import (
    ACTIVATIONS,
    MLP,
    Weights,
    add_linear,
    add_norm,
    embedding,
    layer_norm,
    linear,
    normal,
)


@dataclass(frozen=True)
class TokenMLP:
    """Next-token MLP: embeddings of the whole context side by side, hidden layers, logits.

    Source: Bengio et al., 2003, "A Neural Probabilistic Language Model".
    """

    vocabulary: int
    context: int
    embed: int
    hidden: tuple[int, ...]
    activation: str = "relu"
    norm: str = "none"
    gain: float = 1.0

    @property
    def _mlp(self) -> MLP:
        widths = (self.context * self.embed, *self.hidden, self.vocabulary)
        return MLP(widths, self.activation, self.norm, self.gain)

    def init(self, generator: torch.Generator) -> Params:
        """Draw "embed.weight", then the layers of an `MLP`."""
        table = normal(generator, (self.vocabulary, self.embed), 1.0)
        return {"embed.weight": table, **self._mlp.init(generator)}

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """Tokens (N, context) to logits (N, vocabulary)."""
        x = embedding(params["embed.weight"], inputs)
        return self._mlp(params, x.reshape(x.shape[0], -1))


@dataclass(frozen=True)
class Recurrent:
    """One recurrent layer ("gru" or "rnn") and a linear read-out.

    Inputs are tokens (N, T) when `vocabulary` is positive, else values (N, T, n_inputs). The gates
    of all steps that do not depend on the state are one matmul, the others one matmul per step.

    Args:
        last_only: Read out after the last step alone: (N, n_outputs) instead of (N, T, n_outputs).
        tied: Read out through the embedding (needs a vocabulary and n_inputs == width).
    """

    n_inputs: int  # width of a value, or of the embedding
    width: int
    n_outputs: int
    cell: str = "gru"
    vocabulary: int = 0
    last_only: bool = False
    tied: bool = False
    norm: str = "none"
    gain: float = 1.0

    def init(self, generator: torch.Generator) -> Params:
        """Draw "embed", "input", "recurrent", "norm" and "head", those that this shape has."""
        params: Params = {}
        gates = (3 if self.cell == "gru" else 1) * self.width
        if self.vocabulary:
            # A tied table is also the read-out, so it starts at the read-out's scale.
            std = self.gain / math.sqrt(self.width) if self.tied else 1.0
            params["embed.weight"] = normal(generator, (self.vocabulary, self.n_inputs), std)
        add_linear(params, "input", (gates, self.n_inputs), generator, self.gain)
        # Without the gain: a recurrent matrix of gain 2 explodes within ten steps.
        add_linear(params, "recurrent", (gates, self.width), generator, 1.0)
        if self.norm == "layer":
            add_norm(params, "norm", self.width)
        if self.tied:
            params["head.bias"] = torch.zeros(self.n_outputs)
        else:
            add_linear(params, "head", (self.n_outputs, self.width), generator, self.gain)
        return params

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """Tokens or values to outputs."""
        x = embedding(params["embed.weight"], inputs) if self.vocabulary else inputs
        fed = linear(x, params, "input")
        weight, bias = params["recurrent.weight"], params["recurrent.bias"]
        state = torch.zeros_like(fed[:, 0, : self.width])
        states = []
        for step in fed.unbind(1):
            kept = torch.nn.functional.linear(state, weight, bias)
            state = self._gru(step, kept, state) if self.cell == "gru" else torch.tanh(step + kept)
            states.append(state)
        out = states[-1] if self.last_only else torch.stack(states, 1)
        out = layer_norm(out, params, "norm")
        if not self.tied:
            return linear(out, params, "head")
        head = {"head.weight": params["embed.weight"], "head.bias": params["head.bias"]}
        return linear(out, head, "head")

    def _gru(self, step: Tensor, kept: Tensor, state: Tensor) -> Tensor:
        """Cho et al., 2014, arXiv:1406.1078, in the form of `torch.nn.GRU`."""
        both = 2 * self.width
        reset, update = torch.sigmoid(step[:, :both] + kept[:, :both]).chunk(2, -1)
        candidate = torch.tanh(step[:, both:] + reset * kept[:, both:])
        return candidate + update * (state - candidate)


@dataclass(frozen=True)
class Transformer:
    """Pre-norm transformer with learned positions.

    A language model (causal, logits at each position) when `vocabulary` is positive; else a ViT
    that cuts flat square images into patches and reads out the mean of the tokens.

    Source: Vaswani et al., 2017, arXiv:1706.03762; Dosovitskiy et al., 2020, arXiv:2010.11929.
    """

    width: int
    blocks: int
    heads: int
    n_tokens: int
    n_outputs: int
    vocabulary: int = 0
    side: int = 0  # of the image, in pixels
    patch: int = 0  # of the patch, in pixels
    activation: str = "gelu"
    gain: float = 1.0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigurationError(
                f"width is {self.width}; it must be a multiple of {self.heads}, the heads."
            )

    def init(self, generator: torch.Generator) -> Params:
        """Draw "embed", "position", the blocks ("block0.qkv", ...), "norm" and "head"."""
        width, params = self.width, Params()
        if self.vocabulary:
            params["embed.weight"] = normal(generator, (self.vocabulary, width), 0.5)
        else:
            add_linear(params, "embed", (width, self.patch**2), generator, 1.0)
        params["position.weight"] = normal(generator, (self.n_tokens, width), 0.1)
        # The residual stream adds two branches per block: their outputs start smaller.
        branch = self.gain / math.sqrt(2 * self.blocks)
        for i in range(self.blocks):
            block = f"block{i}"
            add_norm(params, f"{block}.norm1", width)
            add_linear(params, f"{block}.qkv", (3 * width, width), generator, self.gain)
            add_linear(params, f"{block}.out", (width, width), generator, branch)
            add_norm(params, f"{block}.norm2", width)
            up = (2 * width, width)
            add_linear(params, f"{block}.up", up, generator, self.gain, self.activation)
            add_linear(params, f"{block}.down", (width, 2 * width), generator, branch)
        add_norm(params, "norm", width)
        add_linear(params, "head", (self.n_outputs, width), generator, self.gain)
        return params

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """Tokens (N, T) to (N, T, n_outputs), or flat images to (N, n_outputs)."""
        if self.vocabulary:
            x = embedding(params["embed.weight"], inputs)
        else:
            x = linear(self._patches(inputs), params, "embed")
        x = x + params["position.weight"]
        activation = ACTIVATIONS[self.activation]
        for i in range(self.blocks):
            block = f"block{i}"
            x = x + self._attend(layer_norm(x, params, f"{block}.norm1"), params, block)
            up = linear(layer_norm(x, params, f"{block}.norm2"), params, f"{block}.up")
            x = x + linear(activation(up), params, f"{block}.down")
        x = layer_norm(x, params, "norm")
        return linear(x if self.vocabulary else x.mean(-2), params, "head")

    def _patches(self, images: Tensor) -> Tensor:
        """(N, side * side) to (N, n_tokens, patch * patch)."""
        grid, patch = self.side // self.patch, self.patch
        cut = images.reshape(-1, grid, patch, grid, patch).transpose(2, 3)
        return cut.reshape(-1, grid * grid, patch * patch)

    def _attend(self, x: Tensor, params: Weights, block: str) -> Tensor:
        n, tokens, width = x.shape
        qkv = linear(x, params, f"{block}.qkv").reshape(n, tokens, 3, self.heads, -1)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        scores = q @ k.transpose(-1, -2) / math.sqrt(width // self.heads)
        if self.vocabulary:
            later = torch.ones(tokens, tokens, device=x.device, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -1e4)
        weights = (scores - scores.amax(-1, keepdim=True).detach()).exp()
        mixed = (weights / weights.sum(-1, keepdim=True)) @ v
        return linear(mixed.transpose(1, 2).reshape(n, tokens, width), params, f"{block}.out")
