"""PPO with checkpoints that continue exactly: what every training of a policy shares."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import random
import signal
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from ..core.averages import share
from ..core.controls import Control
from ..core.errors import ConfigurationError, ResumeError
from ..env.sb3 import Sb3VecEnv
from .artifact import Artifact, check_name, save, write_whole
from .imitation import ACTOR
from .learner import HyperparameterPolicy
from .ranges import COUNT, COUNT_OR_NONE, NOT_NEGATIVE, POSITIVE, SHARE, Numbers, check_ranges

logger = logging.getLogger("lhopt")

A = TypeVar("A", bound=Artifact)

#: In a training's folder: what it goes on from.
CHECKPOINT = "checkpoint.pt"
#: In a training's folder: one line of JSON per evaluation.
CURVE = "curve.jsonl"
#: Of what a training does beside its settings; one of another is not resumed. 2: leaning is seen,
#: and what is reported leans; the actor's rate rises at first; averaged weights have a horizon.
#: 3: every frontier is read no finer than its noise allows. 4: what leans is the draw alone.
RECIPE = 4
#: What else may be another in a checkpoint that no setting tells from ours.
UNNAMED = "the rule or start values of its optimizer, or the version of lhopt"
#: Horizon of the averaged weights, as a share of the updates so far.
AVERAGED = 0.2
#: Updates of the actor with a smaller rate, at its beginning.
RAMP = 3
#: What no policy of a training may be called: NAME.json would be the file of its settings.
TAKEN = ("config",)
RANGES: dict[str, Numbers] = {
    "seed": Numbers(0, 2**31 - 1, whole=True),
    "updates": COUNT,
    "n_steps": COUNT,
    "batch_size": Numbers(2, whole=True),  # advantages are divided by their spread
    "n_epochs": COUNT,
    "learning_rate": POSITIVE,
    "ent_coef": NOT_NEGATIVE,
    "gamma": SHARE,
    "gae_lambda": SHARE,
    "clip_range": POSITIVE,
    "vf_coef": NOT_NEGATIVE,
    "max_grad_norm": POSITIVE,
    "lstm": COUNT,
    "average": SHARE,
    "checkpoint_every": COUNT,
    "evaluate_every": COUNT,
    "critic_warmup": COUNT_OR_NONE,
    "lean": NOT_NEGATIVE,
}
#: What stops a training after the running update.
SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Settings that may change when a training is resumed.
FREE: tuple[str, ...] = ("updates", "selection", "name")


@dataclass(frozen=True)
class PPOConfig:
    """Settings of PPO itself, shared by every training.

    Attributes:
        name: Of the policy.
        seed: Of tasks, episodes, weights and minibatches.
        updates: PPO updates.
        n_steps: Decisions per environment and update.
        batch_size: Transitions per minibatch.
        n_epochs: Passes over an update's data.
        learning_rate: Of PPO, falling linearly to a tenth.
        ent_coef: Entropy bonus, falling linearly to a tenth.
        gamma: Discount; 1, because only the end counts.
        gae_lambda: Of the advantage estimate.
        clip_range: PPO's.
        vf_coef: Weight of the value loss.
        max_grad_norm: Of PPO's gradient.
        lstm: Width of the LSTM.
        average: Decay per update of the averaged weights that are exported, once so many updates
            are made that it is no more than their own horizon, `AVERAGED`, asks for: until then the
            weights of the start leave them sooner.
        baseline: Subtract the bucket's mean from rewards.
        checkpoint_every: Updates between checkpoints.
        evaluate_every: Updates between evaluations; the last update is always followed by one.
        critic_warmup: First updates that train the critic alone: a critic that knows nothing
            would undo the warm start. The first `RAMP` updates after them have smaller rates.
        lean: Share of a run's exploration in each control that lasts (`Leaning`), below 1; 0 is
            none. In manifests of recipes before 4 it is the standard deviation of a preference.
        lean_turn: Probability, at each decision, that the run draws that preference anew; with 0
            it keeps it to its end.
    """

    name: str = "policy"
    seed: int = 0
    updates: int = 300
    n_steps: int = 40
    batch_size: int = 1600
    n_epochs: int = 4
    learning_rate: float = 7e-4
    ent_coef: float = 2e-3
    gamma: float = 1.0
    gae_lambda: float = 0.97
    clip_range: float = 0.2
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    lstm: int = 64
    average: float = 0.95
    baseline: bool = True
    checkpoint_every: int = 20
    evaluate_every: int = 20
    critic_warmup: int = 8
    lean: float = 0.0
    lean_turn: float = 0.0

    @property
    def runs(self) -> int:
        """Environments stepped at once."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.name.lower() in TAKEN:  # some file systems tell no capitals
            raise ConfigurationError(
                f"The policy's name is {self.name!r}, but a training keeps its settings in "
                f"{self.name.lower()}.json; take another name."
            )
        check_ranges(self, RANGES)
        transitions = self.runs * self.n_steps
        if transitions % self.batch_size:
            raise ConfigurationError(
                f"batch_size is {self.batch_size}; one that divides the {transitions} transitions "
                "of an update is wanted."
            )
        if self.lean >= 1.0:
            raise ConfigurationError(
                f"lean is {self.lean}; a share of at least 0 and below 1 is wanted."
            )
        if not 0.0 <= self.lean_turn <= 1.0 or (self.lean_turn and not self.lean):
            raise ConfigurationError(
                f"lean_turn is {self.lean_turn} with lean {self.lean}; a probability is wanted, "
                "and 0 without a lean."
            )

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        row: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        if not self.lean_turn:
            del row["lean_turn"]  # or no training from before this setting could be resumed
        return row

    def fingerprint(self) -> str:
        """Equal for configurations that give the same training; `updates` is not part of it."""
        row = {k: v for k, v in self.to_json().items() if k not in FREE}
        row["recipe"] = RECIPE
        return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16]


def read_checkpoint(folder: Path, config: PPOConfig) -> dict[str, Any]:
    """A folder's checkpoint, if it is of this configuration.

    Raises:
        ResumeError: There is none, it cannot be read, or it is of another configuration.
    """
    path = Path(folder) / CHECKPOINT
    state = read_state(path)
    theirs, fingerprint = state["config"], state["fingerprint"]
    if fingerprint != config.fingerprint():
        ours = config.to_json()
        other = [
            f"{k}: {theirs.get(k)!r}, now {ours.get(k)!r}"
            for k in {**theirs, **ours}
            if theirs.get(k) != ours.get(k) and k not in FREE
        ]
        begun = "; --from goes on from what it has" if hasattr(config, "start") else ""
        raise ResumeError(
            f"{path} is of another configuration ("
            f"{'; '.join(other) or UNNAMED}). Use the settings it was started with (only "
            f"{', '.join(FREE)} may change), or another folder{begun}."
        )
    return state


def read_state(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, whatever its configuration.

    Raises:
        ResumeError: There is none, or it cannot be read.
    """
    if not path.exists():
        raise ResumeError(
            f"{path} does not exist. To resume, name a training's folder, or start without "
            "--resume; to begin from another training, name its folder or its policy, NAME.json."
        )
    try:
        state: dict[str, Any] = torch.load(path, weights_only=False)
        state["config"], state["fingerprint"]
    except Exception as error:  # a pickle that is cut raises whatever it likes
        raise ResumeError(
            f"{path} cannot be read ({type(error).__name__}: {error}); start anew in another "
            "folder, from the policy beside it, if there is one."
        ) from error
    return state


class PPOTrainer(ABC, Generic[A]):
    """One training run in one folder; subclasses say what is exported and how it is evaluated.

    The folder gets `checkpoint.pt` (to go on from; our own file, trusted like code), `logs/` with
    TensorBoard events and a `progress.csv` per start under SB3's key names, `curve.jsonl` with a
    line per evaluation, and the policy, written anew at every evaluation.

    Args:
        config: What to train.
        folder: Where everything goes.
        vec: Where it trains.
        controls: What the heads steer, if they are to begin at the no-op.
        n_features: Leading columns of an observation that the actor reads; None is all.

    Raises:
        ConfigurationError: `lean` without controls.
    """

    #: What a finished episode's reward is called in logs.
    reward = "reward"

    def __init__(
        self,
        config: PPOConfig,
        folder: Path,
        vec: Sb3VecEnv,
        controls: tuple[Control, ...] = (),
        n_features: int | None = None,
    ) -> None:
        if config.lean and not controls:
            raise ConfigurationError(
                f"lean is {config.lean}, but choices of this environment are no moves up or down; "
                "leave it at 0."
            )
        torch.set_num_threads(1)
        self.config: PPOConfig = config
        self.folder, self.vec = Path(folder), vec
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model = RecurrentPPO(
            HyperparameterPolicy,
            self.vec,
            learning_rate=config.learning_rate,
            n_steps=config.n_steps,
            batch_size=config.batch_size,
            n_epochs=config.n_epochs,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            clip_range=config.clip_range,
            ent_coef=config.ent_coef,
            vf_coef=config.vf_coef,
            max_grad_norm=config.max_grad_norm,
            seed=config.seed,
            device="cpu",
            policy_kwargs={
                "controls": controls,
                "n_features": n_features,
                "lean": config.lean,
                "lstm_hidden_size": config.lstm,
                "net_arch": {"pi": [config.lstm], "vf": [config.lstm]},
                "enable_critic_lstm": True,
            },
        )
        self.update = 0
        self.started = False
        self.averaged = {k: v.clone() for k, v in self.model.policy.state_dict().items()}
        self.curve: list[dict[str, float]] = []
        self.seconds = 0.0
        self.best: tuple[float, int, dict[str, torch.Tensor]] | None = None
        #: The policy that this training began from, for the manifest.
        self.parent: dict[str, Any] | None = None

    @abstractmethod
    def warm_start(self, progress: Callable[[str, int, int, float], None] | None = None) -> None:
        """Whatever comes once before the first update; ends with `_warm_started`, or does nothing.

        Args:
            progress: Called with a stage, done, total and a figure.
        """

    @abstractmethod
    def export(self, *, best: bool = True) -> A:
        """The policy so far: the averaged weights, at the best evaluation if there was one."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Figures of the periodic evaluation; "eval/mean_reward" chooses among checkpoints."""

    def _tasks(self) -> list[list[Any]]:
        """What else must be the same when a training is resumed."""
        return []

    def _check(self, state: dict[str, Any]) -> None:
        """Raise `ResumeError` if a checkpoint does not belong to what this trains on."""

    def critic_version(self) -> int:
        """Of what the critic sees; one of another version is not taken over."""
        return 0

    def cpu_seconds(self) -> float:
        """CPU seconds of everything that trains."""
        return time.process_time()

    def close(self) -> None:
        """End whatever else trains; here nothing."""

    def _warm_started(self, loss: float | None, clock: float) -> None:
        """Keep what the warm start came to.

        Args:
            loss: Of the imitation; None where there was none.
            clock: `cpu_seconds` at its beginning.
        """
        self.averaged = {k: v.clone() for k, v in self.model.policy.state_dict().items()}
        self.started = True
        imitated = {} if loss is None else {"imitation/loss": loss}
        row = {"update": 0.0, **imitated, **self.evaluate()}
        self.seconds += self.cpu_seconds() - clock
        self.log_evaluation(row)
        self.curve.append({k: round(v, 4) for k, v in row.items()})
        if "eval/mean_reward" in row:
            # a copy: the averages move on in place
            kept = {k: v.clone() for k, v in self.averaged.items()}
            self.best = (row["eval/mean_reward"], 0, kept)
        save(self.export(), self.folder / "imitation")
        self.save_checkpoint()  # it took long, and the first update's checkpoint is far off

    def log_evaluation(self, row: Mapping[str, float]) -> None:
        """Append an evaluation to `curve.jsonl`: update, CPU seconds so far, figure per family."""
        figures = {k.removeprefix("eval/"): round(v, 4) for k, v in row.items() if "eval/" in k}
        if not figures:
            return
        line = {
            "update": self.update,
            "cpu_seconds": round(self.seconds, 1),
            "mean": figures.pop("mean_reward", None),
            "eval": figures,
        }
        with (self.folder / CURVE).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _state(self) -> tuple[dict[str, torch.Tensor], int]:
        """Averaged weights at the best evaluation, or now, and their update."""
        if self.best is not None:
            return self.best[2], self.best[1]
        return self.averaged, self.update

    @property
    def per_update(self) -> int:
        """Environment steps of one update."""
        return self.config.n_steps * self.vec.num_envs

    def learn(self, on_update: Callable[[int, dict[str, float]], None] | None = None) -> A:
        """Train until `config.updates` are done.

        SIGINT or SIGTERM stops after the running update, with everything saved.

        Returns:
            The exported policy, also written to the folder.
        """
        self.warm_start()
        self.model.set_logger(configure(str(self._log_folder()), ["csv", "tensorboard"]))
        callback = _Progress(self, on_update)
        before = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            for number in SIGNALS:
                signal.signal(number, callback.interrupt)
        except ValueError:  # not the main thread: Ctrl-C is somebody else's
            before = {}
        try:
            left = self.config.updates - self.update
            if left > 0:
                try:
                    self.model.learn(
                        left * self.per_update, callback=callback, reset_num_timesteps=False
                    )
                    callback.finish_update()
                except _Stop:
                    logger.warning("stopped after update %d", self.update)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.model.logger.close()
        self.save_checkpoint()
        policy = self.export()
        save(policy, self.folder)
        return policy

    def _log_folder(self) -> Path:
        """One folder per start: SB3 truncates a `progress.csv` that is there already."""
        return self.folder / "logs" / f"from-{self.update:05d}"

    def save_checkpoint(self) -> Path:
        """Write everything that is needed to continue exactly."""
        model, path = self.model, self.folder / CHECKPOINT
        state = {
            "fingerprint": self.config.fingerprint(),
            "config": self.config.to_json(),
            "tasks": self._tasks(),
            "update": self.update,
            "num_timesteps": model.num_timesteps,
            "n_updates": model._n_updates,
            "policy": model.policy.state_dict(),
            "optimizer": model.policy.optimizer.state_dict(),
            "averaged": self.averaged,
            "started": self.started,
            "best": self.best,
            "parent": self.parent,
            "critic": self.critic_version(),
            "curve": self.curve,
            "seconds": self.seconds,
            "last": (model._last_obs, model._last_episode_starts, model._last_lstm_states),
            "env": pickle.dumps(self.vec.state()),
            # SB3's buffers draw from numpy's legacy generator
            "random": (random.getstate(), np.random.get_state(), torch.get_rng_state()),  # noqa: NPY002
        }
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(path)
        return path

    def resume(self) -> None:
        """Continue from the folder's checkpoint.

        Raises:
            ResumeError: There is none, or it is of another configuration or other tasks.
        """
        state = read_checkpoint(self.folder, self.config)
        self._check(state)
        model = self.model
        model.policy.load_state_dict(state["policy"])
        model.policy.optimizer.load_state_dict(state["optimizer"])
        self.update, self.averaged, self.best = state["update"], state["averaged"], state["best"]
        self.curve, self.seconds = state["curve"], state["seconds"]
        self.started, self.parent = state["started"], state.get("parent")
        model.num_timesteps, model._n_updates = state["num_timesteps"], state["n_updates"]
        model._last_obs, model._last_episode_starts, model._last_lstm_states = state["last"]
        self.vec.load_state(pickle.loads(state["env"]))
        self._cut_curve()
        python, legacy, torch_state = state["random"]
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.set_rng_state(torch_state)

    def _cut_curve(self) -> None:
        """Drop lines of evaluations that came after the checkpoint: they will come again."""
        path = self.folder / CURVE
        if path.exists():
            lines = path.read_text(errors="replace").splitlines()
            kept = [line for line in lines if _evaluated_by(line, self.update)]
            write_whole(path, "".join(f"{line}\n" for line in kept).encode())


def _evaluated_by(line: str, update: int) -> bool:
    """Whether a line of the curve is whole, and of no later update: one may be cut by a crash."""
    try:
        return bool(json.loads(line)["update"] <= update)
    except (ValueError, KeyError, TypeError):
        return False


class _Progress(BaseCallback):
    """Bookkeeping between updates."""

    def __init__(
        self, trainer: PPOTrainer[Any], on_update: Callable[[int, dict[str, float]], None] | None
    ) -> None:
        super().__init__()
        self.trainer, self.on_update = trainer, on_update
        self._running = False
        self._stop = False
        self._clock = trainer.cpu_seconds()

    def interrupt(self, *_: Any) -> None:
        """Ask for a stop after the running update; a second Ctrl-C ends at once."""
        if self._stop:
            raise KeyboardInterrupt
        self._stop = True
        logger.warning("stopping after this update; the checkpoint will be saved")

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.finish_update()
        # both fall linearly to a tenth, by update and not by timestep: --resume changes nothing
        trainer = self.trainer
        left = 1.0 - 0.9 * min(trainer.update / max(trainer.config.updates, 1), 1.0)
        trainer.model.ent_coef = trainer.config.ent_coef * left
        rate = trainer.config.learning_rate * left * ramp(trainer.update, trainer.config)
        trainer.model.lr_schedule = lambda _: rate
        for name, parameter in trainer.model.policy.named_parameters():
            if name.startswith(ACTOR):
                parameter.requires_grad_(trainer.update >= trainer.config.critic_warmup)
        self._running = True

    def finish_update(self) -> None:
        """Called when the previous update's gradient steps are done."""
        if not self._running:
            return
        self._running = False
        trainer, config = self.trainer, self.trainer.config
        trainer.update += 1
        newest = max(share(AVERAGED, trainer.update), 1.0 - config.average)
        with torch.no_grad():
            for key, value in trainer.model.policy.state_dict().items():
                trainer.averaged[key].lerp_(value, newest)
        now = trainer.cpu_seconds()
        trainer.seconds += now - self._clock
        self._clock = now
        row = {"update": float(trainer.update), **self._rollout()}
        evaluates = trainer.update % config.evaluate_every == 0 or trainer.update == config.updates
        if evaluates:
            row.update(trainer.evaluate())
            for key, value in row.items():
                if key.startswith("eval/"):
                    trainer.model.logger.record(key, value)
            trainer.log_evaluation(row)
            score = row.get("eval/mean_reward")
            if score is not None and (trainer.best is None or score >= trainer.best[0]):
                state = {k: v.clone() for k, v in trainer.averaged.items()}
                trainer.best = (score, trainer.update, state)
        trainer.curve.append({k: round(v, 4) for k, v in row.items()})
        if self.on_update:
            self.on_update(trainer.update, row)
        if trainer.update % config.checkpoint_every == 0:
            trainer.save_checkpoint()
        if evaluates:
            save(trainer.export(), trainer.folder)
        if self._stop:
            raise _Stop

    def _rollout(self) -> dict[str, float]:
        finished = self.trainer.vec.finished
        speeds = [speed for _, speed in finished]
        by_family: dict[str, list[float]] = defaultdict(list)
        for task, speed in finished:
            by_family[task.split("/")[0]].append(speed)
        finished.clear()
        out = {f"rollout/{self.trainer.reward}": float(np.mean(speeds))} if speeds else {}
        for family, values in by_family.items():
            self.trainer.model.logger.record(f"speed/{family}", float(np.mean(values)))
        return out


def ramp(update: int, config: PPOConfig) -> float:
    """Share of the learning rate that an update has, which rises where the actor begins to move.

    Adam knows nothing of the actor then, and its first step is the whole rate for every weight,
    whatever the gradient: a kick that the next updates have to repair.
    """
    made = update - config.critic_warmup
    return min((made + 1) / (RAMP + 1), 1.0) if made >= 0 else 1.0


class _Stop(Exception):
    """Ends `learn` from inside a callback; never leaves this module."""
