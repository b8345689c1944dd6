"""Families on tables: scikit-learn's small ones, and three larger ones under `LHOPT_DATA`."""

from __future__ import annotations

from typing import Any, ClassVar

from .data import Dataset
from .nets import MLP, Net
from .supervised import (
    ALL_ACTIVATIONS,
    BATCH_SIZES,
    CLASS_LOSSES,
    NORMS,
    VALUE_LOSSES,
    Config,
    Settings,
    SupervisedFamily,
)
from .tables import ADULT, CALIFORNIA, COVERTYPE, adult, california, covertype, small_table


def _settings(plain_loss: str, losses: tuple[Any, ...]) -> Settings:
    return {
        "width": (32, (16, 24, 32, 48, 64)),
        "depth": (2, (1, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": (plain_loss, losses),
        "batch_size": (32, BATCH_SIZES),
    }


def _mlp(config: Config, data: Dataset) -> MLP:
    widths = (data.n_inputs, *(config["width"],) * config["depth"], data.n_outputs)
    return MLP(widths, config["activation"], config["norm"], config["init_gain"])


class TabularMLP(SupervisedFamily):
    """An MLP on one of scikit-learn's small tables; few rows, so runs can overfit.

    Data: breast_cancer (569 rows, 2 classes), wine (178 rows, 3 classes) or diabetes (442 rows, a
    standardised value). With diabetes, "cross-entropy" is read as "squared-error".
    Model: 1 to 3 hidden layers of 16 to 64.
    Drawn: table, width, depth, activation, norm, loss, batch size, gain, scale, label noise.
    Source: scikit-learn's bundled data sets.
    """

    name = "tabular-mlp"
    dataset = "tabular"
    architecture = "mlp"
    settings: ClassVar[Settings] = {
        "table": ("breast_cancer", ("breast_cancer", "wine", "diabetes")),
        "width": (32, (16, 24, 32, 48, 64)),
        "depth": (1, (1, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (16, (8, 16, 32)),
    }

    def settle(self, config: Config) -> Config:
        """Diabetes has values, which have no cross-entropy."""
        if config["table"] == "diabetes" and config["loss"] == "cross-entropy":
            return {**config, "loss": "squared-error"}
        return config

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` on the drawn table."""
        data = small_table(config["table"])
        return _mlp(config, data), data


class CaliforniaMLP(SupervisedFamily):
    """Regress the price of houses in California with an MLP.

    Data: 20,640 districts, 13 columns after one-hot; the target is the standardised log price.
    Model: 1 to 3 hidden layers of 16 to 64.
    Drawn: width, depth, activation, norm, loss, batch size, gain, loss scale, target noise.
    Source: Pace and Barry, 1997, by way of A. Geron's "Hands-On Machine Learning".
    """

    name = "california-mlp"
    dataset = "california-housing"
    architecture = "mlp"
    data_files = (CALIFORNIA,)
    settings: ClassVar[Settings] = _settings("squared-error", VALUE_LOSSES)

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` with one output."""
        data = california()
        return _mlp(config, data), data


class AdultMLP(SupervisedFamily):
    """Classify census incomes above 50,000 with an MLP.

    Data: 32,561 people, 6 numbers and 8 categories one-hot; official test split.
    Model: 1 to 3 hidden layers of 16 to 64.
    Drawn: width, depth, activation, norm, loss, batch size, gain, loss scale, label noise.
    Source: Kohavi and Becker, 1996, UCI "Adult".
    """

    name = "adult-mlp"
    dataset = "adult"
    architecture = "mlp"
    data_files = (ADULT,)
    settings: ClassVar[Settings] = _settings("cross-entropy", CLASS_LOSSES)

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` with two outputs."""
        data = adult()
        return _mlp(config, data), data


class CovertypeMLP(SupervisedFamily):
    """Classify forest cover with an MLP.

    Data: 10,000 cells, 54 columns, seven classes from 40 to 4,870 rows.
    Model: 1 to 3 hidden layers of 16 to 64.
    Drawn: width, depth, activation, norm, loss, batch size, gain, loss scale, label noise.
    Source: Blackard and Dean, 1999, UCI "Covertype".
    """

    name = "covertype-mlp"
    dataset = "covertype"
    architecture = "mlp"
    data_files = (COVERTYPE,)
    settings: ClassVar[Settings] = _settings("cross-entropy", CLASS_LOSSES)

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` with seven outputs."""
        data = covertype()
        return _mlp(config, data), data
