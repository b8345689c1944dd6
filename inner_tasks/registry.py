"""Every family by name; a new one is one line in `FAMILIES`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Final

from ..core.errors import ConfigurationError, UnknownNameError
from .base import InnerTask, TaskFamily
from .data import available

# Name: "module:class" inside this package, imported when first asked for.
FAMILIES: Final[dict[str, str]] = {
    "noisy-quadratic": "noisy_quadratic:NoisyQuadraticFamily",
    "digits-mlp": "digits:DigitsMLP",
    "digits-cnn": "digits:DigitsCNN",
    "digits-vit": "digits:DigitsViT",
    "digits-autoencoder": "digits:DigitsAutoencoder",
    "tabular-mlp": "tabular:TabularMLP",
    "teacher-regression": "synthetic:TeacherRegression",
    "parity-rnn": "synthetic:ParityRNN",
    "addition-rnn": "synthetic:AdditionRNN",
    "recommender": "recommender:Recommender",
    "char-mlp": "language:CharMLP",
    "char-gru": "language:CharGRU",
    "char-transformer": "language:CharTransformer",
    "mnist-mlp": "images:MnistMLP",
    "mnist-cnn": "images:MnistCNN",
    "fashion-mlp": "images:FashionMLP",
    "fashion-cnn": "images:FashionCNN",
    "cifar-cnn": "images:CifarCNN",
    "shakespeare-gru": "language:ShakespeareGRU",
    "shakespeare-transformer": "language:ShakespeareTransformer",
    "wikitext-mlp": "language:WikitextMLP",
    "wikitext-gru": "language:WikitextGRU",
    "california-mlp": "tabular:CaliforniaMLP",
    "adult-mlp": "tabular:AdultMLP",
    "covertype-mlp": "tabular:CovertypeMLP",
}


def get_family(name: str) -> TaskFamily:
    """The family of this name; its data need not be there yet.

    Raises:
        UnknownNameError: No family has this name.
    """
    if name not in FAMILIES:
        raise UnknownNameError("task family", name, FAMILIES)
    module, attribute = FAMILIES[name].split(":")
    family = getattr(importlib.import_module(f".{module}", __package__), attribute)()
    assert isinstance(family, TaskFamily)
    return family


def get_task(name: str) -> InnerTask:
    """The task of this name: "digits-mlp/17" is `sample(17)`, "digits-mlp" is `default()`.

    Raises:
        UnknownNameError: No family has this name.
        ConfigurationError: The name is no text, or what follows the slash is no seed.
        MissingDataError: The family's data are not there.
    """
    if not isinstance(name, str):
        raise ConfigurationError(
            f"An inner task is asked for by its name, and {name!r} is none; a family's task with "
            "seed 3 is 'digits-mlp/3'."
        )
    family_name, slash, seed = name.partition("/")
    family = get_family(family_name)
    if not slash:
        return family.default()
    if not (seed.isascii() and seed.isdigit()):
        raise ConfigurationError(
            f"Inner task {name!r}: the seed is {seed!r}; it must be a whole number of at least 0, "
            f"as in '{family_name}/17'. Leave it out for the family's default task."
        )
    return family.sample(int(seed))


def families(*, available_only: bool = False) -> Iterator[TaskFamily]:
    """Every family in the order of registration; on request only those whose data are there."""
    for name in FAMILIES:
        family = get_family(name)
        if not available_only or available(family.data_files):
            yield family
