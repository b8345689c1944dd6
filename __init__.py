"""A learned policy that steers the hyperparameters of a running training job.

Nothing is imported here: take `from lhopt.client import Tuner` and the like.
"""

__version__ = "0.1.0"
