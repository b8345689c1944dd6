"""Training a policy on steered runs: which tasks, what is exported, how it is evaluated."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import ConfigurationError, ResumeError, UnknownNameError
from ..core.features import FEATURES
from ..env.config import EnvConfig
from ..env.frontier import POOL_FRONTIER, Frontier, cache_key
from ..env.pool import (
    Entry,
    TaskPool,
    TaskSpec,
    build_pool,
    draw_specs,
    seconds_per_run_step,
)
from ..env.privileged import VERSION as PRIVILEGED_VERSION
from ..env.sb3 import Sb3VecEnv
from ..env.sharded import ShardedVectorEnv
from ..env.vector import HyperparameterVectorEnv
from ..env.workers import Workers
from ..inner_tasks.registry import FAMILIES, family_of, get_task
from ..inner_tasks.registry import families as all_families
from .artifact import Policy, Selection, load
from .evaluate import closed_loop, mean_speed
from .experts import expert_name
from .export import export, restore
from .imitation import ACTOR, ImitationConfig, imitate
from .learner import HyperparameterPolicy
from .ppo import CHECKPOINT, PPOConfig, PPOTrainer, read_state

logger = logging.getLogger("lhopt")

#: Octaves of speed that a run counts in an evaluation: a disaster, or a task that is won anyway, is
#: one run among many.
EVALUATION_BOUNDS: tuple[float, float] = (-2.0, 1.5)
#: Families that policies train on. None shares its data, or an architecture held out, with a task
#: of the benchmarks. The noisy quadratic is none of them: its optimum is 0, where a baseline whose
#: weight decay is tuned is led by the decay alone.
TRAIN_FAMILIES: tuple[str, ...] = (
    "tabular-mlp", "teacher-regression", "parity-rnn", "addition-rnn",
    "friedman-mlp", "coordinate-mlp", "clusters-resmlp", "topics-bag", "glyphs-mlp", "glyphs-cnn",
    "glyphs-mixer", "texture-cnn", "signal-conv", "chaos-mlp", "docs-mlp",
    "entities-mlp", "zipf-bilinear", "forest-mlp", "vocabulary-mlp", "graph-distance",
    "clusters-few", "glyphs-few", "glyphs-inpaint", "signal-denoise",
    "texture-mixer", "glyphs-rnn", "signal-rnn", "chaos-conv", "coordinate-sine", "friedman-rbf",
    "forest-cross", "forest-gated", "topics-linear", "docs-bilinear",
)  # fmt: skip
#: Families of the periodic evaluation: they choose among checkpoints and, in entry 16 of
#: docs/training-log.md, among defaults of the optimizer; they are in no benchmark.
VALID_FAMILIES: tuple[str, ...] = (
    "sets-net", "grammar-mlp", "names-conv", "tensor-factors", "shells-mlp",
)  # fmt: skip
#: Families that `lhopt policies compare` adds to those, to choose among policies: on data of their
#: own, nothing is trained on them and no checkpoint is chosen by them.
COMPARE_FAMILIES: tuple[str, ...] = (
    "formula-resmlp", "automaton-gated", "pendulum-mlp", "prices-mlp", "spectra-few", "spots-cnn",
    "gratings-mixer", "facts-distmult", "meetings-mlp", "recall-linear",
)  # fmt: skip


@dataclass(frozen=True)
class TrainConfig(PPOConfig):
    """Everything that determines a policy, next to the code.

    Attributes:
        optimizer: What is steered, a name in `env.config.OPTIMIZERS`.
        families: Training families; those whose data is missing are left out, and said so.
        leave_out: Those of them that are not trained on, to judge the recipe by; see `folds`.
        valid_families: Families of the periodic evaluation.
        valid_per_family: Tasks drawn from each of them; those with a blunt frontier fall out. Few
            mislead: with 3 each, an evaluation preferred another checkpoint than 18 tasks did.
        reward_bounds: Octaves of speed that a run can earn the learner, at least and at most,
            inside the environment's `speed_bounds`. Without the upper one, tasks that are won
            anyway are worth winning by more; where all runs of a group are below the lower one,
            nothing is learned. An evaluation reads no further than `EVALUATION_BOUNDS` either.
        reward_floor: See `Sb3VecEnv`'s `floor`, in octaves; 0 divides by nothing.
        tasks_per_family: Tasks drawn from each.
        steps: Shortest and longest run, in inner steps.
        steps_power: See `TaskPool`.
        cost_power: See `TaskPool`; the cost of each task is measured once, before the training.
        group_size: See `EnvConfig`; `runs_per_bucket` must be a multiple.
        privileged: See `EnvConfig`: the critic sees what the actor must not.
        n_buckets: Buckets of runs trained at once.
        runs_per_bucket: Runs per bucket.
        imitation: Sizes of the warm start (`ImitationConfig`); None starts PPO from the no-op.
        start: A policy file to begin from instead of imitating: `lhopt train --from`. Of the same
            controls and LSTM size; what it does not read of today's features weighs nothing at
            first, and the critic begins afresh. Or the folder of another training: what it
            exports, and its critic as it is now, so that `critic_warmup` may be 0. Its checkpoint
            is unpickled: take folders from nobody that you would not take code from.
        selection: How the exported policy turns probabilities into decisions.
    """

    name: str = "adamw"
    optimizer: str = "torch.optim.AdamW"
    families: tuple[str, ...] = TRAIN_FAMILIES
    leave_out: tuple[str, ...] = ()
    valid_families: tuple[str, ...] = VALID_FAMILIES
    valid_per_family: int = 6
    reward_bounds: tuple[float, float] | None = EVALUATION_BOUNDS
    reward_floor: float = 0.0
    tasks_per_family: int = 8
    steps: tuple[int, int] = (150, 2000)
    steps_power: float = 1.0
    cost_power: float = 1.0
    group_size: int | None = 8
    privileged: bool = True
    n_buckets: int = 6
    batch_size: int = 1920
    runs_per_bucket: int = 32
    imitation: Mapping[str, Any] | None = field(default_factory=dict)
    start: str | None = None
    selection: Selection = "mean"
    env: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        wrong = set(self.leave_out) - set(self.families) or not self.trained
        if self.leave_out and (wrong or set(self.leave_out) & set(self.valid_families)):
            raise ConfigurationError(
                f"leave_out is {', '.join(map(str, self.leave_out))}; some of the training "
                "families are wanted, not all, and none that evaluates: "
                f"{', '.join(self.families)}."
            )
        self._check_bounds()
        if not 0.0 <= self.reward_floor < np.inf or (self.reward_floor and not self.baseline):
            raise ConfigurationError(
                f"reward_floor is {self.reward_floor} and baseline {self.baseline}; a number of at "
                "least 0 is wanted, and above 0 a baseline."
            )

    def _check_bounds(self) -> None:
        bounds = self.env.get("speed_bounds", EnvConfig.speed_bounds)
        if not isinstance(bounds, tuple | list) or len(bounds) != 2:
            return  # `EnvConfig` says what is wrong
        low, high = bounds
        wanted = [EVALUATION_BOUNDS, *([self.reward_bounds] if self.reward_bounds else [])]
        if low > min(b[0] for b in wanted) or high < max(b[1] for b in wanted):
            raise ConfigurationError(
                f"The environment's speed_bounds are {[low, high]}, inside reward_bounds "
                f"({self.reward_bounds}) or {EVALUATION_BOUNDS}: what is paid or evaluated would "
                "be cut unseen. Give wider ones: --set 'env={\"speed_bounds\": [-8.0, 2.0]}'."
            )

    @property
    def trained(self) -> tuple[str, ...]:
        """Families that are trained on."""
        return tuple(family for family in self.families if family not in self.leave_out)

    @property
    def runs(self) -> int:
        """Runs trained at once."""
        return self.n_buckets * self.runs_per_bucket

    def env_config(self) -> EnvConfig:
        """The environment's settings."""
        return EnvConfig(
            optimizer=self.optimizer,
            group_size=self.group_size,
            privileged=self.privileged,
            **self.env,
        )

    def fingerprint(self) -> str:
        """As the base's; the optimizer's rule and start are part of it, which live in the code."""
        steered = self.env_config().steered
        described = {
            "rule": asdict(steered.rule) | steered.rule.meaning(),
            "start": steered.start,
            "noise": steered.noise,
            "critic": PRIVILEGED_VERSION,
        }
        text = super().fingerprint() + json.dumps(described, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        row = super().to_json()
        if self.imitation is not None:  # with its defaults: a manifest tells every setting
            row["imitation"] = asdict(ImitationConfig(**self.imitation))
        # where a file lies on somebody's machine is nobody's business
        row["start"] = self.start and Path(self.start).name
        return row


class Trainer(PPOTrainer[Policy]):
    """One training run in one folder.

    Args:
        config: What to train.
        folder: Where everything goes.
        pool: Training tasks.
        valid: Tasks of the periodic evaluation; without it there is none.
        device: Of the inner runs; the learner stays on the CPU.
        processes: That share the runs, the evaluations and the warm start, all on the CPU but for
            the runs; with more than one, a script that makes a `Trainer` needs
            `if __name__ == "__main__":`. On the CPU the policy does not depend on their number.
    """

    reward = "log2_speed"

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        pool: TaskPool,
        valid: TaskPool | None = None,
        *,
        device: str = "cpu",
        processes: int = 1,
    ) -> None:
        self.pool, self.valid, self.env_config = pool, valid, config.env_config()
        self.workers = Workers(processes) if processes != 1 else None
        sizes: dict[str, Any] = {
            "n_buckets": config.n_buckets,
            "runs_per_bucket": config.runs_per_bucket,
            "seed": config.seed,
            "device": device,
        }
        env = (
            ShardedVectorEnv(pool, self.env_config, workers=self.workers, **sizes)
            if self.workers
            else HyperparameterVectorEnv(pool, self.env_config, **sizes)
        )
        vec = Sb3VecEnv(
            env,
            baseline=config.baseline,
            seed=config.seed,
            bounds=config.reward_bounds,
            floor=config.reward_floor,
        )
        super().__init__(config, folder, vec, self.env_config.controls, len(FEATURES))
        self.config: TrainConfig = config

    def warm_start(self, progress: Callable[[str, int, int, float], None] | None = None) -> None:
        """Imitate the experts of the training tasks, once, before the first update.

        Or begin from a policy, where the configuration names one.

        Raises:
            ConfigurationError: That policy is of another optimizer, size or controls.
        """
        if self.started or (self.config.imitation is None and self.config.start is None):
            return
        clock = self.cpu_seconds()
        policy = self.model.policy
        assert isinstance(policy, HyperparameterPolicy)
        if self.config.start is not None:
            start = Path(self.config.start)
            if start.is_dir():
                self.parent = self._begin_from_training(start)
            else:
                self.parent = self._begin_from(load(start))
            self._warm_started(None, clock)
            return
        assert self.config.imitation is not None
        losses = imitate(
            policy,
            imitation_specs(self.config),
            self.env_config,
            ImitationConfig(**self.config.imitation),
            seed=self.config.seed,
            each=self.workers.map if self.workers else map,
            progress=progress,
        )
        self._warm_started(losses[-1], clock)

    def _begin_from_training(self, folder: Path) -> dict[str, Any]:
        """Take what another training exports, and its critic; what the manifest says about it."""
        state = read_state(folder / CHECKPOINT)
        missing = {"critic", "policy", "tasks"} - set(state)
        if missing or state["critic"] != self.critic_version():
            raise ConfigurationError(
                f"The critic in {folder} is of another version of lhopt, whose critics may see "
                "other columns. Begin from its policy alone, NAME.json."
            )
        if [list(row) for row in state["tasks"]] != [list(row) for row in self._tasks()]:
            raise ConfigurationError(
                f"The critic in {folder} knows its tasks by their place among the training tasks, "
                "and this training has others. Begin from its policy alone, NAME.json."
            )
        told = self._begin_from(load(folder / f"{state['config']['name']}.json"))
        critic = {k: v for k, v in state["policy"].items() if not k.startswith(ACTOR)}
        mine = self.model.policy.state_dict()
        other = [k for k, v in critic.items() if k not in mine or mine[k].shape != v.shape]
        if other or len(critic) != sum(not k.startswith(ACTOR) for k in mine):
            raise ConfigurationError(
                f"The critic in {folder} is of another size, or sees other columns, than this "
                "training's. Begin from its policy alone, NAME.json."
            )
        self.model.policy.load_state_dict(critic, strict=False)
        return told

    def critic_version(self) -> int:
        """Of what the privileged columns mean."""
        return PRIVILEGED_VERSION

    def _begin_from(self, parent: Policy) -> dict[str, Any]:
        """Take a policy's weights; what the manifest says about it."""
        mine = self.export(best=False)
        met = sorted(set(self.config.leave_out) & families_met(parent.training))
        if met:
            raise ConfigurationError(
                f"{self.config.start} was trained on {', '.join(met)}, which leave_out names: "
                "nothing that comes of it can be judged by them. Begin from a policy of that fold."
            )
        for what in ("optimizer", "controls", "hidden_size"):
            if getattr(parent, what) != getattr(mine, what):
                raise ConfigurationError(
                    f"{self.config.start} is a policy with another {what} than this training's; "
                    "begin from one that `lhopt train` made with the same settings."
                )
        # features that it never read begin with no weight: all it knows stays
        actor = restore(parent.weights, parent.columns)
        self.model.policy.load_state_dict(actor, strict=False)
        return {"name": parent.name, "digest": parent.digest, "training": dict(parent.training)}

    def export(self, *, best: bool = True) -> Policy:
        """The policy so far: the averaged weights, at the best evaluation if there was one."""
        state, update = self._state() if best else (self.averaged, self.update)
        return export(
            state,
            name=self.config.name,
            controls=self.env_config.controls,
            schedule=self.env_config.schedule,
            optimizer=self.config.optimizer,
            selection=self.config.selection,
            training={
                "config": self.config.to_json(),
                "env": json.loads(json.dumps(self.env_config.to_json())),
                "tasks": self._tasks(),
                "updates": update,
                "cpu_seconds": round(self.seconds, 1),
                "curve": self.curve,
                **({"from": self.parent} if self.parent else {}),
            },
        )

    def evaluate(self, n_runs: int = 8) -> dict[str, float]:
        """Mean log2 speed on the evaluation tasks, with hidden start noise, by family.

        Each run counts within `EVALUATION_BOUNDS`.
        """
        if self.valid is None:
            return {}
        work = partial(
            _evaluated,
            policy=self.export(best=False),
            config=self.env_config,
            n_runs=n_runs,
            bounds=EVALUATION_BOUNDS,
        )
        entries = self.valid.entries
        # workers build a task by its name: data are not sent
        jobs = [(e.spec, e.frontier) for e in entries] if self.workers else entries
        each = self.workers.map if self.workers else map
        speeds: dict[str, list[float]] = defaultdict(list)
        for entry, speed in zip(entries, each(work, jobs), strict=True):
            speeds[entry.spec.family].append(speed)
        out = {f"eval/{family}": float(np.mean(v)) for family, v in speeds.items()}
        out["eval/mean_reward"] = float(np.mean(list(out.values())))
        return out

    def cpu_seconds(self) -> float:
        """CPU seconds of this process and the workers."""
        return super().cpu_seconds() + (self.workers.seconds if self.workers else 0.0)

    def close(self) -> None:
        """End the workers."""
        if self.workers:
            self.workers.close()

    def _tasks(self) -> list[list[Any]]:
        """Name and steps of each training task."""
        return [[e.spec.task, e.spec.steps] for e in self.pool.entries]

    def _check(self, state: dict[str, Any]) -> None:
        """Refuse a checkpoint of other training tasks."""
        if state.get("tasks", self._tasks()) != self._tasks():
            theirs = {tuple(row) for row in state["tasks"]}
            other = sorted(theirs ^ {tuple(row) for row in self._tasks()})
            raise ResumeError(
                f"{self.folder / CHECKPOINT} was trained on {len(theirs)} tasks, and now there are "
                f"{len(self.pool)}; they differ in {', '.join(task for task, _ in other[:5])}"
                f"{', ...' if len(other) > 5 else ''}. Point LHOPT_DATA at the data it was started "
                "with, or use another folder."
            )


def _evaluated(
    job: Entry | tuple[TaskSpec, Frontier],
    policy: Policy,
    config: EnvConfig,
    n_runs: int,
    bounds: tuple[float, float],
) -> float:
    """A policy's mean bounded log2 speed on one task."""
    entry = job if isinstance(job, Entry) else Entry(job[0], get_task(job[0].task), job[1])
    return mean_speed(
        entry,
        config,
        lambda episode: closed_loop(policy, episode.n_runs),
        first_seed=5000,
        n_runs=n_runs,
        decades=config.steered.noise["learning_rate"],
        bounds=bounds,
    )


def lineage(training: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A policy's training, then those of the policies that it began from, by its manifest."""
    stage: Mapping[str, Any] | None = training
    while stage:
        yield stage
        stage = stage.get("from", {}).get("training")


def families_met(training: Mapping[str, Any]) -> set[str]:
    """Families that a policy was trained on or chosen by, and those it began from, by manifest."""
    met: set[str] = set()
    for stage in lineage(training):
        config = stage.get("config", {})
        own = {family_of(str(task)) for task, *_ in stage.get("tasks", ())}
        own |= {*config.get("families", ()), *config.get("valid_families", ())}
        met |= own - set(config.get("leave_out", ()))
    return met


def imitation_specs(config: TrainConfig) -> list[TaskSpec]:
    """Tasks of the warm start: other draws of the training families than PPO's."""
    n = ImitationConfig(**(config.imitation or {})).tasks_per_family
    return draw_specs(available(config.trained), n, config.steps, config.seed + 3)


def available(families: Sequence[str]) -> list[str]:
    """Those families whose data is there; the others are named in the log.

    Which tasks a policy trained on stands in its artifact.

    Raises:
        UnknownNameError: No family has this name.
    """
    for family in families:
        if family not in FAMILIES:
            raise UnknownNameError("task family", family, FAMILIES)
    there = {family.name for family in all_families(available_only=True)}
    for family in families:
        if family not in there:
            logger.warning("family %s is left out: its data is missing under LHOPT_DATA", family)
    return [family for family in families if family in there]


def pool_specs(
    config: TrainConfig, families: Sequence[str], valid_families: Sequence[str]
) -> tuple[list[TaskSpec], list[TaskSpec]]:
    """Candidates for PPO's pool and for the evaluation's, drawn from those families."""
    return (
        draw_specs(families, config.tasks_per_family, config.steps, config.seed),
        draw_specs(valid_families, config.valid_per_family, config.steps, config.seed + 7),
    )


def comparison_specs(config: TrainConfig) -> list[TaskSpec]:
    """Tasks of `COMPARE_FAMILIES`, as `lhopt policies compare` draws them."""
    return pool_specs(config, available(COMPARE_FAMILIES), ())[0]


def _frontier_name(spec: TaskSpec) -> str:
    return f"{cache_key(get_task(spec.task), spec.steps, POOL_FRONTIER)}.json"


def compared_names(config: TrainConfig) -> list[str]:
    """Files of the cache that a comparison reads beside those of the training."""
    return [_frontier_name(spec) for spec in comparison_specs(config)]


def measured_names(config: TrainConfig) -> list[str]:
    """Files of the cache that a training with this configuration reads before its first update."""
    specs, valid = pool_specs(config, available(config.trained), available(config.valid_families))
    names = [_frontier_name(spec) for spec in specs + valid]
    if config.imitation is not None:
        imitation = ImitationConfig(**config.imitation)
        names += [
            expert_name(get_task(s.task), s.steps, config.env_config(), imitation)
            for s in imitation_specs(config)
        ]
    return names


def make_pools(
    config: TrainConfig,
    *,
    processes: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
    device: str = "cpu",
    costs: bool = True,
) -> tuple[TaskPool, TaskPool | None]:
    """Training and evaluation pool of a configuration; frontiers come from the cache or are made.

    Without an evaluation family there is no such pool, and nothing chooses among checkpoints.

    Families whose data is missing are left out with a log line: which tasks a policy trained on
    stands in its artifact.

    Args:
        config: What to train.
        processes: Frontiers measured at once.
        progress: Called with done, total and the task's name.
        device: Of the inner runs, whose cost is measured there.
        costs: Whether to measure it; a training that is resumed has the weights that came of it.
    """
    train, valid = available(config.trained), available(config.valid_families)
    specs, valid_specs = pool_specs(config, train, valid)
    n = len(specs) + len(valid_specs)
    measure = partial(
        seconds_per_run_step,
        rule=config.env_config().steered.rule,
        n_runs=config.runs_per_bucket,
        device=device,
    )
    pool = build_pool(
        specs,
        config=POOL_FRONTIER,
        processes=processes,
        progress=(lambda i, _, name: progress(i, n, name)) if progress else None,
        cost=measure if costs else None,
        steps_power=config.steps_power,
        cost_power=config.cost_power,
    )
    if not valid_specs:
        return pool, None
    valid_pool = build_pool(
        valid_specs,
        config=POOL_FRONTIER,
        processes=processes,
        progress=(lambda i, _, name: progress(i + len(specs), n, name)) if progress else None,
    )
    return pool, valid_pool
