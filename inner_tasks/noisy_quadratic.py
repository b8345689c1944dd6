"""The noisy quadratic model: the one task whose expected loss is known exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..core.errors import ConfigurationError
from .base import Batch, InnerTask, Params, Split, TaskFamily
from .data import generator
from .nets import Weights
from .quadratic_dynamics import FloatArray, Moments, start
from .quadratic_schedules import Schedule, expected_losses, greedy_schedule, optimal_schedule
from .supervised import Config, digest

N_DRAWS = 4096


class NoisyQuadratic(InnerTask):
    r"""loss = mean over the batch of sum(h * (x - c)**2) / 2, where c ~ N(0, noise**2).

    Data: 4,096 optima c drawn once; each column has exactly mean 0 and variance noise**2, so
    batches drawn from them have exactly the expectation that `evaluate` answers with:

        E[loss(x)] = sum(h * (x**2 + noise**2)) / 2

    Model: one vector "x", or one tensor of `shape`; init is N(init_mean, init_std**2).
    Source: Zhang et al., 2019, arXiv:1907.04164, section 3 (their noise is on the gradient,
    N(0, h): here noise = h**-0.5 gives that).

    SGD with momentum needs no run: `expected_loss` follows its moments exactly, in float64, and
    `greedy_schedule` and `optimal_schedule` choose by it. The moments are those of

        v' = mu v - lr h (x - c)        x' = x + v'        c ~ (0, noise**2 / batch_size)

    from rest, with init_std**2 as the first variance: a step's gradient is the mean over a batch
    drawn afresh, with replacement. Losses of schedules are EXCESS losses, sum(h E[x**2]) / 2:
    `evaluate` minus `irreducible_loss`, which no rate changes. With batch_size 1 and init_std 0
    this is the noisy quadratic of Wu et al., 2018, arXiv:1803.02021.

    Args:
        curvature: h, one positive value per coordinate.
        noise: Standard deviation of the optimum, one value or one per coordinate; above 0.
        init_mean: Mean of the initial point, one value or one per coordinate.
        init_std: Standard deviation of the initial point.
        shape: Shape of "x" where matrix-shaped parameters are wanted; its size is len(curvature).
        batch_size: Optima per step.
        seed: Of the table of optima.
        name: The task's name.

    Raises:
        ConfigurationError: A value is out of its range or not finite, or shapes do not fit.

    Attributes:
        curvature: h, (d,), float64.
        step_noise: Standard deviation of the mean of a batch's optima, noise / sqrt(batch_size).
        irreducible_loss: sum(h noise**2) / 2, the loss at the best x.
    """

    family = "noisy-quadratic"

    def __init__(
        self,
        curvature: Sequence[float] | np.ndarray[Any, Any],
        noise: float | Sequence[float] | np.ndarray[Any, Any] = 0.1,
        init_mean: float | Sequence[float] | np.ndarray[Any, Any] = 1.0,
        *,
        init_std: float = 0.0,
        shape: tuple[int, ...] | None = None,
        batch_size: int = 1,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        h = np.asarray(curvature, dtype=np.float64)
        given = {"noise": np.asarray(noise, float), "init_mean": np.asarray(init_mean, float)}
        for key, value in given.items():
            if value.shape not in ((), h.shape):
                raise ConfigurationError(
                    f"{key} has shape {value.shape} and curvature {h.shape}; give one value, or "
                    "one per coordinate."
                )
        noise, mean = (np.broadcast_to(value, h.shape) for value in given.values())
        if h.ndim != 1 or h.size == 0 or not (h > 0).all() or not (noise > 0).all():
            raise ConfigurationError(
                f"curvature has shape {h.shape}, smallest value {h.min(initial=np.inf):g}, and "
                f"noise {noise.min(initial=np.inf):g}; both must be vectors of values above 0."
            )
        if not np.isfinite([h, noise, mean, np.full_like(h, init_std)]).all() or init_std < 0.0:
            raise ConfigurationError(
                f"init_std is {init_std!r}, the largest curvature {h.max():g}, noise "
                f"{noise.max():g} and init_mean {np.abs(mean).max():g}; all must be finite, and "
                "init_std at least 0."
            )
        if batch_size < 1:
            raise ConfigurationError(f"batch_size is {batch_size!r}; it must be at least 1.")
        if shape is not None and math.prod(shape) != h.size:
            raise ConfigurationError(f"shape is {shape}; its size must be {h.size}.")
        self.batch_size = batch_size
        self.shape = shape or (h.size,)
        self.config: Config = {
            "curvature": h.tolist(),
            "noise": noise.tolist(),
            "init_mean": mean.tolist(),
            "init_std": float(init_std),
            "shape": list(self.shape),
            "batch_size": batch_size,
            "seed": seed,
        }
        self.name = name or f"{self.family}@{digest(self.config)}"
        self._h = torch.tensor(h, dtype=torch.float32)
        self._noise = torch.tensor(noise, dtype=torch.float32)
        self._mean = torch.tensor(mean, dtype=torch.float32)
        self._init_std = float(init_std)
        self.curvature: FloatArray = h
        self.step_noise: FloatArray = noise / math.sqrt(batch_size)
        self.irreducible_loss = float(0.5 * np.sum(h * noise**2))
        self._start = start(mean, np.full_like(h, init_std))
        self._splits: dict[Split, Batch] = {
            "train": (_optima(noise, N_DRAWS, "train", seed),),
            # `evaluate` reads none of these: they are the rows that the contract asks for.
            "inner_valid": (_optima(noise, 16, "inner_valid", seed),),
            "outer_valid": (_optima(noise, 16, "outer_valid", seed),),
            "test": (_optima(noise, 16, "test", seed),),
        }

    def __repr__(self) -> str:
        return f"NoisyQuadratic({self.name!r}, dim={self._h.numel()})"

    def init(self, generator: torch.Generator) -> Params:
        """{"x": init_mean + init_std * normal}."""
        draw = torch.randn(self._h.shape, generator=generator)
        return {"x": (self._mean + self._init_std * draw).reshape(self.shape)}

    def loss(self, params: Weights, batch: Batch) -> Tensor:
        """Mean over the optima (N, dim) of the batch."""
        (optima,) = batch
        x = params["x"].reshape(-1)
        return 0.5 * ((x - optima).square() @ self._h.to(x.device)).mean()

    def evaluate(self, params: Weights, batch: Batch) -> Tensor:
        """The exact expectation of the loss; the batch is not read."""
        x = params["x"].reshape(-1)
        second_moment = x.square() + self._noise.to(x.device).square()
        return 0.5 * (self._h.to(x.device) * second_moment).sum()

    def arrays(self, split: Split) -> Batch:
        """The optima, (N, dim)."""
        return self._splits[split]

    def moments(self) -> Moments[FloatArray]:
        """Moments (d,) of position and velocity at the start, for `quadratic_dynamics`."""
        return self._start

    def expected_losses(self, lrs: ArrayLike, momenta: ArrayLike = 0.0) -> FloatArray:
        """Expected excess loss before the first step and after each one.

        Args:
            lrs: Learning rates (T,) or (T, K): one schedule, or K of them.
            momenta: Momenta in the same shape, or one for all.

        Returns:
            (T + 1,) or (T + 1, K).

        Raises:
            ConfigurationError: The shapes do not fit each other.
        """
        rates = np.asarray(lrs, dtype=np.float64)
        mu = np.asarray(momenta, dtype=np.float64)
        if rates.ndim not in (1, 2) or mu.shape not in ((), rates.shape):
            raise ConfigurationError(
                f"lrs has shape {rates.shape} and momenta {mu.shape}; lrs must be (T,) or (T, K), "
                "momenta the same or one number."
            )
        return expected_losses(self._start, rates, mu, self.curvature, self.step_noise)

    def expected_loss(self, lrs: ArrayLike, momenta: ArrayLike = 0.0) -> float:
        """Expected excess loss after the last step of a schedule (T,); see `expected_losses`.

        Raises:
            ConfigurationError: `lrs` is not (T,), or momenta do not fit.
        """
        if np.ndim(lrs) != 1:
            raise ConfigurationError(
                f"lrs has shape {np.shape(lrs)}; it must be (T,). For several schedules at once "
                "call expected_losses with (T, K)."
            )
        return float(self.expected_losses(lrs, momenta)[-1])

    def greedy_schedule(self, n_steps: int, momentum: float | None = 0.0) -> Schedule:
        """Rates (and momenta, if `None`) of the smallest expected loss one step ahead.

        See `quadratic_schedules.greedy_schedule`.
        """
        return greedy_schedule(self._start, self.curvature, self.step_noise, n_steps, momentum)

    def optimal_schedule(
        self, n_steps: int, momentum: float | None = 0.0, *, max_lr: float | None = None
    ) -> Schedule:
        """Rates (and momenta, if `None`) of the smallest expected loss after the last step.

        See `quadratic_schedules.optimal_schedule`, also for `max_lr`.
        """
        return optimal_schedule(
            self._start, self.curvature, self.step_noise, n_steps, momentum, max_lr=max_lr
        )


def _optima(noise: np.ndarray[Any, Any], n: int, split: str, seed: int) -> Tensor:
    draws = generator("noisy-quadratic", split, seed).normal(size=(n, noise.size))
    draws -= draws.mean(0)
    draws *= noise / draws.std(0)
    return torch.from_numpy(draws.astype(np.float32))


class NoisyQuadraticFamily(TaskFamily):
    """Noisy quadratics with power-law curvature.

    Data: random optima, see `NoisyQuadratic`.
    Model: one vector of 16 to 256; curvature h_i = scale * i**-power, ratio up to 1,000.
    Drawn: dim, ratio of largest to smallest curvature (1 to 1,000), scale of the loss (0.1 to 10),
    noise (0.01 to 1), distance of the start (0.3 to 3), batch size.
    Source: Zhang et al., 2019, arXiv:1907.04164.
    """

    name = "noisy-quadratic"
    dataset = "noisy-quadratic"
    architecture = "quadratic"

    def draw(self, seed: int) -> Config:
        """The configuration of `sample(seed)`."""
        rng = generator(self.name, seed)

        def log_uniform(low: float, high: float) -> float:
            return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))), 4)

        return {
            "condition": log_uniform(1.0, 1000.0),
            "scale": log_uniform(0.1, 10.0),
            "noise": log_uniform(0.01, 1.0),
            "distance": log_uniform(0.3, 3.0),
            "dim": (16, 32, 64, 128, 256)[int(rng.integers(5))],
            "batch_size": (1, 4, 16, 64)[int(rng.integers(4))],
            "seed": int(rng.integers(2**31)),
        }

    def plain_config(self) -> Config:
        """The configuration of `default()`."""
        return {
            "condition": 100.0,
            "scale": 1.0,
            "noise": 0.1,
            "distance": 1.0,
            "dim": 32,
            "batch_size": 16,
            "seed": 0,
        }

    def sample(self, seed: int) -> NoisyQuadratic:
        """The member drawn with this seed."""
        return self.build(self.draw(seed), f"{self.name}/{seed}")

    def default(self) -> NoisyQuadratic:
        """32 dimensions, condition 100, noise 0.1."""
        return self.build({}, self.name)

    def complete(self, config: Mapping[str, Any]) -> Config:
        """The configuration of `build(config)`.

        Raises:
            ConfigurationError: An unknown key, or a value that cannot be built.
        """
        complete = self.plain_config()
        unknown = sorted(set(config) - set(complete))
        if unknown:
            raise ConfigurationError(
                f"{self.name} has no setting {', '.join(unknown)}. It has: {', '.join(complete)}."
            )
        complete.update(config)
        for key, plain in self.plain_config().items():
            value, low = complete[key], 0 if key in ("noise", "distance", "seed") else 1e-12
            kind = int if isinstance(plain, int) else (int, float)
            if isinstance(value, bool) or not isinstance(value, kind) or not low <= value < np.inf:
                wanted = "an integer" if kind is int else "a finite number"
                least = "of at least 0" if low == 0 else "above 0"
                raise ConfigurationError(f"{key} is {value!r}; it must be {wanted} {least}.")
        return complete

    def build(self, config: Mapping[str, Any], name: str | None = None) -> NoisyQuadratic:
        """The member with this configuration; keys left out are as in `default()`."""
        complete = self.complete(config)
        dim, condition = complete["dim"], complete["condition"]
        power = math.log(condition) / math.log(dim) if dim > 1 else 0.0
        h = complete["scale"] * np.arange(1, dim + 1, dtype=np.float64) ** -power
        task = NoisyQuadratic(
            h,
            complete["noise"],
            complete["distance"],
            init_std=0.1 * complete["distance"],
            batch_size=complete["batch_size"],
            seed=complete["seed"],
            name=name or f"{self.name}@{digest(complete)}",
        )
        task.config = complete
        return task
