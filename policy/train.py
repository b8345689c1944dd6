"""Training a policy on steered runs: where it begins, what is exported, how it is evaluated."""

from __future__ import annotations

import json
import logging
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.utils import set_random_seed
from torch import Tensor

from ..core.errors import ConfigurationError, ResumeError
from ..core.features import FEATURES
from ..env.config import EnvConfig
from ..env.frontier import Frontier
from ..env.pool import Entry, TaskPool, TaskSpec
from ..env.privileged import FAMILY_CODES, MAX_TASKS
from ..env.privileged import VERSION as PRIVILEGED_VERSION
from ..env.sb3 import Sb3VecEnv
from ..env.sharded import ShardedVectorEnv
from ..env.vector import HyperparameterVectorEnv
from ..env.workers import Workers
from .artifact import Policy, load
from .bundled import find, names
from .evaluate import closed_loop, spread
from .export import export, restore
from .imitation import ACTOR, ImitationConfig, imitate
from .learner import HyperparameterPolicy
from .lineage import families_met
from .pools import imitation_specs
from .ppo import CHECKPOINT, PPOTrainer, read_checkpoint, read_state
from .train_config import EVALUATION_BOUNDS, TrainConfig

logger = logging.getLogger("lhopt")

#: The critic's weights of what it sees.
READS_TASK = "lstm_critic.weight_ih_l0"


def check_start(config: TrainConfig) -> None:
    """Refuse what a training cannot begin from, before anything is measured for it.

    Raises:
        ArtifactError, ResumeError: It is missing or cannot be read.
        UnknownNameError: It is neither a path nor the name of a bundled policy, which comes first.
        ConfigurationError: It is of another version, or that policy is of another optimizer, size
            or controls, or knows what the training leaves out.
    """
    if config.start is None:
        return
    if _is_training(config.start):
        folder = Path(config.start)
        state = read_state(folder / CHECKPOINT)
        _check_critic(state, folder)
        _check_parent(load(folder / f"{state['config']['name']}.json"), config)
    else:
        _check_parent(find(config.start), config)


def _is_training(start: str) -> bool:
    """Whether it is the folder of a training; a bundled policy's name means that policy."""
    return start not in names() and Path(start).is_dir()


def _check_critic(state: dict[str, Any], folder: Path) -> None:
    """Refuse a checkpoint whose critic sees what other versions showed it."""
    missing = {"critic", "policy", "tasks"} - set(state)
    if missing or state["critic"] != PRIVILEGED_VERSION:
        raise ConfigurationError(
            f"The critic in {folder} is of another version of lhopt, whose critics may see "
            "other columns. Begin from its policy alone, NAME.json."
        )


def _check_parent(parent: Policy, config: TrainConfig) -> None:
    """Refuse a policy that this training could not go on from, or may not."""
    met = sorted(set(config.leave_out) & families_met(parent.training))
    if met:
        raise ConfigurationError(
            f"{config.start} was trained on {', '.join(met)}, which leave_out names: "
            "nothing that comes of it can be judged by them. Begin from a policy of that fold."
        )
    if parent.optimizer != config.optimizer:
        raise ConfigurationError(
            f"{config.start} steers {parent.optimizer}, another optimizer than this training's, "
            f"{config.optimizer}. Give --optimizer {parent.optimizer}, or begin from what `lhopt "
            f"policies transfer --optimizer {config.optimizer}` makes of it."
        )
    mine = config.env_config().controls
    steered = [", ".join(control.name for control in each) for each in (parent.controls, mine)]
    for what, same, told in (
        ("controls", parent.controls == mine, steered),
        ("hidden_size", parent.hidden_size == config.lstm, [parent.hidden_size, config.lstm]),
    ):
        if not same:
            raise ConfigurationError(
                f"{config.start} is a policy with another {what} ({told[0]}) than this training's "
                f"({told[1]}); begin from one that `lhopt train` made with the same settings."
            )


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
            leans=config.lean > 0.0,
            lean_turn=config.lean_turn,
        )
        super().__init__(config, folder, vec, self.env_config.controls, len(FEATURES))
        self.config: TrainConfig = config

    def warm_start(self, progress: Callable[[str, int, int, float], None] | None = None) -> None:
        """Imitate the experts of the training tasks, once, before the first update.

        Or begin from a policy, where the configuration names one.

        Raises:
            ConfigurationError, ArtifactError, ResumeError: As `check_start`; or its critic was told
                of other tasks in another way.
        """
        if self.started or (self.config.imitation is None and self.config.start is None):
            return
        clock = self.cpu_seconds()
        policy = self.model.policy
        assert isinstance(policy, HyperparameterPolicy)
        if self.config.start is not None:
            start = Path(self.config.start)
            if _is_training(self.config.start):
                self.parent = self._begin_from_training(start)
            else:
                self.parent = self._begin_from(find(self.config.start))
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
        _check_critic(state, folder)
        told = self._begin_from(load(folder / f"{state['config']['name']}.json"))
        critic = {k: v for k, v in state["policy"].items() if not k.startswith(ACTOR)}
        mine = self.model.policy.state_dict()
        if self.config.privileged and state["config"].get("privileged"):
            weight = critic[READS_TASK]
            critic[READS_TASK] = self._by_my_tasks(weight, state["tasks"], folder)
        other = [k for k, v in critic.items() if k not in mine or mine[k].shape != v.shape]
        if other or len(critic) != sum(not k.startswith(ACTOR) for k in mine):
            raise ConfigurationError(
                f"The critic in {folder} is of another size, or sees other columns, than this "
                "training's. Begin from its policy alone, NAME.json."
            )
        self.model.policy.load_state_dict(critic, strict=False)
        return told

    def _by_my_tasks(self, weight: Tensor, theirs: Sequence[Sequence[Any]], folder: Path) -> Tensor:
        """Weights of the critic's columns, those of tasks put where this training has them.

        A column each tells which task it is. Tasks that the other training had not begin with no
        weight: all else that the critic knows holds for them.
        """
        places = {task: i for i, task in enumerate(dict.fromkeys(str(row[0]) for row in theirs))}
        names = list(dict.fromkeys(str(row[0]) for row in self._tasks()))
        width = self.model.policy.state_dict()[READS_TASK].shape[1]
        start = len(FEATURES)
        mine = len(names) if len(names) <= MAX_TASKS else FAMILY_CODES
        # by its width: in how many tasks it is told each of them has changed
        n = weight.shape[1] - (width - mine)
        if n not in (len(places), FAMILY_CODES):
            raise ConfigurationError(
                f"The critic in {folder} is of another size: {n} of its columns tell {len(places)} "
                "tasks. Begin from its policy alone, NAME.json."
            )
        by_family = [n != len(places), mine != len(names)]
        if all(by_family):
            return weight  # its columns are of families, by their names
        if any(by_family):
            told = ["families alone" if each else "each task" for each in by_family]
            raise ConfigurationError(
                f"The critic in {folder} is told {told[0]} ({len(places)} tasks), that of this "
                f"training {told[1]} ({len(names)}; up to {MAX_TASKS} are told apart). Begin from "
                "its policy alone, NAME.json."
            )
        codes, rest = weight[:, start : start + n], weight[:, start + n :]
        moved = weight.new_zeros(len(weight), len(names))
        for i, name in enumerate(names):
            if name in places:
                moved[:, i] = codes[:, places[name]]
        return torch.cat([weight[:, :start], moved, rest], 1)

    def critic_version(self) -> int:
        """Of what the privileged columns mean."""
        return PRIVILEGED_VERSION

    def _begin_from(self, parent: Policy) -> dict[str, Any]:
        """Take a policy's weights; what the manifest says about it."""
        _check_parent(parent, self.config)
        if parent.feedback != self.env_config.feedback:
            told = [
                f.to_json() if f else "none" for f in (parent.feedback, self.env_config.feedback)
            ]
            logger.warning(
                "%s has feedback %s under it, this training %s: what it knows was learned under "
                "the first. To keep that, give '\"feedback\": %s' in env.",
                self.config.start,
                *told,
                json.dumps(parent.feedback and parent.feedback.to_json()),
            )
        # features that it never read begin with no weight: all it knows stays
        actor = restore(parent.weights, parent.columns)
        self.model.policy.load_state_dict(actor, strict=False)
        # or each stage of a line would train on the data orders and starts of the one before it
        state = np.random.SeedSequence([self.config.seed, int(parent.digest[:16], 16)])
        seed = int(state.generate_state(1)[0])
        self.vec.seed_episodes(seed)
        set_random_seed(seed)
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
            feedback=self.env_config.feedback,
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
        theirs, mine = (
            weights[READS_TASK].shape
            for weights in (state["policy"], self.model.policy.state_dict())
        )
        if theirs != mine:
            raise ResumeError(
                f"The critic in {self.folder / CHECKPOINT} sees {theirs[1]} columns, today's "
                f"{mine[1]}: its version of lhopt told it families in place of {len(self.pool)} "
                "tasks. Begin from its policy: --from NAME.json, in another folder."
            )


class Restorable(NamedTuple):
    """What is known of a training before it is restored.

    Attributes:
        update: Updates that it has done.
        tasks: That it draws from, by name.
    """

    update: int
    tasks: tuple[str, ...]


def check_restorable(folder: Path, config: TrainConfig) -> Restorable:
    """Refuse a folder that holds no training to go on with, before anything is measured for it.

    Whether today's tasks are those of the checkpoint shows once their frontiers are there.

    Raises:
        ResumeError: As `read_checkpoint`, or its checkpoint holds no running episodes.
    """
    state = read_checkpoint(folder, config)
    if missing := {"env", "last", "optimizer", "tasks"} - set(state):
        raise ResumeError(
            f"{folder / CHECKPOINT} holds only what another training begins from (it lacks "
            f"{', '.join(sorted(missing))}). Name the folder in which it was trained, or begin one "
            "from it: lhopt train --from."
        )
    return Restorable(state["update"], tuple(task for task, _ in state["tasks"]))


@contextmanager
def restored(
    folder: Path, config: TrainConfig, pool: TaskPool, *, processes: int = 1
) -> Iterator[Trainer]:
    """A training as its checkpoint left it, to look at; its folder is only read.

    What `--resume` goes on from, in a temporary copy: whatever is done with it is forgotten.

    Args:
        folder: Of the training; its checkpoint is unpickled, and so trusted like code.
        config: What it was started with.
        pool: Its training tasks.
        processes: As in `Trainer`.

    Raises:
        ResumeError: As `check_restorable` and `PPOTrainer.resume`.
    """
    check_restorable(folder, config)
    with TemporaryDirectory() as name:
        copy = Path(name)
        shutil.copy(folder / CHECKPOINT, copy)
        with closing(Trainer(config, copy, pool, processes=processes)) as trainer:
            try:
                trainer.resume()
            except ResumeError as error:  # the copy is gone when somebody reads of it
                raise ResumeError(str(error).replace(str(copy), str(folder))) from error
            yield trainer


def _evaluated(
    job: Entry | tuple[TaskSpec, Frontier],
    policy: Policy,
    config: EnvConfig,
    n_runs: int,
    bounds: tuple[float, float],
) -> float:
    """A policy's mean bounded log2 speed on one task.

    A validation loss is reported where every run of the training reports one, and so its slope.
    """
    entry = job if isinstance(job, Entry) else Entry(job[0], None, job[1])
    found = spread(
        entry,
        config,
        lambda episode: closed_loop(policy, episode.n_runs),
        first_seed=5000,
        n_runs=n_runs,
        decades=config.steered.noise["learning_rate"],
        reports_valid=config.valid_share >= 1.0,
        tells_slope=config.valid_share >= 1.0 and config.slope_share >= 1.0,
    )
    return float(np.clip(found.log2_speed, *bounds).mean())
