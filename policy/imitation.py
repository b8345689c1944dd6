"""Warm start: imitate the best of many random settings, from any state.

PPO from scratch spends most of its runs finding out that a starting rate was wrong. For training
tasks the answer can be had by search: per task, the settings that end lowest under the default
schedule (`find_expert`). The teacher then knows, at any moment of any run, how far each control is
from the expert's value; a policy sees only unitless statistics and learns to tell that distance
from them. Runs are steered by a mixture of teacher, policy and chance, so that labels cover the
states that the policy itself gets into (DAgger: Ross et al., 2011, arXiv:1011.0686).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..core.actions import COLUMN, N_CONTROLS
from ..core.controls import Control
from ..core.types import FloatArray
from ..env.config import EnvConfig
from ..env.episode import Episode, draw
from ..env.pool import TaskSpec
from ..env.workers import Map
from ..inner_tasks.registry import get_task
from .artifact import Policy
from .evaluate import closed_loop
from .experts import find_expert
from .export import export
from .learner import HyperparameterPolicy
from .ranges import COUNT, COUNT_OR_NONE, NOT_NEGATIVE, POSITIVE, Numbers, check_ranges

#: Prefixes of the actor's parameters in a `HyperparameterPolicy`.
ACTOR = ("lstm_actor", "mlp_extractor.policy_net", "action_net")
RANGES: dict[str, Numbers] = {
    "tasks_per_family": COUNT,
    "trials": COUNT,
    "refine": COUNT_OR_NONE,
    "top": COUNT,
    "rounds": COUNT,
    "runs": COUNT,
    "tasks": COUNT,
    "steps_power": NOT_NEGATIVE,
    "passes": COUNT,
    "learning_rate": POSITIVE,
    "hidden_share": Numbers(0.0, 1.0, below=True),
}


@dataclass(frozen=True)
class ImitationConfig:
    """How the warm start is made.

    Attributes:
        tasks_per_family: Tasks drawn from each training family for this stage alone. A teacher
            needs no frontier, so these may be many more than PPO's, and breadth is what carries
            over to tasks of other families.
        trials: Random settings tried per task.
        refine: Settings of a second search, `top` of them the best of the first and the rest drawn
            around their mean, on another seed; 0 is no such search.
        top: Best settings whose geometric mean is the expert.
        rounds: Rounds of collecting runs and fitting.
        runs: Runs collected per round and task drawn.
        tasks: Tasks drawn per round.
        steps_power: A task is drawn with weight steps ** -steps_power; 1 gives long runs the same
            share of the compute as short ones.
        passes: Passes over everything collected, after each round.
        learning_rate: Of Adam in the fit.
        hidden_share: Share of its features that each run hides from the actor in the fit, drawn
            anew for each pass (dropout of inputs, Srivastava et al., 2014). What one feature says
            of a family is not what it says of the next: on families left out, a policy that had to
            do without some of them is nearer to the teacher.
    """

    tasks_per_family: int = 6
    trials: int = 64
    refine: int = 0
    top: int = 4
    rounds: int = 36
    runs: int = 24
    tasks: int = 10
    steps_power: float = 1.0
    passes: int = 2
    learning_rate: float = 2e-3
    hidden_share: float = 0.5

    def __post_init__(self) -> None:
        check_ranges(self, RANGES)


def teacher(episode: Episode, expert: FloatArray) -> FloatArray:
    """Deltas `(K, all controls)` that lead to the expert's values, schedule and feedback kept.

    Feedback goes on under whatever is chosen, and no feature shows it: a label that undid it would
    ask for what cannot be seen.
    """
    out = np.zeros((episode.n_runs, N_CONTROLS))
    kept = {"learning_rate": episode.situation().schedule, "weight_decay": episode.fed}
    for control in episode.config.controls:
        j = COLUMN[control.name]
        gap = control.distance(np.full(episode.n_runs, expert[j]), episode.values[:, j])
        out[:, j] = gap + kept.get(control.name, 0.0)
    return out


def two_hot(gap: FloatArray, control: Control) -> FloatArray:
    """Probabilities over a control's choices whose mean delta is `gap`: `(K, choices)`.

    The two choices around the gap share the weight, so that a policy which answers with the mean
    delta (selection "mean") answers with the teacher's expected move. Beyond the largest move, it.
    """
    order = np.argsort(control.deltas)
    deltas = control.deltas[order]
    clipped = np.clip(gap, deltas[0], deltas[-1])
    upper = np.searchsorted(deltas, clipped).clip(1, len(deltas) - 1)
    weight = (clipped - deltas[upper - 1]) / (deltas[upper] - deltas[upper - 1])
    out = np.zeros((len(gap), len(deltas)))
    rows = np.arange(len(gap))
    out[rows, order[upper]] = weight
    out[rows, order[upper - 1]] += 1.0 - weight
    return out


def actor_logits(policy: HyperparameterPolicy, observation: Tensor) -> Tensor:
    """Logits of whole episodes from their start: `(T, K, F)` to `(T, K, sum of choices)`."""
    output, _ = policy.lstm_actor(observation)
    logits: Tensor = policy.action_net(policy.mlp_extractor.forward_actor(output))
    return logits


def imitate(
    policy: HyperparameterPolicy,
    specs: Sequence[TaskSpec],
    config: EnvConfig,
    imitation: ImitationConfig,
    *,
    seed: int = 0,
    each: Map = map,
    progress: Callable[[str, int, int, float], None] | None = None,
) -> list[float]:
    """Fit the actor to the teacher, in place; returns the loss after each round.

    Args:
        policy: Whose actor is fitted; the critic is left alone.
        specs: Training tasks.
        config: Optimizer, schedule, controls.
        imitation: Sizes.
        seed: Of everything that is drawn.
        each: Does the searches for experts and the runs; `Workers.map` shares them out.
        progress: Called with a stage ("experts", "imitation"), done, total and a figure.
    """
    # every run's labels are its own, so different seeds and starts teach more than equal ones
    config = replace(config, group_size=None)
    weights = np.array([spec.steps**-imitation.steps_power for spec in specs])
    weights /= weights.sum()
    actor = [p for name, p in policy.named_parameters() if name.startswith(ACTOR)]
    optimizer = torch.optim.Adam(actor, lr=imitation.learning_rate)
    rng = np.random.default_rng([seed, 77])
    data: list[tuple[Tensor, list[Tensor]]] = []
    losses: list[float] = []
    experts: list[FloatArray] = []
    for expert in each(partial(_expert, config=config, imitation=imitation), specs):
        experts.append(expert)
        if progress:
            progress("experts", len(experts), len(specs), float(expert[0]))
    for turn in range(imitation.rounds):
        numbers = rng.choice(len(specs), size=imitation.tasks, p=weights)
        work = partial(
            _collect,
            policy=_exported(policy, config),
            config=config,
            n_runs=imitation.runs,
            # the first round is steered by teacher and chance, later ones more by the policy
            policy_share=0.0 if turn == 0 else 0.7,
        )
        jobs = [(specs[n], experts[n], [seed, 78, turn + 1, i + 1]) for i, n in enumerate(numbers)]
        for observations, labels in each(work, jobs):
            data.append(
                (torch.from_numpy(observations), [torch.from_numpy(rows) for rows in labels])
            )
        left = 1.0 - 0.9 * turn / imitation.rounds
        for group in optimizer.param_groups:
            group["lr"] = imitation.learning_rate * left
        losses.append(_fit(policy, optimizer, actor, data, imitation, rng))
        if progress:
            progress("imitation", turn + 1, imitation.rounds, losses[-1])
    return losses


def _exported(policy: HyperparameterPolicy, config: EnvConfig) -> Policy:
    """The policy so far, as jobs would be given it."""
    return export(
        policy.state_dict(),
        name="imitation",
        controls=config.controls,
        schedule=config.schedule,
        optimizer=config.optimizer,
        feedback=config.feedback,
    )


def _expert(spec: TaskSpec, config: EnvConfig, imitation: ImitationConfig) -> FloatArray:
    torch.set_num_threads(1)
    return find_expert(get_task(spec.task), spec.steps, config, imitation)


def _collect(
    job: tuple[TaskSpec, FloatArray, Sequence[int]],
    policy: Policy,
    config: EnvConfig,
    n_runs: int,
    policy_share: float,
) -> tuple[FloatArray, list[FloatArray]]:
    """One episode: observations `(T, K, F)` and, per control, labels `(T, K, choices)`.

    The job is a task, its expert, and the seed of all that is drawn.
    """
    spec, expert, seed = job
    rng = np.random.default_rng(seed)
    episode = Episode(get_task(spec.task), spec.steps, config, draw(config, rng, n_runs))
    controls, k = episode.config.controls, episode.n_runs
    decide = closed_loop(policy, k)
    observations: list[FloatArray] = []
    labels: list[list[FloatArray]] = [[] for _ in controls]
    # each run has one driver for its whole life, or teacher corrections would mend every wandering
    driver = rng.random(k)
    while not episode.finished:
        gap = teacher(episode, expert)
        observations.append(episode.observation)
        mean = decide(episode.observation, len(observations) - 1)
        chosen = np.zeros((k, N_CONTROLS))
        for j, control in enumerate(controls):
            column = COLUMN[control.name]
            labels[j].append(two_hot(gap[:, column], control))
            limit = np.abs(control.deltas).max()
            taught = np.clip(gap[:, column], -limit, limit)
            drawn = control.deltas[rng.integers(0, len(control.deltas), k)]
            held = np.where(rng.random(k) < 0.5, taught, 0.0)
            by_teacher = np.where(rng.random(k) < 0.3, drawn, held)
            chosen[:, column] = np.where(driver < policy_share, mean[:, column], by_teacher)
        episode.step(chosen)
    return np.stack(observations), [np.stack(rows).astype(np.float32) for rows in labels]


def _fit(
    policy: HyperparameterPolicy,
    optimizer: torch.optim.Optimizer,
    actor: Sequence[Tensor],
    data: Sequence[tuple[Tensor, list[Tensor]]],
    imitation: ImitationConfig,
    rng: np.random.Generator,
) -> float:
    """Cross-entropy to the labels, episode by episode; returns the last pass's mean.

    Each run hides `imitation.hidden_share` of its features.
    """
    mean = float("nan")
    share = imitation.hidden_share
    for _ in range(imitation.passes):
        total = 0.0
        for i in rng.permutation(len(data)):
            observation, labels = data[i]
            shown = rng.random(observation.shape[1:]) >= share  # of each run, for its whole life
            mask = torch.from_numpy(shown / (1.0 - share)).float()
            logits = actor_logits(policy, observation * mask)
            parts = torch.split(logits, [label.shape[-1] for label in labels], -1)
            loss = torch.stack(
                [
                    -(label * torch.log_softmax(part, -1)).sum(-1).mean()
                    for label, part in zip(labels, parts, strict=True)
                ]
            ).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(actor, 1.0)
            optimizer.step()
            total += float(loss.detach())
        mean = total / len(data)
    return mean
