"""The held-out tasks of the bench: families that no policy trains on or is chosen by.

Tasks and lengths were chosen by the baseline's frontier alone, among the default task and the first
draws of each family: a standard error of at most `MAX_RESOLUTION` octaves, a best rate inside the
grid, and a loss that falls from each budget to the next; at most two per family. No policy's result
chose any.
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

HELD_OUT: tuple[TaskSpec, ...] = (
    TaskSpec("digits-vit/1", 300),
    TaskSpec("digits-vit/2", 250),
    TaskSpec("char-gru", 250),
    TaskSpec("char-gru/1", 250),
    TaskSpec("char-transformer", 250),
    TaskSpec("char-transformer/1", 250),
    TaskSpec("digits-autoencoder/1", 400),
    TaskSpec("digits-autoencoder/2", 300),
    TaskSpec("addition-rnn", 300),
)
