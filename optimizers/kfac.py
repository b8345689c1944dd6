"""`KFAC`: the natural gradient of Linear and Conv2d layers, before any torch optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, overload

import torch
from torch import Tensor, nn

from ..core.errors import ConfigurationError
from .kfac_hooks import Recorder, preconditionable, unseen
from .kronecker import KroneckerLayer
from .layerwise import check, not_negative, number, positive
from .local_sgd.controller import LocalSGD
from .saving import loading, saving

#: Keys that an inner optimizer's groups get.
_OWN = ("damping", "kl_clip")
#: Attribute of the inner optimizer: which of them each group did not have before.
_PUT = "_kfac_keys"
_FISHERS = ("empirical", "sampled")
_REDUCTIONS = ("mean", "sum")
#: Updates in a row that a layer's factors may go without statistics, as of batches not finite.
_PATIENCE = 10


class KFAC(torch.optim.Optimizer):
    r"""Preconditions gradients by Kronecker-factored curvature, then lets an optimizer step.

    For each Linear and Conv2d with the weight gradient W (out x rest, the bias as a last column):

        A = mean of a a^T,  G = mean of g g^T   (a: input; g: a case's gradient by the output)
        V = (G + sqrt(damping) / pi)^-1 W (A + pi sqrt(damping))^-1
        V = V min(1, sqrt(kl_clip / (lr**2 <V, W>)))       (the sum over the group's layers)

    The inner optimizer steps with V in place of the gradient; afterwards `p.grad` is what it was.
    Other parameters (norms, embeddings) pass through, and a frozen bias is no column. The parameter
    groups are the inner optimizer's own, with the keys "damping" and "kl_clip" added: a scheduler
    or a controller on either acts on both, and every value may be changed between steps.

        optimizer = KFAC(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))

    Factors are seen by hooks, in training mode with gradients on. Gradients of a true loss give
    the empirical Fisher. The Fisher itself wants labels drawn from the model (`fisher="sampled"`),
    at the cost of a second backward pass:

        logits = model(x)
        if optimizer.factors_due:
            with optimizer.sampling():      # parameters' gradients stay out of it
                drawn = torch.distributions.Categorical(logits=logits).sample()
                F.cross_entropy(logits, drawn).backward(retain_graph=True)
        F.cross_entropy(logits, y).backward()
        optimizer.step()

    What the loss is of its cases scales G, so it must be told (`reduction`, `loss_dims`). V is the
    step for the loss as it is, whose curvature damping is added to: a sum over n cases has n times
    that of their mean. With "mean", gradients that are accumulated must be the mean over all cases
    since the last step: divide each loss by the number of backward passes. Terms of one loss are
    added up before backward(), for a second pass counts as more cases. In `sampling()` each block
    stands alone, and nothing is divided. Hooks see gradients before a GradScaler unscales them, so
    G would hold the scale's square, and that cannot be told from clipping: pass `loss_scale`, or
    use bfloat16.

    A layer whose gradient is not 0 while no statistics come is refused, at once if it has no
    factors yet, else at the tenth update in a row: its factors would grow stale. Larger intervals
    between updates are `factor_interval`'s to say.

    Workers of a distributed run each keep their own factors. LocalSGD goes around K-FAC,
    `LocalSGD(KFAC(model, inner), schedule, ProcessGroup())`; passes that are given up are forgotten
    by the `zero_grad` of K-FAC only.

    Args:
        model: Its Linear and Conv2d layers whose weight the optimizer holds are preconditioned.
        optimizer: Steps with what comes out; any but LBFGS and LocalSGD.
        damping: 1e-6 to 1e-1; larger is closer to the plain gradient. 0 is the pseudo-inverse. Of
            groups that have no "damping" of their own; one that an earlier K-FAC put in is none.
        kl_clip: Likewise; bound on lr**2 <V, W>, about twice the KL divergence of one step; 1e-4
            to 1e-1. `None` for no bound, as for an inner optimizer whose steps do not grow with V
            (Adam).
        factor_decay: Of the factors' averages; before 1 / (1 - factor_decay) updates they are
            plain means, so the first has no bias.
        factor_interval: Steps between updates of the factors.
        inverse_interval: Steps between eigendecompositions; damping acts at once nevertheless.
        fisher: "empirical" or "sampled".
        reduction: "mean" or "sum", what the loss is over its cases.
        loss_dims: Leading dimensions of a Linear's output that count cases: 1 for a loss per
            example, 2 for one per token of sequences. A Conv2d's cases are its images.
        exclude: Names of modules that pass through, with all that is in them.
        loss_scale: Gives what losses are multiplied by, those in `sampling()` too, since the last
            step: `scaler.get_scale` of a torch.amp.GradScaler. `None` for nothing.

    Raises:
        ConfigurationError: A value is out of its range, there is nothing to precondition, two
            modules share a weight, a layer is called twice in one backward pass, or gradients
            came without their statistics.
        UnknownNameError: A name in `exclude` is not of the model.

    Source: Martens and Grosse, 2015, arXiv:1503.05671; Grosse and Martens, 2016, arXiv:1602.01573
    for convolutions; Ba, Grosse and Martens, 2017 (ICLR) for the bound on a step's KL divergence.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        damping: float = 1e-3,
        kl_clip: float | None = 1e-3,
        *,
        factor_decay: float = 0.95,
        factor_interval: int = 1,
        inverse_interval: int = 10,
        fisher: str = "empirical",
        reduction: str = "mean",
        loss_dims: int = 1,
        exclude: Sequence[str] = (),
        loss_scale: Callable[[], float] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ConfigurationError(
                f"model is of type {type(model).__name__}; the nn.Module itself is wanted: "
                "KFAC(model, inner)."
            )
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ConfigurationError(
                f"optimizer is of type {type(optimizer).__name__}; an optimizer of the model's "
                "parameters is wanted: KFAC(model, inner)."
            )
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ConfigurationError(
                "optimizer is LBFGS, which calls the closure many times a step; K-FAC would "
                "precondition one gradient of them. Use a first-order optimizer, such as SGD."
            )
        if isinstance(optimizer, LocalSGD):
            raise ConfigurationError(
                "optimizer is LocalSGD, whose workers may be stacked in one tensor, and whose "
                "checkpoints K-FAC would not notice. Put it outside: "
                "LocalSGD(KFAC(model, inner), schedule, ProcessGroup())."
            )
        if not (loss_scale is None or callable(loss_scale)):
            raise ConfigurationError(
                f"loss_scale is {loss_scale!r}; a function that gives the scale is wanted, such as "
                "scaler.get_scale (it changes while training), or None."
            )
        _choose("fisher", fisher, _FISHERS)
        _choose("reduction", reduction, _REDUCTIONS)
        words = {"factor_decay": factor_decay}
        check(words, "factor_decay", lambda value: 0.0 <= value < 1.0, "in [0, 1)")
        for key, value in (
            ("factor_interval", factor_interval),
            ("inverse_interval", inverse_interval),
            ("loss_dims", loss_dims),
        ):
            if not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{key} is {value!r}; a whole number from 1 is wanted.")
        self.inner, self.model = optimizer, model
        self.fisher, self.reduction = fisher, reduction
        self.factor_decay = factor_decay
        self.factor_interval, self.inverse_interval = factor_interval, inverse_interval
        self._loss_dims, self._exclude, self._loss_scale = loss_dims, tuple(exclude), loss_scale
        self._steps, self._sampling = 0, False
        self._layers: dict[str, KroneckerLayer] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        own = {"damping": damping, "kl_clip": kl_clip}
        before = [dict(group) for group in optimizer.param_groups], vars(optimizer).get(_PUT, [])
        try:
            _take_out(optimizer)
            for group in optimizer.param_groups:
                _check({**own, **group})
            vars(optimizer)[_PUT] = [_absent(group) for group in optimizer.param_groups]
            super().__init__(optimizer.param_groups, own)
            self._share()
            self._find_layers()
            if not self._layers:
                name = type(optimizer).__name__
                left = f" (exclude is {self._exclude})" if self._exclude else ""
                raise ConfigurationError(
                    f"The model has no nn.Linear or nn.Conv2d whose weight this {name} steps"
                    f"{left}; K-FAC preconditions only those. Use the {name} alone."
                )
        except BaseException:
            self.remove_hooks()
            groups, vars(optimizer)[_PUT] = before
            for group, held in zip(optimizer.param_groups, groups, strict=True):
                group.clear()
                group.update(held)
            raise
        # torch puts new groups in place of the old ones when a state is loaded
        optimizer.register_load_state_dict_post_hook(lambda _: self._share())

    def _share(self) -> None:
        """Take the inner optimizer's groups and state for our own."""
        own = {key: self.defaults[key] for key in _OWN}
        self.defaults = {**self.inner.defaults, **own}
        for group in self.inner.param_groups:
            for key, value in own.items():
                group.setdefault(key, value)
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the inner optimizer; their layers are preconditioned from now on."""
        if any(param_group is group for group in self.inner.param_groups):
            super().add_param_group(param_group)  # while we are made
            return
        own = {key: self.defaults[key] for key in _OWN}
        _check({**self.defaults, **param_group})
        self.inner.add_param_group({**own, **param_group})
        vars(self.inner)[_PUT].append(_absent(param_group))
        self._share()
        self._find_layers()

    def _find_layers(self) -> None:
        """Hook every layer that is ours and not yet hooked."""
        held = {p for group in self.param_groups for p in group["params"]}
        for name, module in preconditionable(self.model, held, self._exclude):
            if name in self._layers:
                continue
            bias = module.bias is not None and module.bias in held
            mean = self.reduction == "mean"
            layer = KroneckerLayer(module, bias, mean, self._loss_dims)
            self._layers[name] = layer
            recorder = Recorder(self, name, layer)
            self._hooks.append(module.register_forward_hook(recorder, with_kwargs=True))

    def remove_hooks(self) -> None:
        """Take our hooks off the model; from now on factors stay as they are."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @property
    def factors_due(self) -> bool:
        """Whether the next step updates factors."""
        return any(self.due(layer) for layer in self._layers.values())

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Record the factors from the backward passes inside; gradients are kept out of `p.grad`.

        The loss inside is of labels drawn from the model, a mean or a sum over its cases as
        `reduction` says. For squared errors draw the outputs plus noise of variance 1, where the
        loss is half the square.

        Raises:
            ConfigurationError: `fisher` is "empirical".
        """
        if self.fisher != "sampled":
            raise ConfigurationError(
                f"sampling() while fisher is {self.fisher!r}: the factors come from the true "
                'backward pass. Pass fisher="sampled".'
            )
        held = [(p, p.grad) for p in self.model.parameters()]
        self._sampling = True
        try:
            for p, _ in held:
                p.grad = None
            yield
            self._close()
        finally:
            self._sampling = False
            for layer in self._layers.values():
                layer.drop()
            for p, gradient in held:
                p.grad = gradient

    def _close(self) -> None:
        """Turn what hooks saw into sums over derivatives of single cases."""
        scale = 1.0 if self._loss_scale is None else number(self._loss_scale())
        if not positive(scale):
            raise ConfigurationError(f"loss_scale() gave {scale}; it must be finite and above 0.")
        for layer in self._layers.values():
            layer.close(scale)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients, and with them the statistics of passes that no step has used."""
        if self.fisher == "empirical":
            for layer in self._layers.values():
                layer.drop()
        super().zero_grad(set_to_none)

    @property
    def recording(self) -> bool:
        """Whether a backward pass that runs now is taken for the factors."""
        return self._sampling or self.fisher == "empirical"

    def due(self, layer: KroneckerLayer) -> bool:
        """Whether the next step updates a layer's factors."""
        return layer.factors is None or self._steps % self.factor_interval == 0

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the factors, precondition, let the inner optimizer step, put `p.grad` back.

        Args:
            closure: Computes the loss and its gradients again, once; its result is returned.

        Raises:
            ConfigurationError: A gradient is sparse, or came without its statistics (at the tenth
                due update in a row if the layer has factors).
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.fisher == "empirical":
            self._close()
        for layer in self._layers.values():
            layer.average(self.factor_decay)
            stale = layer.eigen is None or self._steps % self.inverse_interval == 0
            if (stale or layer.resized) and layer.factors is not None:
                layer.decompose()
        new = self._preconditioned()
        held = [(p, p.grad) for p, _ in new]
        try:
            for p, gradient in new:
                p.grad = gradient
            self.inner.step()
        finally:
            for p, old in held:
                p.grad = old
        self._steps += 1
        return loss

    def _preconditioned(self) -> list[tuple[Tensor, Tensor]]:
        """Parameters with what stands in for their gradients during the inner step."""
        group_of = {p: i for i, group in enumerate(self.param_groups) for p in group["params"]}
        out: list[tuple[int, Tensor, Tensor]] = []
        products: dict[int, Tensor] = {}
        for name, layer in self._layers.items():
            weight, bias = layer.module.weight, layer.module.bias
            if weight.grad is None or weight not in group_of:
                continue
            if weight.grad.is_sparse:
                raise ConfigurationError(
                    f"The gradient of {name}.weight is sparse; K-FAC takes dense ones."
                )
            matrix = weight.grad.flatten(1)
            of_bias = bias.grad if bias is not None and layer.bias else None
            if of_bias is not None:
                matrix = torch.cat([matrix, of_bias.unsqueeze(1)], 1)
            if not layer.fresh and self.due(layer) and matrix.any():
                if layer.eigen is None:
                    raise ConfigurationError(unseen(name, self.fisher))
                layer.missed += 1
                if self._hooks and layer.missed >= _PATIENCE:
                    raise ConfigurationError(unseen(name, self.fisher, layer.missed))
            if layer.eigen is None:
                continue  # no factors turn 0 into something else
            index = group_of[weight]
            v = layer.precondition(matrix, float(self.param_groups[index]["damping"]))
            product = (v * matrix).sum()
            products[index] = products[index] + product if index in products else product
            out.append((index, weight, v[:, : weight[0].numel()].reshape(weight.shape)))
            if bias is not None and of_bias is not None:
                out.append((index, bias, v[:, -1]))
        scales = {i: _kl_scale(self.param_groups[i], product) for i, product in products.items()}
        return [(p, (v * scales[i]).to(p.dtype).contiguous()) for i, p, v in out]

    @saving
    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state, with the factors under "kfac"."""
        layers = {name: layer.state_dict() for name, layer in self._layers.items()}
        return {**self.inner.state_dict(), "kfac": {"steps": self._steps, "layers": layers}}

    @loading
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a `state_dict()`, to the bit.

        Raises:
            ConfigurationError: The state is of another optimizer or model.
        """
        rest = dict(state_dict)
        own = rest.pop("kfac", None)
        if own is None:
            raise ConfigurationError(
                "The state holds no 'kfac': it is of another optimizer. To begin with its inner "
                "state alone, load that into `inner`."
            )
        saved = own["layers"]
        if set(saved) != set(self._layers):
            raise ConfigurationError(
                f"The state is of the layers {', '.join(sorted(saved))}; this model has "
                f"{', '.join(sorted(self._layers))}."
            )
        for name, layer in self._layers.items():
            groups, outputs, inputs = layer.shape
            wanted = [(groups, inputs, inputs), (groups, outputs, outputs)]
            factors = saved[name]["factors"]
            if factors is not None and [tuple(f.shape) for f in factors] != wanted:
                raise ConfigurationError(
                    f"The saved factors of {name} have the shapes "
                    f"{[tuple(f.shape) for f in factors]}; this model's have {wanted}."
                )
        self.inner.load_state_dict(rest)
        self._share()  # an optimizer of optimizers fires no hooks of its own
        self._steps = own["steps"]
        for name, layer in self._layers.items():
            layer.load_state_dict(saved[name])

    def __getstate__(self) -> NoReturn:
        raise ConfigurationError(
            "A KFAC cannot be copied or pickled: its hooks belong to one model. Make a new one on "
            "the copied model and load the state_dict() into it."
        )


def _absent(group: dict[str, Any]) -> list[str]:
    return [key for key in _OWN if key not in group]


def _take_out(optimizer: torch.optim.Optimizer) -> None:
    """Take out of the groups what an earlier K-FAC put in, or it would pass for their own."""
    for group, keys in zip(optimizer.param_groups, vars(optimizer).get(_PUT, []), strict=False):
        for key in keys:
            group.pop(key, None)


def _kl_scale(group: dict[str, Any], product: Tensor) -> Tensor | float:
    """Factor of a group's gradients that keeps lr**2 <V, W> within kl_clip."""
    if group["kl_clip"] is None:
        return 1.0
    size = group["lr"] ** 2 * product
    bound = (group["kl_clip"] / size).sqrt().clamp(max=1.0)
    return torch.where(size > 0, bound, 1.0)


def _choose(key: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigurationError(f"{key} is {value!r}; it must be one of {', '.join(allowed)}.")


def _check(group: dict[str, Any]) -> None:
    """Refuse values of a group that would train nothing, or nan."""
    check(group, "damping", not_negative, "a finite number of at least 0")
    if group["kl_clip"] is None:
        return
    check(group, "kl_clip", positive, "a finite number greater than 0, or None for no bound")
    if "lr" not in group:
        raise ConfigurationError(
            f"kl_clip is {group['kl_clip']} and the inner optimizer's groups have no 'lr', which "
            "the bound is on. Pass kl_clip=None."
        )
