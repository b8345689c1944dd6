"""The noisy quadratic as an environment: exact episodes, and an optimum that is known.

Model and short-horizon bias: Wu, Ren, Liao and Grosse, 2018, arXiv:1803.02021.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ..core.controls import CONTROLS
from ..core.errors import ConfigurationError
from ..core.types import BoolArray, FloatArray, IntArray
from ..policy.small import SmallPolicy, play
from .choices import checked
from .quadratic_pool import Problems, advance, excess_loss, get_problems, greedy
from .registry import Split

STEPS, INTERVAL = 250, 5
#: Hidden starting rate: 10 to this range, over max(h); one decade.
START = (-0.75, 0.25)
#: Problems of each split; other splits are other seeds.
SIZES: dict[Split, int] = {"train": 512, "valid": 128, "test": 128}
RATE = CONTROLS["learning_rate"]
#: Observations and rewards lie in [-BOUND, BOUND].
BOUND = 5.0
#: The expert keeps this distance from 2 / max(h), where a constant rate diverges: the optimum goes
#: up to 1.99, and choices are a tenth apart.
EXPERT_SHARPNESS = 1.8
#: A run has diverged when its excess loss is this many times its first; it then stands still.
DIVERGED = 1e6

#: What is observed, in order. All of it is unitless: scaling the loss or x changes nothing.
#: A job measures all of it too (here it is the expectation): the loss, the learning rate, the
#: gradient's norm and the variance between batches; by one Hessian-vector product each the
#: curvature along the gradient and along its noise; by some ten of them (power iteration) the
#: sharpness, the largest curvature. The loss is the quadratic itself, with noise on the gradient
#: alone (Zhang et al., 2019, arXiv:1907.04164, section 3; the moments are the same): a policy may
#: learn that its lowest value is 0, which holds only for a job that can fit its data.
OBSERVATIONS: tuple[str, ...] = (
    "progress",
    "log10 loss / first loss",
    "log loss / previous loss",
    "log share of the loss that a step gains",
    "log share of the loss that a step's noise costs",
    "log10 gradient noise / gradient",
    "lr * sharpness",
    "log lr * curvature along the gradient",
    "log lr * curvature along the noise",
    "log greedy lr / lr",
    "log10 gradient / first gradient",
    "log gradient / previous gradient",
    "cosine of successive gradients",
    "log10 lr / start",
    "last move",
)

#: What later steps depend on.
STATE: tuple[str, ...] = (
    "_seed", "_count", "_rows", "_time", "_a", "_lr", "_start_lr", "_move", "_window_loss",
    "_first_loss", "_first", "_previous", "_cosine",
)  # fmt: skip


class NoisyQuadraticEnv(VectorEnv[FloatArray, IntArray, Any]):
    """Steer the learning rate of SGD on many noisy quadratics at once.

    A run is 250 steps, in 50 intervals of 5; the first interval is run at a hidden starting rate
    (a decade around 0.56 / max(h)), then each of 49 decisions multiplies the rate. Runs of a bucket
    share the problem and differ in their start.

    Action: `Discrete`, the factors of `core.controls`' learning rate.
    Observation: `OBSERVATIONS`, in [-5, 5]; all finite.
    Reward: 0, and at an episode's end -log(last expected excess loss / the optimal schedule's), in
    [-5, 5].
    Terminated: at the end of the run, all rows together; a diverged run waits for the others.
    Truncated: never.

    With `horizon` H < 250 episodes are windows of H steps of a run: an episode ends at every
    multiple of H steps, its reward is -log(loss / loss at the window's start), and the next episode
    goes on from there, to the run's end. So the policy is trained to make the loss low H steps
    ahead, from everywhere in a run; at H = 1 that is the greedy schedule (Wu et al., section 2.2),
    at H = 250 the whole objective. Observations are the same as ever.

    Info: "learning_rate" `(K,)` of the interval that ended and "excess_loss" `(K,)` after it, also
    from `reset`; at an episode's end "final_obs", "final_loss" and "task".

    Args:
        problems: To draw from.
        n_envs: Runs at once.
        seed: Of problems and starts; same seed, same runs.
        runs_per_bucket: Runs that share a problem; divides `n_envs`.
        horizon: Steps of an episode; a multiple of 5 that divides 250.
        in_order: Take the problems in their order instead of drawing them.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012
    observation_names = OBSERVATIONS
    action_choices = {"learning_rate factor": RATE.choices}  # noqa: RUF012
    _lr: FloatArray
    _window_loss: FloatArray
    _time: int

    def __init__(
        self,
        problems: Problems,
        n_envs: int,
        seed: int = 0,
        *,
        runs_per_bucket: int = 1,
        horizon: int = STEPS,
        in_order: bool = False,
    ) -> None:
        if horizon % INTERVAL or STEPS % horizon or not INTERVAL <= horizon <= STEPS:
            raise ConfigurationError(
                f"horizon={horizon}: it must be a multiple of {INTERVAL} that divides {STEPS}."
            )
        if n_envs < 1 or runs_per_bucket < 1 or n_envs % runs_per_bucket:
            raise ConfigurationError(
                f"n_envs={n_envs}, runs_per_bucket={runs_per_bucket}: both must be >= 1 and the "
                "second must divide the first."
            )
        self.problems, self.horizon, self.in_order = problems, horizon, in_order
        self.num_envs, self.runs_per_bucket = n_envs, runs_per_bucket
        self.n_buckets = n_envs // runs_per_bucket
        self.single_observation_space = gym.spaces.Box(
            -BOUND, BOUND, (len(OBSERVATIONS),), np.float32
        )
        self.single_action_space = gym.spaces.Discrete(len(RATE.choices))
        self.observation_space = batch_space(self.single_observation_space, n_envs)
        self.action_space = batch_space(self.single_action_space, n_envs)
        self._seed, self._count = seed, 0
        self._begin()
        self._count = 0  # `reset` makes these runs anew

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Draw new runs everywhere and make their first interval at the hidden rate."""
        super().reset(seed=seed)
        if seed is not None:
            self._seed, self._count = seed, 0
        self._begin()
        return self._observe(), self._told()

    def step(
        self, actions: IntArray
    ) -> tuple[FloatArray, FloatArray, BoolArray, BoolArray, dict[str, Any]]:
        """Multiply each rate and make one interval.

        Raises:
            ControlError: Not one action per run, or a choice that there is not.
        """
        delta = RATE.deltas[checked(actions, self.action_space)]
        self._lr = np.clip(self._lr * np.exp(delta), 1e-6 * self._start_lr, 1e6 * self._start_lr)
        self._move = delta
        self._interval()
        loss = self._loss()
        ended = self._time % self.horizon == 0
        over = self._time == STEPS
        reward = np.zeros(self.num_envs)
        info = self._told()
        observation = self._observe()
        if ended:
            full = self.horizon == STEPS
            reference = self._problem.optimal_loss if full else self._window_loss
            reward = np.clip(-np.log(loss / reference), -BOUND, BOUND)
            info["final_obs"], info["final_loss"] = observation, loss
            info["task"] = np.full(self.num_envs, "noisy-quadratic", object)
            self._window_loss = loss
        if over:
            self._begin()
            observation = self._observe()
        flags = np.full(self.num_envs, ended)
        return observation, reward, flags, np.zeros_like(flags), info

    def expert(self) -> IntArray:
        """`(K,)` the choices that come nearest to the optimal schedule's next interval."""
        cap = EXPERT_SHARPNESS / self._problem.curvature.max(axis=1)
        wanted = self._problem.optimal_lrs[:, self._time : self._time + INTERVAL]
        wanted = np.clip(wanted, 1e-6 * cap[:, None], cap[:, None])
        gap = np.log(wanted).mean(axis=1) - np.log(self._lr)
        return np.asarray(np.abs(gap[:, None] - RATE.deltas).argmin(axis=1))

    def state(self) -> dict[str, Any]:
        """Everything that later steps depend on, picklable."""
        return {name: getattr(self, name) for name in STATE}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken; the problems must be the same."""
        for name in STATE:  # arrays are replaced, never written into
            setattr(self, name, state[name])
        self._problem = self.problems.take(self._rows)

    def _begin(self) -> None:
        rng = np.random.default_rng([self._seed, self._count])
        n = len(self.problems)
        if self.in_order:
            buckets = (self._count * self.n_buckets + np.arange(self.n_buckets)) % n
        else:
            buckets = rng.integers(0, n, self.n_buckets)
        self._count += 1
        self._rows = np.repeat(buckets, self.runs_per_bucket)
        self._problem = self.problems.take(self._rows)
        h = self._problem.curvature
        self._start_lr = 10.0 ** rng.uniform(*START, self.num_envs) / h.max(axis=1)
        self._lr, self._move = self._start_lr, np.zeros(self.num_envs)
        self._a, self._time = self._problem.start, 0
        self._window_loss = self._first_loss = self._loss()
        self._first = self._previous = self._measured()
        self._interval()

    def _interval(self) -> None:
        """Five steps at the present rates."""
        problem, h = self._problem, self._problem.curvature
        self._previous = self._measured()
        going = self._loss() < DIVERGED * self._first_loss
        lr = np.where(going, self._lr, 0.0)
        for _ in range(INTERVAL):
            before, used = self._a, lr
            self._a = advance(before, lr, h, problem.variance)
            # the step that leads beyond is taken, and no other
            lr = np.where(self._loss() < DIVERGED * self._first_loss, lr, 0.0)
        self._time += INTERVAL
        # of the mean gradients before and after the last step: E[x x'] = (1 - lr h) E[x**2]
        h2 = h * h
        inner = (h2 * (1.0 - used[:, None] * h) * before).sum(axis=1)
        self._cosine = inner / np.sqrt((h2 * before).sum(axis=1) * (h2 * self._a).sum(axis=1))

    def _told(self) -> dict[str, Any]:
        return {"learning_rate": self._lr, "excess_loss": self._loss()}

    def _loss(self) -> FloatArray:
        return excess_loss(self._a, self._problem.curvature)

    def _measured(self) -> FloatArray:
        """`(2, K)` log of the loss and of the squared gradient norm."""
        h = self._problem.curvature
        loss = self._loss()
        return np.asarray(np.log(np.stack([loss, np.einsum("kd,kd->k", h * h, self._a)])))

    def _observe(self) -> FloatArray:
        h, variance = self._problem.curvature, self._problem.variance
        h2 = h * h
        gradient, noise = (np.einsum("kd,kd->k", h2, x) for x in (self._a, variance))
        bent, bent_noise = (np.einsum("kd,kd->k", h2 * h, x) for x in (self._a, variance))
        measured = self._measured()
        loss = np.exp(measured[0])
        since_first, since_previous = measured - self._first, measured - self._previous
        decade = np.log(10.0)
        columns = (
            np.full(self.num_envs, 2.0 * self._time / STEPS - 1.0),
            since_first[0] / decade,
            since_previous[0] * 2.0,
            np.log(self._lr * gradient / loss) / 2.0,
            np.log(0.5 * self._lr**2 * bent_noise / loss) / 2.0,
            np.log(noise / gradient) / (2.0 * decade),
            2.0 * (self._lr * h.max(axis=1) - 1.0),
            np.log(self._lr * bent / gradient),
            np.log(self._lr * bent_noise / noise),
            np.log(gradient / (self._lr * (bent + bent_noise))),
            since_first[1] / (2.0 * decade),
            since_previous[1],
            self._cosine,
            np.log(self._lr / self._start_lr) / decade,
            self._move / RATE.max_delta,
        )
        return np.asarray(np.clip(np.stack(columns, axis=1), -BOUND, BOUND), np.float32)


def make_env(
    split: Split,
    n_envs: int,
    seed: int,
    horizon: int = STEPS,
    runs_per_bucket: int = 8,
    problems: int | None = None,
) -> NoisyQuadraticEnv:
    """The environment on a split: drawn for "train", else every problem in turn.

    Args:
        split: Which problems.
        n_envs: Runs at once.
        seed: Of problems and starts.
        horizon: Steps of an episode.
        runs_per_bucket: Training runs that share a problem.
        problems: Size of the split; as in `SIZES` by default.
    """
    pool = get_problems(list(SIZES).index(split), problems or SIZES[split], STEPS)
    if split == "train":
        return NoisyQuadraticEnv(
            pool, n_envs, seed, runs_per_bucket=runs_per_bucket, horizon=horizon
        )
    return NoisyQuadraticEnv(pool, n_envs, seed, horizon=horizon, in_order=True)


def evaluate(policy: SmallPolicy) -> str:
    """The table of a policy's final losses on the split "test", against optimal and greedy."""
    horizon = policy.training.get("config", {}).get("env", {}).get("horizon", STEPS)
    env = make_env("test", SIZES["test"], 0, horizon)
    _, infos = play(policy, env, STEPS // horizon)
    problems = env.problems
    _, losses = greedy(problems.curvature, problems.start, problems.variance, STEPS)
    rows = [("policy", infos[-1]["excess_loss"]), ("greedy", losses[:, -1])]
    head = f"final loss / optimal, {len(problems)} unseen spectra"
    width = len(head)
    lines = [f"{head}  {'geo. mean':>9}  {'median':>9}  {'worst':>9}"]
    for name, loss in rows:
        ratio = loss / problems.optimal_loss
        mean = np.exp(np.log(ratio).mean())
        cells = (f"{value:>9.4g}" for value in (mean, np.median(ratio), ratio.max()))
        lines.append("  ".join([f"{name:<{width}}", *cells]))
    return "\n".join(lines)
