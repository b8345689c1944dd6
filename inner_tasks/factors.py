"""A family on tuples of numbers that are only names: the entries of a tensor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, reduce
from typing import ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from .base import Params
from .data import Dataset, generator
from .drawing import DATA_SEEDS, distinct_cells, in_order, n_drawn
from .nets import Net, Weights, embedding, normal
from .supervised import VALUE_LOSSES, Config, Settings, SupervisedFamily

_ENTRIES: Final = 12_288
_SIZES: Final[tuple[int, int, int]] = (120, 60, 24)


@cache
def _entries(rank: int, noise: float, seed: int) -> Dataset:
    """Noisy entries of a tensor of low rank, each seen once, those of some rows often."""
    rng = generator("tensor", rank, seed)
    n = n_drawn(_ENTRIES)
    often = [np.log(rng.dirichlet(np.full(size, 0.7))) for size in _SIZES]
    cells = distinct_cells(reduce(np.add.outer, often), n, rng)
    factors = [rng.normal(size=(size, rank)) for size in _SIZES]
    value = np.prod([f[i] for f, i in zip(factors, cells.T, strict=True)], 0).sum(1)
    value = value + sum(rng.normal(size=s)[i] for s, i in zip(_SIZES, cells.T, strict=True))
    value = value + noise * value.std() * rng.normal(size=n)
    offsets = np.cumsum((0, *_SIZES[:-1]))
    return in_order(cells + offsets, value[:, None], 1, kind="values")


@dataclass(frozen=True)
class Factors:
    """A value of three names: the sum of products of their factors, and of their biases.

    Source: Kolda and Bader, 2009, "Tensor Decompositions and Applications", section 3.
    """

    embed: int
    gain: float = 1.0

    def init(self, generator: torch.Generator) -> Params:
        """Draw "factor.weight", a row for each name; zero "bias.weight" and "bias"."""
        rows = sum(_SIZES)
        std = self.gain * self.embed ** (-1.0 / 6.0)  # products of three add up to about 1
        return {
            "factor.weight": normal(generator, (rows, self.embed), std),
            "bias.weight": torch.zeros(rows, 1),
            "bias": torch.zeros(1),
        }

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """Names (N, 3), numbered through, to values (N, 1)."""
        first, second, third = embedding(params["factor.weight"], inputs).unbind(-2)
        product = (first * second * third).sum(-1, keepdim=True)
        return product + embedding(params["bias.weight"], inputs).sum(-2) + params["bias"]


class TensorFactors(SupervisedFamily):
    """Predict the entries of a tensor of low rank from a fourteenth of them.

    Data: 12,288 of the 172,800 entries of a tensor of 120 x 60 x 24, with noise, each once; some
    rows have many, others hardly any.
    Model: factors of 4 to 16 for each row along each side, and biases.
    Drawn: rank, noise, data seed, embedding, loss, batch size, gain, scales, target noise.
    Source: Kolda and Bader, 2009.
    """

    name = "tensor-factors"
    dataset = "tensor"
    architecture = "factors"
    settings: ClassVar[Settings] = {
        "rank": (3, (2, 3, 5)),
        "noise": (0.3, (0.1, 0.3, 0.6)),
        "data_seed": (1, DATA_SEEDS),
        "embed": (8, (4, 8, 12, 16)),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (64, (32, 64, 128)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `Factors`."""
        data = _entries(config["rank"], config["noise"], config["data_seed"])
        return Factors(config["embed"], config["init_gain"]), data
