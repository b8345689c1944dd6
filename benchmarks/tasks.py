"""The held-out tasks of the bench: families that no policy trains on or is chosen by.

Tasks and lengths were chosen by the baseline's frontier alone: its standard error is at most
`MAX_RESOLUTION` octaves, and the best rate lies inside the grid. No policy's result chose any.
"""

from __future__ import annotations

from ..env.pool import TaskSpec

#: Families that appear in no training and no evaluation of a policy.
HELD_OUT_FAMILIES: tuple[str, ...] = (
    "digits-vit",
    "char-gru",
    "char-transformer",
    "digits-autoencoder",
    "addition-rnn",
)
#: Octaves of standard error that a held-out task's frontier may have.
MAX_RESOLUTION = 0.3

HELD_OUT: tuple[TaskSpec, ...] = (TaskSpec("digits-vit", 300),)
