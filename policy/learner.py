"""The recurrent actor-critic that is trained: sb3-contrib's, with its slow paths replaced.

Two changes, numerically equal to the original (tests hold them against it), and two of its own:

1. `_process_sequence` calls the LSTM once per batch of sequences. The original walks through time
   in Python whenever any sequence starts an episode, which in training is nearly always; but the
   buffer already cuts sequences at episode starts, so only position 0 can be a start.
2. One padded `log_softmax` replaces a Python list of `Categorical`s, one per control.
3. An LSTM narrower than the observation reads its leading columns: the actor is given the features
   alone, and the critic the privileged columns too.
4. Part of a run's exploration may last to its end (`Leaning`), in place of a new draw at every
   decision.
"""

from __future__ import annotations

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
        #: `(batch, heads)` standard normal, what to draw by; see `Leaning`.
        self.drawn_by: Tensor | None = None

    def proba_distribution(self, action_logits: Tensor) -> PaddedCategorical:
        """Take `(batch, sum of choices)` logits."""
        padded = action_logits[:, self.index.to(action_logits.device)]
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
        """`(batch, heads)` drawn indices: by Gumbel's trick, or by inversion of what is given."""
        if self.drawn_by is not None:
            below = self.log_p.exp().cumsum(-1) < torch.special.ndtr(self.drawn_by).unsqueeze(-1)
            most = self.mask.sum(-1).to(below.device) - 1
            # a sum of probabilities may end below 1
            return torch.minimum(below.sum(-1), most)
        noise = -torch.empty_like(self.log_p).exponential_().log()
        return (self.log_p + noise).argmax(-1)

    def mode(self) -> Tensor:
        """`(batch, heads)` likeliest indices."""
        return self.log_p.argmax(-1)


class Leaning:
    """Exploration in each control's one direction that lasts: coloured noise.

    Noise that a policy corrects in its next decisions dies out, and what a lasting change comes to
    hardly shows among what single moves do. So each run draws, per control, z from the standard
    normal distribution when it begins (`env.sb3.Sb3VecEnv`), and a decision's choice is the first,
    in ascending order of moves, whose cumulative probability reaches that of
    sqrt(share) z + sqrt(1 - share) e, with e drawn anew each time. Their sum is standard normal:
    for given logits every choice has the probability that the policy gives it, which is what is
    reported, and only the choices of one run hang together (for normal actions: Hollenstein et al.,
    2024, arXiv:2312.11091). From the second decision on what a run observes tells of its z, so that
    given the observation the draw is not quite the policy's: the estimate is biased towards
    undoing lasting deviations.

    Over T decisions the gradient's part that all of them have in common is 1 + (T - 1) share times
    as large, its noise the root of that, where logits do not answer to earlier moves. A probability
    that is reported as leaning, and a critic that knows z, would each take that part out again:
    given z, what a run did because of it is no news (docs/training-log.md, entry 58).

    Args:
        controls: What the heads steer, in order.
        share: Of the variance, that lasts; in (0, 1).
    """

    def __init__(self, controls: tuple[Control, ...], share: float) -> None:
        for control in controls:
            assert (np.diff(control.deltas) > 0).all(), control.name
        self.n, self._share = len(controls), share

    def draw(self, observation: Tensor) -> Tensor:
        """Standard normal, `(batch, heads)`.

        Args:
            observation: `(batch, columns)`, z last.
        """
        z = observation[:, -self.n :]
        drawn: Tensor = self._share**0.5 * z + (1.0 - self._share) ** 0.5 * torch.randn_like(z)
        return drawn


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
        lean: Share of the exploration that lasts, see `Leaning`; above 0 the last columns of the
            observation say how a run leans, which neither actor nor critic reads.
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
        lean: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self._controls, self._hold = controls, hold
        self.leaning = Leaning(controls, lean) if lean else None
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        told = self.features_dim - (self.leaning.n if self.leaning else 0)
        self.lstm_actor = _narrowed(self.lstm_actor, told if n_features is None else n_features)
        if self.lstm_critic is not None:
            self.lstm_critic = _narrowed(self.lstm_critic, told)
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
        assert isinstance(self.action_dist, PaddedCategorical)
        if self.leaning and not deterministic:
            self.action_dist.drawn_by = self.leaning.draw(obs)
        try:
            return super().forward(obs, lstm_states, episode_starts, deterministic)
        finally:
            self.action_dist.drawn_by = None

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


def _narrowed(lstm: nn.LSTM, width: int) -> nn.LSTM:
    """The same, or one that reads so many columns."""
    if width >= lstm.input_size:
        return lstm
    return nn.LSTM(width, lstm.hidden_size, num_layers=lstm.num_layers)


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
