"""Networks that mix rows by means and by residual branches; the conventions are `nets.py`'s."""

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
class ResidualMLP:
    """A linear stem, residual branches of two layers, a linear head.

    Each branch is down(activation(up(norm(x)))); `norm` "layer" also normalises before the head.

    Source: He et al., 2016, arXiv:1603.05027 (identity mappings), without convolutions.
    """

    n_inputs: int
    width: int
    blocks: int
    hidden: int
    n_outputs: int
    activation: str = "relu"
    norm: str = "none"
    gain: float = 1.0

    def init(self, generator: torch.Generator) -> Params:
        """Draw "stem", the branches ("block0.up", "block0.down", ...), the norms and "head"."""
        params: Params = {}
        add_linear(params, "stem", (self.width, self.n_inputs), generator, self.gain)
        for i in range(self.blocks):
            if self.norm == "layer":
                add_norm(params, f"block{i}.norm", self.width)
            up, down = (self.hidden, self.width), (self.width, self.hidden)
            add_linear(params, f"block{i}.up", up, generator, self.gain, self.activation)
            # The stream adds one branch per block: their outputs start smaller.
            branch = self.gain / math.sqrt(self.blocks)
            add_linear(params, f"block{i}.down", down, generator, branch)
        if self.norm == "layer":
            add_norm(params, "norm", self.width)
        add_linear(params, "head", (self.n_outputs, self.width), generator, self.gain)
        return params

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """(N, n_inputs) to (N, n_outputs)."""
        activation = ACTIVATIONS[self.activation]
        x = linear(inputs, params, "stem")
        for i in range(self.blocks):
            up = linear(layer_norm(x, params, f"block{i}.norm"), params, f"block{i}.up")
            x = x + linear(activation(up), params, f"block{i}.down")
        return linear(layer_norm(x, params, "norm"), params, "head")


@dataclass(frozen=True)
class BagOfTokens:
    """The mean of the tokens' embeddings, then an MLP; the order of the tokens is lost.

    Source: Iyyer et al., 2015, "Deep Unordered Composition Rivals Syntactic Methods for Text
    Classification".
    """

    vocabulary: int
    embed: int
    hidden: tuple[int, ...]
    n_outputs: int
    activation: str = "relu"
    norm: str = "none"
    gain: float = 1.0

    @property
    def _mlp(self) -> MLP:
        return MLP(
            (self.embed, *self.hidden, self.n_outputs), self.activation, self.norm, self.gain
        )

    def init(self, generator: torch.Generator) -> Params:
        """Draw "embed.weight", then the layers of an `MLP`."""
        table = normal(generator, (self.vocabulary, self.embed), 1.0)
        return {"embed.weight": table, **self._mlp.init(generator)}

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """Tokens (N, T) to logits (N, n_outputs)."""
        return self._mlp(params, embedding(params["embed.weight"], inputs).mean(-2))


@dataclass(frozen=True)
class DeepSets:
    """An MLP of each point, the mean over the points, an MLP of the mean.

    Source: Zaheer et al., 2017, arXiv:1703.06114.
    """

    n_inputs: int  # coordinates of a point
    width: int
    depth: int  # hidden layers per point
    n_outputs: int
    activation: str = "relu"
    norm: str = "none"
    gain: float = 1.0

    @property
    def _point(self) -> MLP:
        widths = (self.n_inputs, *(self.width,) * (self.depth + 1))
        return MLP(widths, self.activation, self.norm, self.gain)

    @property
    def _set(self) -> MLP:
        widths = (self.width, self.width, self.n_outputs)
        return MLP(widths, self.activation, self.norm, self.gain)

    def init(self, generator: torch.Generator) -> Params:
        """Two MLPs, "point.layer0" and so on, then "set.layer0" and so on."""
        point, whole = self._point.init(generator), self._set.init(generator)
        return {
            **{f"point.{name}": value for name, value in point.items()},
            **{f"set.{name}": value for name, value in whole.items()},
        }

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """Points (N, P, n_inputs) to (N, n_outputs); their order does not matter."""
        points = self._point(_within(params, "point."), inputs)
        return self._set(_within(params, "set."), points.mean(-2))


def _within(params: Weights, prefix: str) -> Params:
    return {name[len(prefix) :]: p for name, p in params.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Mixer:
    """MLP-Mixer on flat square images of one channel: MLPs across patches, MLPs across channels.

    Pre-norm residual blocks where `norm` is "layer"; the mean of the patches is read out.

    Source: Tolstikhin et al., 2021, arXiv:2105.01601.
    """

    side: int  # of the image, in pixels
    patch: int  # of the patch, in pixels
    width: int
    blocks: int
    n_outputs: int
    activation: str = "gelu"
    norm: str = "layer"
    gain: float = 1.0

    def __post_init__(self) -> None:
        if self.side % self.patch:
            raise ConfigurationError(
                f"patch is {self.patch}; it must divide {self.side}, the side."
            )

    @property
    def n_tokens(self) -> int:
        """Patches of an image."""
        return (self.side // self.patch) ** 2

    def init(self, generator: torch.Generator) -> Params:
        """Draw "embed", the blocks ("block0.tokens.up", ...), "norm" and "head"."""
        params: Params = {}
        add_linear(params, "embed", (self.width, self.patch**2), generator, self.gain)
        branch = self.gain / math.sqrt(2 * self.blocks)
        for i in range(self.blocks):
            for part, size in (("tokens", self.n_tokens), ("channels", self.width)):
                name = f"block{i}.{part}"
                if self.norm == "layer":
                    add_norm(params, f"{name}.norm", self.width)
                up = (2 * self.width, size)
                add_linear(params, f"{name}.up", up, generator, self.gain, self.activation)
                add_linear(params, f"{name}.down", (size, 2 * self.width), generator, branch)
        if self.norm == "layer":
            add_norm(params, "norm", self.width)
        add_linear(params, "head", (self.n_outputs, self.width), generator, self.gain)
        return params

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """Images (N, side * side) to (N, n_outputs)."""
        grid, patch = self.side // self.patch, self.patch
        cut = inputs.reshape(-1, grid, patch, grid, patch).transpose(2, 3)
        x = linear(cut.reshape(-1, grid * grid, patch * patch), params, "embed")
        for i in range(self.blocks):
            mixed = layer_norm(x, params, f"block{i}.tokens.norm").transpose(1, 2)
            x = x + self._mlp(mixed, params, f"block{i}.tokens").transpose(1, 2)
            normed = layer_norm(x, params, f"block{i}.channels.norm")
            x = x + self._mlp(normed, params, f"block{i}.channels")
        return linear(layer_norm(x, params, "norm").mean(-2), params, "head")

    def _mlp(self, x: Tensor, params: Weights, name: str) -> Tensor:
        hidden = ACTIVATIONS[self.activation](linear(x, params, f"{name}.up"))
        return linear(hidden, params, f"{name}.down")
