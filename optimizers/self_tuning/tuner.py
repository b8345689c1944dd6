"""`SelfTuner`: trains weights, their best response and the hyperparameters, in turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...core.controls import Control
from ...core.errors import ConfigurationError
from .augment import Augment
from .convert import plain_parameters, response_parameters
from .hyperspace import Draw, HyperSpace
from .layers import ResponseLayer
from .linearise import linearised
from .schedule import HyperSchedule, TrainLoss

Batch = tuple[Tensor, Tensor]
Optimizers = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
Variant = Literal["delta", "stn"]


def _frozen_names(module: nn.Module) -> Iterator[str]:
    """Weights and biases of a converted layer that take no gradient, and respond nevertheless."""
    for weight, bias, response in module.responses() if isinstance(module, ResponseLayer) else ():
        names = (weight,) if response.bias is None else (weight, bias)
        yield from (name for name in names if not getattr(module, name).requires_grad)


class SelfTuner:
    """Tunes hyperparameters by their own gradient, while one model trains once.

    The layers of a converted model learn how their trained weights respond to the hyperparameters;
    through that response the validation loss has a gradient with respect to them.

        space = HyperSpace().register("dropout", 0.1, 0.0, 0.95)
        model = convert(model, space)
        tuner = SelfTuner(model, space, train_loss, valid_loss, partial(torch.optim.SGD, lr=0.01))
        for batch in batches:
            tuner.step(batch, next(valid_batches))
        replay(tuner.schedule(), fresh_model, train_loss, optimizer, batches)

    CANNOT tune a learning rate or a momentum: the optimum whose response is learned depends on
    neither. `HyperSpace.register` refuses them; a policy (`lhopt.client.Tuner`) steers them.

    "delta" is Delta-STN (Bae and Grosse, 2020, arXiv:2010.13514). Per training batch, two steps:

        W           -= step on L_train(f(W), r(u))                              (1)
        (Q, V, c)   -= step on L_train(f(W) + J_h f(W) . d, r(u + d))           (2)

    with d = softplus(s) * N(0, I) per example and the Jacobian-vector product of the response taken
    by `torch.func.jvp`, and per validation batch, with dropout and augmentation off,

        (u, s)      -= step on L_valid(f(W + response(u + d - stop(u)))) - tau * entropy(s)   (3)

    The net input is centred: at d = 0 the weights are W exactly, so (1) is plain training.

    "stn" is MacKay et al., 2019, arXiv:1903.03088: one step on all of W, Q, V, c with the net input
    u + d itself. It is there to compare with; uncentred, it diverges at step sizes that "delta"
    takes. As in the paper, (3) has no direct path through r(u). Unlike there, Q starts at 0.

    The response is learned with forward-mode derivatives: a model may hold any torch operation that
    has one. BatchNorm's running statistics are updated by (1) alone.

    Args:
        model: A converted model; see `convert`.
        space: The space that it was converted with. It is moved to the model's dtype and device.
        train_loss: (output, targets, values, model) -> scalar. Values are (B,) for scope
            "example" in (2), else (1,); `squared_norm(model)` is the norm for a weight decay.
        valid_loss: (output, targets) -> scalar; another than `train_loss`, because a validation
            loss that held the weight decay would tune it to 0.
        weight_optimizer: Makes the optimizer of a list of parameters, those that take a gradient,
            e.g. `partial(torch.optim.SGD, lr=0.01, momentum=0.9)`. Its own weight_decay is not
            tuned.
        response_optimizer: Likewise for Q, V and c of "delta"; `None` is as `weight_optimizer`.
        hyper_optimizer: Likewise for u and s; `None` is RMSprop at 1e-2.
        variant: "delta" or "stn".
        ratio: Training steps : validation steps of `step`.
        warmup: Training steps before `step` takes the first validation step.
        entropy_weight: tau, which keeps s from collapsing; 1e-5 to 1e-2.
        tune_scale: Whether s is tuned; if not, (3) takes d = 0.
        augment: (inputs, values, generator) -> inputs, on training batches alone.
        batch_dim: The dimension of inputs, and of what layers see, that counts examples.
        seed: Of perturbations, of converted dropout and of `augment`.

    Attributes:
        weight_optimizer: Of W; of all parameters for "stn".
        response_optimizer: Of Q, V and c; `None` for "stn".
        hyper_optimizer: Of u, and of s where it is tuned.
        steps: Training steps taken.
        controls: What of the tuner itself may be steered on the way; each is an attribute of
            this name.

    Raises:
        ConfigurationError: The model is not converted with this space, a converted layer was
            frozen afterwards, both losses are one, or a value is out of its range.
    """

    controls: ClassVar[tuple[Control, ...]] = (
        Control("hyper_learning_rate", "scale", (0.5, 1.0, 2.0), low=1e-6, high=1.0, start=1e-2),
        Control("entropy_weight", "scale", (0.5, 1.0, 2.0), low=1e-7, high=1.0, start=1e-3),
        Control("train_valid_ratio", "scale", (0.5, 1.0, 2.0), low=0.1, high=100.0, start=5.0),
    )

    def __init__(
        self,
        model: nn.Module,
        space: HyperSpace,
        train_loss: TrainLoss,
        valid_loss: Callable[[Tensor, Tensor], Tensor],
        weight_optimizer: Optimizers,
        *,
        response_optimizer: Optimizers | None = None,
        hyper_optimizer: Optimizers | None = None,
        variant: Variant = "delta",
        ratio: tuple[float, float] = (5, 1),
        warmup: int = 0,
        entropy_weight: float = 1e-3,
        tune_scale: bool = True,
        augment: Augment | None = None,
        batch_dim: int = 0,
        seed: int = 0,
    ) -> None:
        spaces = {id(m.space) for m in model.modules() if isinstance(m, ResponseLayer)}
        if spaces != {id(space)}:
            raise ConfigurationError(
                f"{type(model).__name__} is not converted with this HyperSpace. Call "
                "convert(model, space) first, and keep both together when they are copied."
            )
        for path, module in model.named_modules():
            for name in _frozen_names(module):
                raise ConfigurationError(
                    f"{name} of the module {path!r} is frozen and was converted, so it would go on "
                    "moving with the hyperparameters. Freeze it before convert(model, space)."
                )
        if train_loss is valid_loss:  # type: ignore[comparison-overlap]
            raise ConfigurationError(
                "train_loss and valid_loss are one function. Validation must measure without "
                "weight decay and other regularisation, or it tunes them to nothing; pass two."
            )
        if variant not in ("delta", "stn"):
            raise ConfigurationError(f"variant is {variant!r}; 'delta' and 'stn' are known.")
        if batch_dim not in (0, 1):
            raise ConfigurationError(f"batch_dim is {batch_dim!r}; it must be 0 or 1.")
        if not 0.0 <= entropy_weight < math.inf or warmup < 0:
            raise ConfigurationError(
                f"entropy_weight is {entropy_weight!r} and warmup {warmup!r}; both must be finite "
                "and at least 0."
            )
        if tune_scale and float(space.scales().detach().min()) <= 0.0:
            raise ConfigurationError(
                "A hyperparameter is registered with scale=0, whose entropy is not finite. "
                "Register a scale > 0, or pass tune_scale=False."
            )
        made = {
            "weight_optimizer": weight_optimizer,
            "response_optimizer": response_optimizer or weight_optimizer,
            "hyper_optimizer": hyper_optimizer or partial(torch.optim.RMSprop, lr=1e-2),
        }
        for name, make in made.items():
            if isinstance(make, torch.optim.Optimizer) or not callable(make):
                raise ConfigurationError(
                    f"{name} is a {type(make).__name__}; what makes one of parameters is wanted, "
                    "e.g. partial(torch.optim.SGD, lr=0.01)."
                )
        self.model, self.space, self.variant = model, space, variant
        self.train_loss, self.valid_loss, self.augment = train_loss, valid_loss, augment
        self.ratio, self.warmup = ratio, warmup
        self.entropy_weight, self.tune_scale = entropy_weight, tune_scale
        self.batch_dim = batch_dim
        self.steps = 0
        self._owed = 0.0

        plain, responses = plain_parameters(model), response_parameters(model)
        space.move(plain[0])
        space.centred = variant == "delta"
        space.generator = torch.Generator(plain[0].device).manual_seed(seed)
        plain = [p for p in plain if p.requires_grad]
        self.weight_optimizer = weight_optimizer(plain if space.centred else plain + responses)
        self.response_optimizer = made["response_optimizer"](responses) if space.centred else None
        self.hyper_optimizer = made["hyper_optimizer"](
            [space.raw, space.raw_scale] if tune_scale else [space.raw]
        )
        self._entries: list[tuple[int, str, float]] = []
        self._gradients: list[Tensor] = []
        self._record()

    @property
    def ratio(self) -> tuple[float, float]:
        """Training steps : validation steps that `step` takes."""
        return self._ratio

    @ratio.setter
    def ratio(self, ratio: tuple[float, float]) -> None:
        if len(ratio) != 2 or not all(0.0 < part < math.inf for part in ratio):
            raise ConfigurationError(
                f"ratio is {ratio!r}; two numbers > 0 are wanted, training : validation steps."
            )
        self._ratio = (ratio[0], ratio[1])

    @property
    def train_valid_ratio(self) -> float:
        """Training steps per validation step."""
        return self.ratio[0] / self.ratio[1]

    @train_valid_ratio.setter
    def train_valid_ratio(self, value: float) -> None:
        self.ratio = (value, 1.0)

    @property
    def hyper_learning_rate(self) -> float:
        """The learning rate of `hyper_optimizer`."""
        return float(self.hyper_optimizer.param_groups[0]["lr"])

    @hyper_learning_rate.setter
    def hyper_learning_rate(self, value: float) -> None:
        for group in self.hyper_optimizer.param_groups:
            group["lr"] = value

    def step(self, train_batch: Batch, valid_batch: Batch | Callable[[], Batch]) -> Tensor:
        """One training step, and the validation steps that `ratio` makes due after it.

        Args:
            train_batch: (inputs, targets).
            valid_batch: Likewise, of other examples, or a function that is called for each
                validation step.

        Returns:
            The training loss, detached.
        """
        loss = self.train_step(train_batch)
        if self.steps > self.warmup:
            self._owed += self.ratio[1]
            while self._owed >= self.ratio[0]:
                self._owed -= self.ratio[0]
                self.valid_step(valid_batch() if callable(valid_batch) else valid_batch)
        return loss

    def train_step(self, batch: Batch) -> Tensor:
        """Train the weights, then (Delta-STN) their response: equations (1) and (2).

        Returns:
            The loss of (1), or of the perturbed model for "stn"; detached.
        """
        self.model.train()
        if self.response_optimizer is None:
            raw = self._perturbed(batch[0])
            loss = self._train(self.weight_optimizer, batch, Draw(raw, self.space.values(raw)))
        else:
            loss = self._train(self.weight_optimizer, batch, Draw(None, self.space.values()))
            raw = self._perturbed(batch[0])
            change = raw - self.space.raw.detach()
            draw = Draw(change, self.space.values(raw))
            self._train(self.response_optimizer, batch, draw, linear=True)
        self.steps += 1
        return loss

    def _perturbed(self, inputs: Tensor) -> Tensor:
        noise = self.space.noise(inputs.shape[self.batch_dim])
        return (self.space.raw + self.space.scales() * noise).detach()

    def _train(
        self,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        draw: Draw,
        linear: bool = False,
    ) -> Tensor:
        inputs, targets = batch
        with self.space.using(replace(draw, batch_dim=self.batch_dim)):
            if self.augment is not None:
                inputs = self.augment(inputs, draw.values, self.space.generator)
            output = linearised(self.model, self.space, inputs) if linear else self.model(inputs)
            # the penalty of weights is quadratic in the net input: exact without linearisation
            loss = self.train_loss(output, targets, draw.values, self.model)
        optimizer.zero_grad()
        held = [p for group in optimizer.param_groups for p in group["params"]]
        params = [p for p in held if p.requires_grad]  # some may have been frozen on the way
        torch.autograd.backward(loss, inputs=params)
        optimizer.step()
        return loss.detach()

    def valid_step(self, batch: Batch) -> Tensor:
        """Move the hyperparameters by the gradient of the validation loss: equation (3).

        Returns:
            The validation loss, without the entropy; detached.
        """
        inputs, targets = batch
        space, training = self.space, self.model.training
        raw = space.raw[None]
        if self.tune_scale:
            raw = raw + space.scales() * space.noise(inputs.shape[self.batch_dim])
        net_input = raw - space.raw.detach() if space.centred else raw
        self.model.eval()
        try:
            with space.using(Draw(net_input, space.values(raw), self.batch_dim)):
                loss = self.valid_loss(self.model(inputs), targets)
        finally:
            self.model.train(training)
        objective = loss
        if self.tune_scale:
            entropy = (space.scales() * math.sqrt(2.0 * math.pi * math.e)).log().sum()
            objective = loss - self.entropy_weight * entropy
        self.hyper_optimizer.zero_grad()
        params = [space.raw, space.raw_scale] if self.tune_scale else [space.raw]
        torch.autograd.backward(objective, inputs=params)
        if space.raw.grad is not None:
            self._gradients = [*self._gradients[-1:], space.raw.grad.clone()]
        self.hyper_optimizer.step()
        self._record()
        return loss.detach()

    def _record(self) -> None:
        while self._entries and self._entries[-1][0] == self.steps:
            self._entries.pop()
        self._entries += [(self.steps, name, value) for name, value in self.values().items()]

    def values(self) -> dict[str, float]:
        """The current values by name."""
        return {name: float(value) for name, value in self.space.values().items()}

    def schedule(self) -> HyperSchedule:
        """Every value since the start, for `replay`."""
        return HyperSchedule(tuple(self._entries))

    def features(self) -> dict[str, float]:
        """Numbers without a unit that tell how tuning goes, for a controller.

        Returns:
            "hypergradient_cosine", between the last two (0 before there are two), and
            "scale/<name>", the standard deviation of each perturbation.
        """
        cosine = 0.0
        if len(self._gradients) == 2:
            first, second = self._gradients
            cosine = float(torch.cosine_similarity(first, second, dim=0))
        scales = zip(self.space.names, self.space.scales().detach().tolist(), strict=True)
        return {"hypergradient_cosine": cosine} | {f"scale/{name}": s for name, s in scales}

    def state_dict(self) -> dict[str, Any]:
        """All but the model, whose own `state_dict()` holds weights and responses."""
        response = self.response_optimizer
        return {
            "variant": self.variant,
            "space": self.space.state_dict(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "response_optimizer": None if response is None else response.state_dict(),
            "hyper_optimizer": self.hyper_optimizer.state_dict(),
            "generator": None if self.space.generator is None else self.space.generator.get_state(),
            "ratio": list(self.ratio),
            "entropy_weight": self.entropy_weight,
            "steps": self.steps,
            "owed": self._owed,
            "entries": [list(entry) for entry in self._entries],
            "gradients": [gradient.clone() for gradient in self._gradients],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict()`, to the bit, once the model's is loaded.

        Raises:
            ConfigurationError: It is of another variant or of other hyperparameters.
        """
        if state["variant"] != self.variant:
            raise ConfigurationError(
                f"The saved tuner is of variant {state['variant']!r}, this one of "
                f"{self.variant!r}; build it with the same."
            )
        self.space.load_state_dict(state["space"])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        if self.response_optimizer is not None:
            self.response_optimizer.load_state_dict(state["response_optimizer"])
        self.hyper_optimizer.load_state_dict(state["hyper_optimizer"])
        assert self.space.generator is not None
        self.space.generator.set_state(state["generator"].cpu())
        self.ratio = tuple(state["ratio"])
        self.entropy_weight = state["entropy_weight"]
        self.steps, self._owed = state["steps"], state["owed"]
        self._entries = [(int(k), str(name), float(v)) for k, name, v in state["entries"]]
        self._gradients = [g.to(self.space.raw) for g in state["gradients"]]
