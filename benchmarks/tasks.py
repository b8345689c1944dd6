"""The held-out tasks of the bench: no policy trains on them, is chosen by them, or sees their kind.

Tasks and lengths are those of the published protocol (tier "small") or were chosen by their cost
alone (the others): no loss of any optimizer, baseline or policy chose one. What held-out means, and
its check, is `benchmarks/held_out.py`.
"""

from __future__ import annotations

from ..env.pool import TaskSpec

#: Tier "small": nothing to download, 200 to 500 steps, 6,000 to 10,000 parameters (the protocol has
#: 6,000 to 49,000).
HELD_OUT: tuple[TaskSpec, ...] = (
    TaskSpec("digits-mlp:width=96", 300),
    TaskSpec("digits-cnn:norm=batch,width=16", 200),
    TaskSpec("digits-vit:width=32", 250),
    TaskSpec("digits-autoencoder:width=48", 400),
    TaskSpec("char-gru", 250),
    TaskSpec("char-transformer:width=24", 250),
    TaskSpec("recommender:head=product+mlp,rank=16", 500),
    TaskSpec("ill-conditioned-regression", 500),
)
#: Tier "long": the two cheapest kinds of the small tier at 4 times its lengths.
LONG: tuple[TaskSpec, ...] = (
    TaskSpec("digits-cnn:norm=batch,width=16", 800),
    TaskSpec("ill-conditioned-regression", 2000),
)
#: Tier "real": one task for each data set of `LHOPT_DATA`, and the models wide enough for it.
REAL: tuple[TaskSpec, ...] = (
    TaskSpec("mnist-mlp:width=128,depth=2,batch_size=128", 1000),
    TaskSpec("fashion-cnn:width=16,batch_size=64", 2000),
    TaskSpec("cifar-cnn:width=16,depth=3,batch_size=64", 2000),
    TaskSpec("wikitext-mlp:embed=16,width=32,batch_size=128", 2000),
    TaskSpec("shakespeare-transformer:width=32,batch_size=16", 1000),
    TaskSpec("neumf", 2000),
    TaskSpec("adult-mlp:width=128,batch_size=128", 1000),
    TaskSpec("california-mlp:width=128,batch_size=128", 2000),
    TaskSpec("covertype-mlp:width=128,batch_size=128", 4000),
)
#: Tier "real-long".
REAL_LONG: tuple[TaskSpec, ...] = (
    TaskSpec("fashion-mlp:width=128,depth=2,batch_size=128", 8000),
    TaskSpec("covertype-mlp:width=128,batch_size=128", 8000),
)

ALL: tuple[TaskSpec, ...] = (*HELD_OUT, *LONG, *REAL, *REAL_LONG)

#: Families that appear in no training and no evaluation of a policy.
HELD_OUT_FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(spec.family for spec in ALL))

#: Data that appear in no training and no evaluation of a policy.
HELD_OUT_DATASETS: tuple[str, ...] = (
    "digits",
    "python-source",
    "implicit-feedback",
    "ill-conditioned",
    "mnist",
    "fashion-mnist",
    "cifar10",
    "wikitext",
    "shakespeare",
    "movielens-1m",
    "adult",
    "california-housing",
    "covertype",
)
#: Architectures that appear in no training and no evaluation of a policy.
HELD_OUT_ARCHITECTURES: tuple[str, ...] = ("transformer", "gru", "ncf", "autoencoder")
