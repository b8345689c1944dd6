"""The recurrent actor-critic that is trained: sb3-contrib's, with its slow paths replaced.

Two changes, numerically equal to the original (tests hold them against it), and two of its own:

1. `_process_sequence` calls the LSTM once per batch of sequences. The original walks through time
   in Python whenever any sequence starts an episode, which in training is nearly always; but the
   buffer already cuts sequences at episode starts, so only position 0 can be a start.
2. One padded `log_softmax` replaces a Python list of `Categorical`s, one per control.
3. An LSTM narrower than the observation reads its leading columns: the actor is given the features
   alone, and the critic the privileged columns too.
4. Runs may explore in one direction throughout (`Leaning`), not by a new draw at every decision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.distributions import MultiCategoricalDistribution
from stable_baselines3.common.type_aliases import Schedule as RateSchedule
from torch import Tensor, nn

from ..core.controls import Control


class PaddedCategorical(MultiCategoricalDistribution):
    """Independent categoricals of different sizes, as one `(batch, heads, most choices)` tensor.

    Args:
        action_dims: Choices per head.
    """

    def __init__(self, action_dims: list[int]) -> None:
        super().__init__(action_dims)
        width = max(action_dims)
        rows = torch.arange(width)
        #: True where a head has a choice.
        self.mask = torch.stack([rows < n for n in action_dims])
        starts = torch.tensor([0, *torch.tensor(action_dims).cumsum(0)[:-1].tolist()])
        self.index = (starts[:, None] + rows.clamp(max=width - 1)).where(self.mask, 0)
        self.log_p = torch.zeros(0)
        #: Added to log-probabilities; see `Leaning`.
        self.tilt: Tensor | None = None

    def proba_distribution(self, action_logits: Tensor) -> PaddedCategorical:
        """Take `(batch, sum of choices)` logits."""
        padded = action_logits[:, self.index.to(action_logits.device)]
        if self.tilt is not None:
            padded = padded + self.tilt
        padded = padded.masked_fill(~self.mask.to(padded.device), -torch.inf)
        self.log_p = padded - padded.logsumexp(-1, keepdim=True)
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        """`(batch,)` log-probability of `(batch, heads)` indices."""
        chosen = self.log_p.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)
        return chosen.sum(-1)

    def entropy(self) -> Tensor:
        """`(batch,)` summed entropy."""
        # -inf * 0 is nan, in the gradient too: pad with 0 instead
        safe = self.log_p.masked_fill(~self.mask.to(self.log_p.device), 0.0)
        p = safe.exp().masked_fill(~self.mask.to(self.log_p.device), 0.0)
        return -(p * safe).sum((-2, -1))

    def sample(self) -> Tensor:
        """`(batch, heads)` drawn indices (Gumbel's trick)."""
        noise = -torch.empty_like(self.log_p).exponential_().log()
        return (self.log_p + noise).argmax(-1)

    def mode(self) -> Tensor:
        """`(batch, heads)` likeliest indices."""
        return self.log_p.argmax(-1)


class Leaning:
    """A preference for up or down in each control that a run keeps to its end, or for long.

    Noise that a policy corrects in its next decisions dies out, and what a lasting change comes to
    never shows. So each run draws, per control, z from a normal distribution when it begins
    (`env.sb3.Sb3VecEnv`), and z times a move's octaves (within one) is added to the move's
    log-probability. z stands in the last columns of the observation: the probability that is
    reported, in rollouts and in updates, is that of the policy which leans so, and the critic knows
    how. With the policy's own in its place each decision would be credited with what the same run's
    others did because they lean the same way.

    Args:
        controls: What the heads steer, in order.
    """

    def __init__(self, controls: tuple[Control, ...]) -> None:
        width = max(len(control.choices) for control in controls)
        octaves = torch.zeros(len(controls), width)
        for row, control in zip(octaves, controls, strict=True):
            moves = torch.from_numpy(control.deltas / np.log(2.0)).clamp(-1.0, 1.0)
            row[: len(moves)] = moves
        self._octaves = octaves

    def tilt(self, observation: Tensor) -> Tensor:
        """What to add to log-probabilities, `(batch, heads, most choices)`.

        Args:
            observation: `(batch, columns)`, z last.
        """
        octaves = self._octaves.to(observation)
        return observation[:, -len(octaves) :, None] * octaves


class HyperparameterPolicy(RecurrentActorCriticPolicy):
    """LSTM actor and critic whose first policy holds most controls still.

    A head that starts out choosing at random is a random walk in every hyperparameter; it starts
    here with `hold` as the probability of the no-op and the rest on small moves.

    Args:
        observation_space: As in SB3.
        action_space: `MultiDiscrete`, one head per control.
        lr_schedule: As in SB3.
        controls: What the heads steer, in order.
        hold: Initial probability of each no-op.
        n_features: Leading columns of the observation that the actor reads; the critic reads all.
            None gives the actor all as well.
        leans: Whether the last columns of the observation say how a run leans; see `Leaning`.
        **kwargs: As in sb3-contrib's policy.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.MultiDiscrete,
        lr_schedule: RateSchedule,
        *,
        controls: tuple[Control, ...] = (),
        hold: float = 0.7,
        n_features: int | None = None,
        leans: bool = False,
        **kwargs: Any,
    ) -> None:
        self._controls, self._hold = controls, hold
        self.leaning = Leaning(controls) if leans else None
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        if n_features is not None and n_features < self.features_dim:
            wide = self.lstm_actor
            self.lstm_actor = nn.LSTM(n_features, wide.hidden_size, num_layers=wide.num_layers)
            settings: dict[str, Any] = {"lr": lr_schedule(1), **self.optimizer_kwargs}
            self.optimizer = self.optimizer_class(self.parameters(), **settings)

    def _build(self, lr_schedule: RateSchedule) -> None:
        assert isinstance(self.action_space, spaces.MultiDiscrete)
        self.action_dist = PaddedCategorical(self.action_space.nvec.tolist())
        super()._build(lr_schedule)
        if self._controls:
            assert isinstance(self.action_net, nn.Linear)
            with torch.no_grad():
                self.action_net.weight.mul_(0.01)
                self.action_net.bias.copy_(initial_bias(self._controls, self._hold))

    def forward(  # type: ignore[override]  # sb3-contrib's has these arguments
        self,
        obs: Tensor,
        lstm_states: RNNStates,
        episode_starts: Tensor,
        deterministic: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, RNNStates]:
        """As in sb3-contrib, which calls it for rollouts alone; leaning, if that is on."""
        with self.leaning_as(obs, leans=not deterministic):
            return super().forward(obs, lstm_states, episode_starts, deterministic)

    def evaluate_actions(  # type: ignore[override]  # as sb3-contrib's
        self, obs: Tensor, actions: Tensor, lstm_states: RNNStates, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As in sb3-contrib: values, log-probabilities and entropy; of runs that lean."""
        with self.leaning_as(obs):
            return super().evaluate_actions(obs, actions, lstm_states, episode_starts)

    @contextmanager
    def leaning_as(self, obs: Tensor, *, leans: bool = True) -> Iterator[None]:
        """While distributions are those of runs that lean as observations say.

        Args:
            obs: Of the distributions to come.
            leans: False changes nothing.
        """
        assert isinstance(self.action_dist, PaddedCategorical)
        if self.leaning and leans:
            self.action_dist.tilt = self.leaning.tilt(obs)
        try:
            yield
        finally:
            self.action_dist.tilt = None

    @staticmethod
    def _process_sequence(
        features: Tensor,
        lstm_states: tuple[Tensor, Tensor],
        episode_starts: Tensor,
        lstm: nn.LSTM,
    ) -> tuple[Tensor, Any]:
        features = features[:, : lstm.input_size]
        n_seq = lstm_states[0].shape[1]
        sequence = features.reshape((n_seq, -1, lstm.input_size)).swapaxes(0, 1)
        starts = episode_starts.reshape((n_seq, -1))
        keep = (1.0 - starts[:, 0]).view(1, n_seq, 1)
        output, states = lstm(sequence, (keep * lstm_states[0], keep * lstm_states[1]))
        return torch.flatten(output.transpose(0, 1), start_dim=0, end_dim=1), states


def initial_bias(controls: tuple[Control, ...], hold: float) -> Tensor:
    """Logits `(choices,)` of all heads: each no-op has probability `hold`, small moves the rest."""
    parts = []
    for control in controls:
        deltas = torch.from_numpy(control.deltas.copy())
        weight = torch.exp(-2.0 * deltas.abs())
        weight[control.noop] = 0.0
        p = (1.0 - hold) * weight / weight.sum()
        p[control.noop] = hold
        parts.append(p.log())
    return torch.cat(parts).float()
