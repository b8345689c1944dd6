"""Policies of other environments: the same network and files, without the Tuner's controls.

A `SmallPolicy` names what its environment shows and what each choice means; reading, writing and
inference are those of `artifact` and `runtime`. Numpy and the standard library alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ArtifactError, IncompatiblePolicyError, UnknownNameError
from ..core.types import BoolArray, FloatArray, IntArray
from . import artifact
from .runtime import forward

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

FORMAT = "lhopt-environment-policy"
FORMAT_VERSION = 1

#: Policies of environments that ship with lhopt.
FOLDER = Path(__file__).parent / "bundled" / "environments"

#: What one choice means: a factor, a number of steps, a word.
Meaning = float | int | str


@dataclass(frozen=True)
class Memory:
    """The LSTM's state of K runs, `(K, H)` float32 each; a value, replaced by each `act`."""

    hidden: FloatArray
    cell: FloatArray

    def restart(self, rows: BoolArray) -> Memory:
        """Forget the runs of `rows` `(K,)`: their next observation begins an episode."""
        keep = ~np.asarray(rows, bool)[:, None]
        return Memory(self.hidden * keep, self.cell * keep)


@dataclass(frozen=True)
class SmallPolicy:
    """A policy of one environment.

    Attributes:
        name: A human's name for it.
        environment: What it was trained in, a name in `env.registry.ENVIRONMENTS`.
        observations: Names of the observation's columns, in order.
        actions: What each choice means, by action, in order.
        weights: As in `artifact.Policy`.
        training: How it came to be: configuration, seeds, curve. For people.
        digest: Names the policy; computed from everything else.
    """

    name: str
    environment: str
    observations: tuple[str, ...]
    actions: Mapping[str, tuple[Meaning, ...]]
    weights: Mapping[str, FloatArray]
    training: Mapping[str, Any] = field(default_factory=dict)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        choices = sum(len(meaning) for meaning in self.actions.values())
        artifact.check_network(self.weights, len(self.observations), choices)
        object.__setattr__(self, "digest", artifact.digest(self.manifest()))

    def manifest(self) -> dict[str, Any]:
        """The JSON manifest, without the digest."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "environment": self.environment,
            "observations": list(self.observations),
            # a list: the order of JSON's keys is nobody's promise
            "actions": [[name, list(meaning)] for name, meaning in self.actions.items()],
            "weights_sha256": artifact.weights_sha256(self.weights),
            "training": dict(self.training),
        }

    def save(self, folder: str | Path) -> Path:
        """Write `NAME.safetensors` and `NAME.json`; returns the manifest's path."""
        return artifact.save(self, folder)

    @classmethod
    def load(cls, path: str | Path) -> SmallPolicy:
        """Read and verify a policy, by the path of its manifest or of its weights.

        Raises:
            ArtifactError: A file is missing, truncated, oversized, not of the format, or its
                digest does not match.
            IncompatiblePolicyError: It is of another version of the format.
        """
        source = str(path)
        manifest_bytes, weights_bytes = artifact.read_files(path)
        manifest = artifact.read_manifest(
            manifest_bytes, weights_bytes, FORMAT, (FORMAT_VERSION,), source
        )
        try:
            policy = cls(
                name=str(manifest["name"]),
                environment=str(manifest["environment"]),
                observations=tuple(str(name) for name in manifest["observations"]),
                actions={str(name): tuple(meaning) for name, meaning in manifest["actions"]},
                weights=artifact.read_safetensors(weights_bytes, source=source),
                training=manifest.get("training", {}),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"The manifest of {source} is incomplete or out of range: {error!r}."
            ) from error
        artifact.check_digest(manifest, policy, source)
        return policy

    def initial(self, n_runs: int = 1) -> Memory:
        """The memory before the first observation."""
        zero = np.zeros((n_runs, self.weights["lstm.weight_hh"].shape[1]), np.float32)
        return Memory(zero, zero)

    def act(self, observation: FloatArray, state: Memory | None = None) -> tuple[IntArray, Memory]:
        """The likeliest choices of K runs.

        Args:
            observation: `(K, len(observations))`.
            state: Of these runs, after their previous observation; None begins.

        Returns:
            Indices `(K, len(actions))` into the meanings, and the state to keep.

        Raises:
            IncompatiblePolicyError: An observation of another width.
        """
        observation = np.asarray(observation, np.float32)
        if observation.ndim != 2 or observation.shape[1] != len(self.observations):
            raise IncompatiblePolicyError(
                f"An observation of shape {observation.shape}; policy {self.name!r} reads "
                f"(runs, {len(self.observations)}): {', '.join(self.observations)}."
            )
        state = state or self.initial(len(observation))
        hidden, cell, logits = forward(self, state.hidden, state.cell, observation)
        ends = np.cumsum([len(meaning) for meaning in self.actions.values()])[:-1]
        chosen = [part.argmax(axis=1) for part in np.split(logits, ends, axis=1)]
        return np.stack(chosen, axis=1), replace(state, hidden=hidden, cell=cell)


def bundled(name: str) -> SmallPolicy:
    """A policy that ships with lhopt, by name.

    Raises:
        UnknownNameError: None has this name.
    """
    known = [path.stem for path in FOLDER.glob("*.safetensors")]
    if name not in known:
        raise UnknownNameError("bundled environment policy", name, known)
    return SmallPolicy.load(FOLDER / name)


def play(
    policy: SmallPolicy, env: VectorEnv[FloatArray, IntArray, Any], episodes: int = 1
) -> tuple[FloatArray, list[dict[str, Any]]]:
    """Play in every row of a SAME_STEP vector environment, from its reset.

    Args:
        policy: Who acts.
        env: Whose observations it was trained on.
        episodes: How many per row.

    Returns:
        `(num_envs,)` summed reward of each row's first `episodes` episodes, and the infos: that of
        the reset, then one per step (a row that is through goes on, uncounted).
    """
    observation, info = env.reset()
    memory = policy.initial(env.num_envs)
    total, left = np.zeros(env.num_envs), np.full(env.num_envs, episodes)
    infos = [info]
    discrete = len(env.single_action_space.shape or ()) == 0
    while left.any():
        action, memory = policy.act(observation, memory)
        observation, reward, ended, _, info = env.step(action[:, 0] if discrete else action)
        infos.append(info)
        total += np.where(left > 0, reward, 0.0)
        left -= ended & (left > 0)
        memory = memory.restart(ended)
    return total, infos
