"""Optimizers: the steerable inner optimizer, and the others of that literature, all steerable."""

from ..core.errors import MissingExtraError
from ..core.optimizer_controls import OptimizerControl, controls

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "torch", "optimizers") from error

from .agd import AGD, agd_init_
from .graft import Graft
from .hypergradient import SGDUpdate, hypergradient
from .kfac import KFAC
from .lamb import LAMB
from .lars import LARS
from .local_sgd import InProcess, LocalSGD, ProcessGroup, stack_workers, unstack_workers
from .meta_descent import MetaDescent
from .power_decay import PowerDecay
from .self_tuning import HyperSchedule, HyperSpace, SelfTuner, replay
from .self_tuning import convert as convert_to_self_tuning
from .static_correction import RatioRecord, record_ratios, static_correction
from .steerable_adamw import SteerableAdamW
from .together import Together, muon_with_adamw
from .unsupervised import UnsupervisedLearner, UpdateRule, load_rule, meta_train
from .update import ADAMW, STEERABLE, StepRule

__all__ = [
    "ADAMW",
    "AGD",
    "KFAC",
    "LAMB",
    "LARS",
    "STEERABLE",
    "Graft",
    "HyperSchedule",
    "HyperSpace",
    "InProcess",
    "LocalSGD",
    "MetaDescent",
    "OptimizerControl",
    "PowerDecay",
    "ProcessGroup",
    "RatioRecord",
    "SGDUpdate",
    "SelfTuner",
    "SteerableAdamW",
    "StepRule",
    "Together",
    "UnsupervisedLearner",
    "UpdateRule",
    "agd_init_",
    "controls",
    "convert_to_self_tuning",
    "hypergradient",
    "load_rule",
    "meta_train",
    "muon_with_adamw",
    "record_ratios",
    "replay",
    "stack_workers",
    "static_correction",
    "unstack_workers",
]
