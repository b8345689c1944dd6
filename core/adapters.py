"""What each optimizer lets us steer and measure. A new optimizer is one line in `ADAPTERS`.

Nothing here imports torch: adapters read and write parameter groups, and use tensor methods alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .errors import ConfigurationError

Group = dict[str, Any]
#: Samples a tensor of the parameter's shape; see `client/measurement.py`.
Take = Callable[[Any], Any]


def to_float(value: Any) -> float:
    """A group's value as a float; for a tensor on a device this waits for the device."""
    return float(value)


def set_value(group: Group, key: str, value: float) -> None:
    """Write a group's value; a tensor is written in place, because graphs hold on to it."""
    if hasattr(group[key], "fill_"):
        group[key].fill_(value)
    else:
        group[key] = value


@dataclass(frozen=True)
class Slot:
    """Where a control lives in a parameter group.

    Attributes:
        key: The group's key.
        index: Position in a tuple ("betas"), or `None` for a plain value.
        complement: The control is 1 minus what the group holds.
        caution: What goes wrong if it moves while the optimizer runs; empty if nothing does.
        least: What a group that holds more than 0 is left with at least.
    """

    key: str
    index: int | None = None
    complement: bool = False
    caution: str = ""
    least: float = 0.0

    def raw(self, group: Group) -> Any:
        """What the group holds, or `None`."""
        value = group.get(self.key)
        return value if self.index is None or value is None else value[self.index]

    def read(self, group: Group, *, moved: bool = False) -> float | None:
        """The control's value; `None` where the group has none, or one that cannot be scaled.

        Args:
            group: A parameter group.
            moved: A beta of 0 counts: it is where we moved it, not "no momentum".
        """
        raw = self.raw(group)
        if raw is None or isinstance(raw, bool):
            return None
        held = to_float(raw)
        value = 1.0 - held if self.complement else held
        # a momentum of 0 is "no momentum", as a weight decay of 0 is "no weight decay"
        return value if math.isfinite(value) and value > 0 and (moved or held != 0) else None

    def write(self, group: Group, value: float) -> None:
        """Set the control's value."""
        held = 1.0 - value if self.complement else value
        if held < self.least and self.raw(group):
            held = self.least
        if self.index is None:
            set_value(group, self.key, held)
        elif hasattr(group[self.key][self.index], "fill_"):
            group[self.key][self.index].fill_(held)
        else:
            values = list(group[self.key])
            values[self.index] = held
            group[self.key] = type(group[self.key])(values)


#: Of an optimizer after its step, a group, a parameter: sampled momentum and [sqrt(v) > eps].
Reader = Callable[[Any, Group, Any, Take], tuple[Any | None, Any | None]]


def _nothing(optimizer: Any, group: Group, param: Any, take: Take) -> tuple[Any, Any]:
    return None, None


def _adam(optimizer: Any, group: Group, param: Any, take: Take) -> tuple[Any, Any]:
    state = optimizer.state[param]
    beta1, beta2 = group["betas"]
    momentum = take(state["exp_avg"]) / (1.0 - beta1 ** state["step"])
    second = take(state["exp_avg_sq"]) / (1.0 - beta2 ** state["step"])
    return momentum, second.sqrt() > group["eps"]


def _sgd(optimizer: Any, group: Group, param: Any, take: Take) -> tuple[Any, Any]:
    # `state` makes an entry for whatever it is asked for: never ask for what it may not have
    buffer = optimizer.state[param].get("momentum_buffer") if param in optimizer.state else None
    return (None if buffer is None else take(buffer)), None


def _rmsprop(optimizer: Any, group: Group, param: Any, take: Take) -> tuple[Any, Any]:
    momentum, _ = _sgd(optimizer, group, param, take)
    return momentum, take(optimizer.state[param]["square_avg"]).sqrt() > group["eps"]


def _adagrad(optimizer: Any, group: Group, param: Any, take: Take) -> tuple[Any, Any]:
    return None, take(optimizer.state[param]["sum"]).sqrt() > group["eps"]


def _lamb(optimizer: Any, group: Group, param: Any, take: Take) -> tuple[Any, Any]:
    state = optimizer.state[param]
    momentum = take(state["exp_avg"]) / (1.0 - state["product1"])
    second = take(state["exp_avg_sq"]) / (1.0 - state["product2"])
    return momentum, second.sqrt() > group["eps"]


def _steerable(optimizer: Any, group: Group, param: Any, take: Take) -> tuple[Any, Any]:
    momentum, adam_like = optimizer.momentum(param), optimizer.adam_like(param)
    return (
        None if momentum is None else take(momentum),
        None if adam_like is None else take(adam_like),
    )


@dataclass(frozen=True)
class Adapter:
    """How to steer and measure one optimizer.

    Attributes:
        name: The optimizer as policies name it, e.g. "torch.optim.AdamW".
        slots: Where each control lives in the parameter groups.
        reader: Reads momentum and second moment after a step.
        attributes: Controls that the optimizer has once and not per group, by attribute.
        wraps: Attribute of the optimizer inside, whose parameter groups this one shares; its
            slots and its reader come before our own.
        clipped: Attribute that says whether the last step clipped: a number, a tensor or None.
    """

    name: str
    slots: Mapping[str, Slot]
    reader: Reader = _nothing
    attributes: Mapping[str, str] = field(default_factory=dict)
    wraps: str | None = None
    clipped: str = "last_clipped"


def _betas(caution: str = "") -> dict[str, Slot]:
    return {
        "one_minus_beta1": Slot("betas", 0, complement=True, caution=caution),
        "one_minus_beta2": Slot("betas", 1, complement=True, caution=caution),
    }


LEARNING_RATE = {"learning_rate": Slot("lr")}
DECAY = {"weight_decay": Slot("weight_decay")}
EPS = {"eps": Slot("eps")}
MOMENTUM = {"one_minus_beta1": Slot("momentum", complement=True)}
ALPHA = {"one_minus_beta2": Slot("alpha", complement=True)}
ADAM = LEARNING_RATE | _betas() | EPS | DECAY
NO_BUFFER = "switched on (from 0) after the first step, torch raises KeyError 'momentum_buffer'"
#: torch makes RMSprop's buffer at a parameter's first gradient, and only if momentum is above 0
#: then; SGD and Muon make theirs whenever it is missing.
BUFFERED = Slot("momentum", complement=True, caution=NO_BUFFER, least=1e-12)
SAME_FACTOR = "a second factor on the same step, beside the learning rate"
#: torch divides by 1 - beta**step, which is wrong for a while after beta has moved.
TORCH_ADAM = LEARNING_RATE | _betas("early on, bias correction takes it for constant") | EPS | DECAY

ADAPTERS: dict[str, Adapter] = {
    adapter.name: adapter
    for adapter in (
        Adapter("torch.optim.SGD", LEARNING_RATE | MOMENTUM | DECAY, _sgd),
        Adapter("torch.optim.Adam", TORCH_ADAM, _adam),
        Adapter("torch.optim.AdamW", TORCH_ADAM, _adam),
        Adapter("torch.optim.NAdam", TORCH_ADAM, _adam),
        Adapter(
            "torch.optim.RMSprop",
            LEARNING_RATE | {"one_minus_beta1": BUFFERED} | ALPHA | EPS | DECAY,
            _rmsprop,
        ),
        Adapter("torch.optim.Adagrad", LEARNING_RATE | EPS | DECAY, _adagrad),
        Adapter("torch.optim.Muon", LEARNING_RATE | MOMENTUM | DECAY, _sgd),
        Adapter(
            "schedulefree.AdamWScheduleFree",
            LEARNING_RATE
            | _betas("the weights are stored as a mixture made with it")
            | EPS
            | DECAY,
        ),
        Adapter(
            "prodigyopt.Prodigy",
            {"learning_rate": Slot("lr", caution="a factor on the step size that it finds itself")}
            | _betas("its estimate of the step size takes it for constant")
            | DECAY,
        ),
        Adapter("lhopt.Together", LEARNING_RATE | DECAY),
        Adapter("lhopt.AGD", {"learning_rate": Slot("gain")}),
        Adapter("lhopt.Graft", LEARNING_RATE),
        Adapter(
            "lhopt.LARS",
            LEARNING_RATE
            | MOMENTUM
            | DECAY
            | {"trust_coefficient": Slot("trust_coefficient", caution=SAME_FACTOR)},
            # no reader: the rate is inside its momentum
        ),
        Adapter("lhopt.LAMB", ADAM, _lamb),
        Adapter(
            "lhopt.KFAC",
            {"damping": Slot("damping"), "kl_clip": Slot("kl_clip")},
            wraps="inner",
        ),
        Adapter(
            "lhopt.LocalSGD",
            {},
            attributes={
                "sync_interval": "sync_interval",
                "local_batch": "local_batch",
                "outer_learning_rate": "outer_learning_rate",
                "outer_momentum": "outer_momentum",
            },
            wraps="optimizer",
        ),
        Adapter(
            "lhopt.SteerableAdamW",
            ADAM | {"clip_ratio": Slot("clip_ratio")},
            _steerable,
            clipped="_clipped",  # `last_clipped` is a float, and waits for the device
        ),
    )
}


def qualified_name(cls: type) -> str:
    """An optimizer class as policies name it: "torch.optim.AdamW", "lhopt.SteerableAdamW"."""
    for package, public in (
        ("torch.optim.", "torch.optim"),
        ("lhopt.optimizers.", "lhopt"),
        ("schedulefree.", "schedulefree"),
        ("prodigyopt.", "prodigyopt"),
    ):
        if f"{cls.__module__}.".startswith(package):
            return f"{public}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def adapter_for(optimizer: Any) -> Adapter:
    """The adapter of an optimizer, or of the nearest class it inherits from.

    A torch optimizer that nothing is registered for is steered by its learning rate alone.

    Raises:
        ConfigurationError: Not a torch optimizer, or one without a learning rate.
    """
    groups = getattr(optimizer, "param_groups", None)
    if not groups or not _takes_hooks(optimizer):
        raise ConfigurationError(
            f"optimizer is a {type(optimizer).__name__}; a torch.optim.Optimizer with parameter "
            "groups and step hooks is wanted. If it is wrapped, pass the wrapped one."
        )
    for cls in type(optimizer).__mro__:
        found = ADAPTERS.get(qualified_name(cls))
        if found is not None:
            return found if found.wraps is None else _around(found, optimizer)
    if not any("lr" in group for group in groups):
        raise ConfigurationError(
            f"{type(optimizer).__name__} has no 'lr' in its parameter groups: there is nothing "
            "to steer."
        )
    return Adapter(qualified_name(type(optimizer)), LEARNING_RATE)


def _takes_hooks(optimizer: Any) -> bool:
    """Whether hooks can be registered; a wrapper that never called `super().__init__` has none."""
    try:
        optimizer.register_step_pre_hook(_nothing).remove()
        optimizer.register_step_post_hook(_nothing).remove()
    except AttributeError:
        return False
    return True


def _around(adapter: Adapter, optimizer: Any) -> Adapter:
    """A wrapper's adapter joined with that of the optimizer inside."""
    assert adapter.wraps is not None
    wraps = adapter.wraps
    inner = adapter_for(getattr(optimizer, wraps))

    def reader(optimizer: Any, group: Group, param: Any, take: Take) -> tuple[Any, Any]:
        return inner.reader(getattr(optimizer, wraps), group, param, take)

    return replace(
        adapter,
        name=inner.name,
        slots={**inner.slots, **adapter.slots},
        attributes={**inner.attributes, **adapter.attributes},
        reader=reader,
    )
