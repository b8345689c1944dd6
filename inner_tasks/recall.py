"""A family on long sequences: what was shown at the marked place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from .base import Params
from .data import Dataset, generator
from .drawing import DATA_SEEDS, in_order, n_drawn
from .nets import ACTIVATIONS, Net, Weights, add_linear, add_norm, layer_norm, linear
from .supervised import ALL_ACTIVATIONS, CLASS_LOSSES, Config, Settings, SupervisedFamily

_ROWS: Final = 6_144
_LENGTH, _SYMBOLS = 20, 6


@cache
def _shown(marks: int, noise: float, seed: int) -> Dataset:
    """Symbols one after another as noisy vectors, some marked; the class is their sum, in a circle.

    Inputs (N, steps, symbol and mark).
    """
    rng = generator("recall", marks, int(10 * noise), seed)
    n = n_drawn(_ROWS)
    symbol = rng.integers(_SYMBOLS, size=(n, _LENGTH))
    order = rng.random((n, _LENGTH)).argsort(1)
    marked = np.zeros((n, _LENGTH))
    np.put_along_axis(marked, order[:, :marks], 1.0, 1)
    code = rng.normal(size=(_SYMBOLS, _SYMBOLS))
    seen = code[symbol] + noise * rng.normal(size=(n, _LENGTH, _SYMBOLS))
    label = (symbol * marked.astype(int)).sum(1) % _SYMBOLS
    return in_order(np.concatenate([seen, marked[..., None]], -1), label, _SYMBOLS)


@dataclass(frozen=True)
class LinearRecurrence:
    """A gated layer, a diagonal linear recurrence, an MLP on its last state.

    h = a h + (1 - a) sqrt(T) x over T steps, each unit with a decay a of its own, which is learned.

    Source: Orvieto et al., 2023, arXiv:2303.06349 (linear recurrent units), with real decays.
    """

    n_inputs: int
    width: int
    n_outputs: int
    activation: str = "gelu"
    norm: str = "layer"
    gain: float = 1.0

    def init(self, generator: torch.Generator) -> Params:
        """Draw "input" (values and gates), "decay", "norm", "hidden" and "head"."""
        params: Params = {}
        add_linear(params, "input", (2 * self.width, self.n_inputs), generator, 2.0 * self.gain)
        # decays of half a step to dozens of steps
        params["decay"] = torch.linspace(-1.0, 4.0, self.width)
        if self.norm == "layer":
            add_norm(params, "norm", self.width)
        hidden = (self.width, self.width)
        add_linear(params, "hidden", hidden, generator, self.gain, self.activation)
        add_linear(params, "head", (self.n_outputs, self.width), generator, self.gain)
        return params

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """(N, T, n_inputs) to (N, n_outputs)."""
        value, gate = linear(inputs, params, "input").chunk(2, -1)
        fed = value * torch.sigmoid(gate)
        # the last state is a weighted sum over time: no loop
        age = torch.arange(inputs.shape[1] - 1, -1, -1, device=fed.device, dtype=fed.dtype)
        keep = torch.sigmoid(params["decay"])
        weight = (1.0 - keep) * keep ** age[:, None] * inputs.shape[1] ** 0.5
        state = layer_norm((fed * weight).sum(-2), params, "norm")
        return linear(ACTIVATIONS[self.activation](linear(state, params, "hidden")), params, "head")


class RecallLinear(SupervisedFamily):
    """Add up the marked symbols of a sequence of 20, with a linear recurrence.

    Data: 6,144 sequences of noisy symbols, one or two of them marked.
    Model: a diagonal linear recurrence of 24 to 64 units between a gated and a hidden layer.
    Drawn: marks, noise, data seed, width, activation, norm, loss, batch size, gain, scales, label
    noise.
    Source: the adding problem of Hochreiter and Schmidhuber, 1997, with classes; net after Orvieto
    et al., 2023, arXiv:2303.06349.
    """

    name = "recall-linear"
    dataset = "recall"
    architecture = "linear-recurrence"
    settings: ClassVar[Settings] = {
        "marks": (1, (1, 1, 2)),
        "noise": (0.5, (0.2, 0.5, 1.0)),
        "data_seed": (1, DATA_SEEDS),
        "width": (32, (24, 32, 48, 64)),
        "activation": ("gelu", ALL_ACTIVATIONS),
        "norm": ("layer", ("none", "layer")),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `LinearRecurrence`."""
        shape = (config["activation"], config["norm"], config["init_gain"])
        net = LinearRecurrence(_SYMBOLS + 1, config["width"], _SYMBOLS, *shape)
        return net, _shown(config["marks"], config["noise"], config["data_seed"])
