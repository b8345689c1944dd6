"""Supervised tasks: a net, a data set, a loss, and how a family draws them."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from ..core.errors import ConfigurationError, UnknownNameError
from .base import Batch, InnerTask, Params, Scoring, Split, TaskFamily
from .data import Dataset, generator
from .losses import LOSSES
from .nets import ACTIVATIONS, Net, Weights

Config = dict[str, Any]
Settings = dict[str, tuple[Any, tuple[Any, ...]]]

# Parity and addition can be solved to a cross-entropy of exactly 0 in float32, whose logarithm
# no reward survives. Added to every evaluation, far below what noise-free data leave.
EVALUATION_FLOOR: Final = 1e-4

ALL_ACTIVATIONS: Final = tuple(ACTIVATIONS)
NORMS: Final = ("none", "none", "layer")
BATCH_SIZES: Final = (16, 32, 64, 128)
CLASS_LOSSES: Final = ("cross-entropy",) * 4 + ("squared-error",)
VALUE_LOSSES: Final = ("squared-error", "squared-error", "huber")


class SupervisedTask(InnerTask):
    """One net, one data set, one loss; `config` says which.

    `loss` is multiplied by config["loss_scale"] and sees the train targets with their noise;
    `evaluate` is the same loss without either, plus 1e-4.

    With config["reparam"] other than 1, each of the net's tensors is trained as w / s and used as
    s * (w / s): the function at the start is the same, but the optimizer sees weights and gradients
    of another scale. s is config["reparam"] times a factor per tensor, log-uniform in 0.5 to 2.

    Attributes:
        config: Everything that was drawn; JSON-able, and enough to build the task again.
        net: Initialises and computes the outputs.
    """

    def __init__(
        self, name: str, family: str, config: Mapping[str, Any], net: Net, data: Dataset
    ) -> None:
        self.name = name
        self.family = family
        self.config: Config = dict(config)
        self.batch_size = int(config["batch_size"])
        self.net = net
        self.loss_scale = float(config["loss_scale"])
        self._weight_scales = _weight_scales(net, float(config["reparam"]), config["noise_seed"])
        criteria = LOSSES[data.kind]
        if config.get("loss") not in criteria:
            raise UnknownNameError(
                f"loss for {data.kind} targets", str(config.get("loss")), criteria
            )
        self._criterion = criteria[config["loss"]]
        self._splits: dict[Split, Batch] = dict(data.splits)
        inputs, targets = data.splits["train"]
        noise = float(config["label_noise"])
        if noise > 0.0:
            noisy = _noisy(targets, noise, data.n_outputs, int(config["noise_seed"]))
            self._splits["train"] = (inputs, noisy)

    def __repr__(self) -> str:
        drawn = ", ".join(f"{key}={value!r}" for key, value in self.config.items())
        return f"{type(self).__name__}({self.name!r}, {drawn})"

    def describe(self) -> str:
        """The drawn configuration as one line of JSON with sorted keys; made for hashing."""
        return json.dumps({"family": self.family, **self.config}, sort_keys=True)

    def init(self, generator: torch.Generator) -> Params:
        """The net's initial parameters, each divided by its scale."""
        params = self.net.init(generator)
        return {**params, **{name: params[name] / s for name, s in self._weight_scales.items()}}

    def loss(self, params: Weights, batch: Batch) -> Tensor:
        """Mean train loss of one batch (inputs, targets), scaled."""
        inputs, targets = batch
        return self.loss_scale * self._criterion(self.net(self._weights(params), inputs), targets)

    def evaluate(self, params: Weights, batch: Batch) -> Tensor:
        """Mean loss of one batch, unscaled, always above 1e-4."""
        inputs, targets = batch
        return self._criterion(self.net(self._weights(params), inputs), targets) + EVALUATION_FLOOR

    def arrays(self, split: Split) -> Batch:
        """(inputs, targets) of a split."""
        return self._splits[split]

    def _weights(self, params: Weights) -> Weights:
        if not self._weight_scales:
            return params
        return {**params, **{name: s * params[name] for name, s in self._weight_scales.items()}}


def _weight_scales(net: Net, reparam: float, seed: int) -> dict[str, float]:
    """By tensor, what multiplies it; nothing where `reparam` is 1."""
    if reparam == 1.0:
        return {}
    names = net.init(torch.Generator().manual_seed(0))
    rng = generator("reparam", seed)
    return {name: reparam * float(np.exp(rng.uniform(-np.log(2), np.log(2)))) for name in names}


def _noisy(targets: Tensor, noise: float, n_classes: int, seed: int) -> Tensor:
    """Targets with noise that is drawn once and stays.

    Classes: a share `noise` of them becomes another class, each with the same probability (two
    classes: flips). Values: normal noise of standard deviation `noise` is added.
    """
    rng = generator("label noise", seed)
    shape = tuple(targets.shape)
    if targets.is_floating_point():
        return targets + torch.from_numpy((noise * rng.normal(size=shape)).astype(np.float32))
    n_classes = max(n_classes, 2)  # a single logit stands for two classes
    other = (targets + torch.from_numpy(rng.integers(1, n_classes, shape))) % n_classes
    return torch.where(torch.from_numpy(rng.random(shape) < noise), other, targets)


#: Settings that take no values but those that are drawn: what data or nets are cut by, so that of
#: others nothing can be built, or another task than the setting says.
LISTED: Final = frozenset(
    {"features", "grid", "literals", "marks", "pieces", "problem", "stones", "walls"}
)
#: Least and most of settings that take any value between: of more classes, a longer window or a
#: greater share there would be no such data.
LIMITS: Final[Mapping[str, tuple[float, float]]] = {
    "classes": (2, 64),
    "context": (1, 1024),
    "focus": (0.0, 1.0),
}


class SupervisedFamily(TaskFamily):
    """A family whose members differ by a flat configuration.

    Every family draws `init_gain` (log-uniform 0.5 to 2), `loss_scale` (log-uniform 0.1 to 10),
    `label_noise` (none in 60% of the draws, else up to 0.2) and `reparam`, the scale of the trained
    weights (1 in 60% of the draws, else log-uniform 0.1 to 10); the rest is in `settings`.
    Reparametrisation follows Metz et al., 2022, arXiv:2211.09760.

    Attributes:
        settings: By key, the value in `default()` and the values to draw from with equal
            probability; repeats weigh more. Append new keys at the end: their order is the order
            of the draws.
        undrawn: By key, words that `build` takes beside those in `settings`, and no draw gives.
        selection: `InnerTask.selection` of every member.
    """

    settings: ClassVar[Settings]
    undrawn: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    selection: ClassVar[Scoring] = "last"

    def settle(self, config: Config) -> Config:
        """A complete configuration with settings that contradict each other reconciled."""
        return config

    @abstractmethod
    def make(self, config: Config) -> tuple[Net, Dataset]:
        """The net and the data of a complete, checked configuration."""

    def sample(self, seed: int) -> SupervisedTask:
        """The member drawn with this seed by numpy's PCG64."""
        return self._task(self.draw(seed), f"{self.name}/{seed}")

    def default(self) -> SupervisedTask:
        """The plain member."""
        return self._task(self.plain_config(), self.name)

    def build(self, config: Mapping[str, Any], name: str | None = None) -> SupervisedTask:
        """The member with this configuration; keys left out are as in `default()`.

        Args:
            config: Any of the keys of `plain_config()`.
            name: The task's name; by default the family's and a digest of the configuration.

        Raises:
            ConfigurationError: An unknown key, or a value that cannot be built.
        """
        complete = self.complete(config)
        return self._task(complete, name or f"{self.name}@{digest(complete)}")

    def complete(self, config: Mapping[str, Any]) -> Config:
        """The configuration of `build(config)`, checked; reads no data.

        Raises:
            ConfigurationError: An unknown key, or a value that cannot be built.
        """
        complete = self.plain_config()
        unknown = sorted(set(config) - set(complete))
        if unknown:
            raise ConfigurationError(
                f"{self.name} has no setting {', '.join(unknown)}. It has: {', '.join(complete)}."
            )
        complete = self.settle({**complete, **config})
        self._check(complete)
        return complete

    def plain_config(self) -> Config:
        """The configuration of `default()`."""
        return {
            **{key: plain for key, (plain, _) in self.settings.items()},
            "init_gain": 1.0,
            "loss_scale": 1.0,
            "label_noise": 0.0,
            "noise_seed": 0,
            "reparam": 1.0,
        }

    def draw(self, seed: int) -> Config:
        """The configuration of `sample(seed)`."""
        rng = generator(self.name, seed)
        # Shared keys first, so that a family may gain a choice without moving them.
        gain = float(np.exp(rng.uniform(np.log(0.5), np.log(2.0))))
        scale = float(np.exp(rng.uniform(np.log(0.1), np.log(10.0))))
        clean, noise, noise_seed = rng.random() < 0.6, rng.uniform(0.0, 0.2), rng.integers(2**31)
        drawn: Config = {
            key: values[int(rng.integers(len(values)))]
            for key, (_, values) in self.settings.items()
        }
        config = {
            **drawn,
            "init_gain": round(gain, 4),
            "loss_scale": round(scale, 4),
            "label_noise": 0.0 if clean else round(float(noise), 4),
            "noise_seed": int(noise_seed),
            "reparam": _drawn_reparam(self.name, seed),
        }
        return self.settle(config)

    def _check(self, config: Config) -> None:
        for key, (_, drawn) in self.settings.items():
            value, values = config[key], (*drawn, *self.undrawn.get(key, ()))
            if (isinstance(values[0], str) or key in LISTED) and value not in values:
                allowed = ", ".join(map(str, sorted(set(values))))
                raise ConfigurationError(f"{key} is {value!r}; {self.name} allows {allowed}.")
            counts = isinstance(values[0], int) and not isinstance(values[0], bool)
            least = min(1, *values) if counts else 1
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
            if counts and not whole:
                raise ConfigurationError(f"{key} is {value!r}; it must be an integer >= {least}.")
            if isinstance(values[0], float):
                self._check_amount(key, value, may_be_nothing=key == "noise" or 0.0 in values)
            least, most = LIMITS.get(key, (-np.inf, np.inf))
            if isinstance(value, int | float) and not least <= value <= most:
                raise ConfigurationError(
                    f"{key} is {value!r}; {self.name} allows {least:g} to {most:g}."
                )
        for key in ("init_gain", "loss_scale", "label_noise", "reparam"):
            if isinstance(config[key], bool) or not isinstance(config[key], int | float):
                raise ConfigurationError(f"{key} is {config[key]!r}; it must be a number.")
        for key in ("init_gain", "loss_scale", "reparam"):
            if not 0 < config[key] < np.inf:
                raise ConfigurationError(
                    f"{key} is {config[key]!r}; it must be above 0 and finite."
                )
        if not 0 <= config["label_noise"] <= 1:
            raise ConfigurationError(
                f"label_noise is {config['label_noise']!r}; it must be in [0, 1]."
            )

    @staticmethod
    def _check_amount(key: str, value: object, *, may_be_nothing: bool) -> None:
        amount = value if isinstance(value, int | float) and not isinstance(value, bool) else -1
        if not (0 < amount < np.inf or (may_be_nothing and amount == 0)):
            least = "at least 0" if may_be_nothing else "above 0"
            raise ConfigurationError(f"{key} is {value!r}; it must be {least} and finite.")

    def _task(self, config: Config, name: str) -> SupervisedTask:
        net, data = self.make(config)
        task = SupervisedTask(name, self.name, config, net, data)
        task.selection = self.selection
        return task


def _drawn_reparam(name: str, seed: int) -> float:
    # From a generator of its own: the other settings of a seed stay what they were without it.
    rng = generator("reparam", name, seed)
    plain, scale = rng.random() < 0.6, np.exp(rng.uniform(np.log(0.1), np.log(10.0)))
    return 1.0 if plain else round(float(scale), 4)


def digest(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that name a configuration."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
