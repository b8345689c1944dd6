"""Environments that steer inner training runs, and the yardstick of their reward.

Importing this registers `lhopt/HyperparameterControl-v0` with Gymnasium, for `gymnasium.make` (one
run, `env/single.py`) and `gymnasium.make_vec` (many at once, `env/vector.py`).
"""

from ..core.errors import MissingExtraError

try:
    import gymnasium
except ModuleNotFoundError as error:
    if error.name != "gymnasium":
        raise
    raise MissingExtraError("gymnasium", "train") from error

ENV_ID = "lhopt/HyperparameterControl-v0"

if ENV_ID not in gymnasium.registry:
    gymnasium.register(
        ENV_ID,
        entry_point="lhopt.env.single:HyperparameterEnv",
        vector_entry_point="lhopt.env.single:make_vector",
    )
