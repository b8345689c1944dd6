"""`SteerableAdamW`: the inner optimizer that policies steer, as a `torch.optim.Optimizer`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ..core.errors import ConfigurationError
from .blocks import Scratch, matrices
from .moments import held_in, reload
from .numbers import HALF, Number, flat, placed
from .pack import PACKED, Pack, packs
from .update import (
    STEERABLE,
    Hyperparameters,
    RunState,
    StepRule,
    begin_step,
    corrections,
    update_block,
)

_KEYS = ("lr", "betas", "eps", "weight_decay", "clip_ratio")
#: What a group holds of `RunState`; moves only where the rule clips or eps is relative.
_GLOBAL = ("max_norm", "mean_square", "product2")
#: State that stays float64 whatever the parameter's dtype is.
_PRODUCTS = ("product1", "product2")
#: State of the parameter's shape.
_TENSORS = ("exp_avg", "exp_avg_sq", "average")
#: Squares that are summed in float32 before they are summed in float64.
_PIECE = 1 << 16
#: Steps from one look for what dead units leave to the next.
_SWEEP = 16
#: A momentum below this share of the root second moment moves no weight by anything that it holds.
_NOTHING = 1e-16


@dataclass(frozen=True)
class _Alone:
    """What a parameter that is in no pack knows of its last step, as a pack does."""

    run: RunState
    hyper: Hyperparameters | None


class SteerableAdamW(torch.optim.Optimizer):
    r"""AdamW with orthogonalised matrices, a clip that follows the run, and a weight average.

    Evaluate and save with the averaged weights. The defaults are tuned for them, `lhopt bench`
    measures their losses, and policies were trained on them: a validation loss that a `Tuner` is
    told is one of theirs.

        with optimizer.averaged_weights():
            evaluate(model)
            torch.save(model.state_dict(), "model.pt")

    Training goes on from the raw weights, so a checkpoint to resume from is saved outside. Running
    statistics of a BatchNorm are buffers, and stay those of the raw weights.

    Per step, over the parameters that have a gradient, with n the norm of all gradients together
    and M the decaying maximum of its past values:

        g = grad * min(1, clip_ratio * M / n);   M = max(0.99 M, n)
        m = beta1 m + (1 - beta1) g;             v = beta2 v + (1 - beta2) g**2
        u = (m / c1) / (sqrt(v / c2) + eps)

    where c = 1 - (product of the betas really used), which stays right while betas move. On a
    matrix (a convolution is out x rest), Newton-Schulz steps O make Adam's direction orthogonal,
    with a look-ahead of the momentum, and the update takes a share of the weights' own size; biases
    and other vectors take larger steps:

        u = O((beta1 m + (1 - beta1) g) / (sqrt(v / c2) + eps)) * sqrt(max(1, rows / columns))
        u = u * (rms(p) / rms(u)) ** trust_power                      (matrices)
        u = vector_scale * u                                          (all else)

    Entries of u, on matrices and elsewhere, that would climb along this step's gradient (u g < 0)
    are left out (cautious), and then

        p = p - lr weight_decay p - lr u
        a = a + (p - a) / (1 + average (t - 1))

    Every value of a parameter group may be changed between steps; a tensor is changed in place.
    Gradients are never modified, and no step waits for the device. Moments and average of
    half-precision parameters are float32, and so is their step. On a processor, momentum that is
    1e-16 of the root second moment or less, as dead units leave it, is set to 0 every sixteen
    steps, before it decays to denormal numbers, with which a step may take twenty times as long.

    Args:
        params: Parameters or groups of them; each group may have its own values.
        lr: On a matrix at trust power 1 the relative change per step; 3e-3 to 0.3 at the default
            power. 0 is allowed, for warm-ups.
        betas: Decays of both moments; 0.5 to 0.95 and 0.9 to 0.999.
        eps: Added to the denominator; 1e-10 to 1e-6.
        weight_decay: Decoupled, times lr; 0 to 0.3.
        clip_ratio: Where gradients are clipped, as a share of the decaying maximum of their norm;
            0.3 to 0.99. The norm is of all groups together.
        rule: What stays fixed over a run; see `StepRule`.

    Raises:
        ConfigurationError: A value is out of its range, a parameter is complex, or a gradient is
            sparse.

    Source: AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101), LAMB's trust ratio (You et al.,
    2020, arXiv:1904.00962), Muon (Jordan et al., 2024), cautious updates (Liang et
    al., 2024, arXiv:2411.16085), and the inner optimizer of LHOPT (Almeida
    et al., 2021, arXiv:2106.00958) for the clip and the moves of betas.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 8e-2,
        betas: tuple[float, float] = (0.85, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 5e-2,
        clip_ratio: float = 0.7,
        *,
        rule: StepRule = STEERABLE,
    ) -> None:
        self.rule = rule
        self._forget()
        values = (lr, betas, eps, weight_decay, clip_ratio)
        super().__init__(params, dict(zip(_KEYS, values, strict=True)))

    def _forget(self) -> None:
        """Start afresh with what is kept between steps and belongs in no checkpoint."""
        self._columns: dict[tuple[Any, ...], Hyperparameters] = {}
        self._last: dict[Tensor, Pack | _Alone] = {}
        self._packs: dict[int, list[Pack]] = {}
        self._scratch = Scratch()
        self._clipped: Tensor | bool | None = None
        self._swapped = False

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "rule": self.rule}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # torch calls this from load_state_dict too, where the rule stays
        if "rule" in state:
            self.rule = state["rule"]
        self._forget()
        super().__setstate__(state)
        for group in self.param_groups:
            for key in _GLOBAL:  # a checkpoint of before a part existed
                group.setdefault(key, getattr(RunState(), key))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; values that the group does not name are the optimizer's defaults."""
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for p in group["params"]:
            if p.is_complex():
                del self.param_groups[-1]
                raise ConfigurationError(
                    f"A parameter of shape {tuple(p.shape)} is complex; SteerableAdamW takes real "
                    "ones. Pass torch.view_as_real of it."
                )
        # each group holds what is known of the same global norm: in a group it is saved as it is,
        # where torch casts a parameter's state to the parameter's dtype
        for key in _GLOBAL:
            group[key] = self.param_groups[0].get(key, getattr(RunState(), key))

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step.

        Args:
            closure: Computes the loss and its gradients again; its result is returned.

        Raises:
            ConfigurationError: The averaged weights are swapped in, or a gradient is sparse.
        """
        if self._swapped:
            raise ConfigurationError(
                "step() inside averaged_weights() or best_weights(): it would be undone when the "
                "raw weights come back. Leave the `with` block first."
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [
            (group, [p for p in group["params"] if p.grad is not None and p.numel()])
            for group in self.param_groups
        ]
        gradients = [p.grad for _, params in groups for p in params]
        for g in gradients:
            if g.is_sparse:
                raise ConfigurationError(
                    f"A gradient of shape {tuple(g.shape)} is sparse; SteerableAdamW takes dense "
                    "ones. Build the embedding with sparse=False."
                )
        if not gradients:
            return loss
        square, n_entries = self._square(gradients), sum(g.numel() for g in gradients)
        self._clipped = None
        for number, (group, params) in enumerate(groups):
            clip, rms = self._global(group, square, n_entries, gradients[0].device)
            for pack in self._packed(number, [p for p in params if p.numel() <= PACKED]):
                self._update_pack(group, pack, clip, rms)
            for p in params:
                if p.numel() > PACKED:
                    self._update(group, p, clip, rms)
        return loss

    def _packed(self, number: int, params: list[Tensor]) -> list[Pack]:
        """The packs of a group's small parameters; made again when other ones have a gradient."""
        held = self._packs.get(number, [])
        inside = {id(p) for pack in held for p in pack.params}
        if inside == {id(p) for p in params} and all(
            pack.holds([self.state[p] for p in pack.params]) for pack in held
        ):
            return held
        inside = {id(p) for p in params}
        for pack in held:
            for p in pack.params:
                if id(p) not in inside:
                    pack.leave(self.state.get(p, {}))
                    self._last[p] = _Alone(pack.run, pack.hyper)
        states = [self.state[p] for p in params]
        self._packs[number] = made = list(packs(params, states, bool(self.rule.average)))
        self._last |= {p: pack for pack in made for p in pack.params}
        return made

    def _update_pack(
        self, group: dict[str, Any], pack: Pack, clip: Number | None, rms: Number | None
    ) -> None:
        first = pack.params[0]
        hyper = self._hyper(group, first.device)
        pack.run.move(hyper)
        if rms is not None:
            pack.run.gradient_rms = placed(rms, first.device)
        values, blocks = pack.values(), pack.blocks
        update_block(
            self.rule,
            pack.run,
            hyper,
            values,
            pack.gradients(),
            blocks["exp_avg"],
            blocks["exp_avg_sq"],
            blocks.get("average"),
            pack.matrices,
            None if clip is None else placed(clip, first.device),
            self._scratch,
        )
        _sweep(pack.run.step, blocks["exp_avg"], blocks["exp_avg_sq"])
        pack.write(values)
        for p in pack.params:
            _note(self.state[p], pack.run)
        pack.hyper = hyper

    def _square(self, gradients: list[Tensor]) -> Number | None:
        """Squared norm of all gradients; `None` where nobody asks for it."""
        if not (self.rule.clip or self.rule.relative_eps):
            return None
        home = gradients[0].device
        if home.type == "cpu":
            return _square_on_cpu(gradients)
        # a float16's square overflows at a norm of 256
        norms = [torch.linalg.vector_norm(g, dtype=torch.float64).to(home) for g in gradients]
        return torch.stack(norms).square().sum().view(1, 1)

    def _global(
        self, group: dict[str, Any], square: Number | None, n_entries: int, home: torch.device
    ) -> tuple[Number | None, Number | None]:
        """Factor of a group's gradients and their root mean square; moves what is global on."""
        if square is None:
            return None, None
        # what is global is moved on once per step, the rest per pack or parameter
        max_norm, mean_square, product2 = (placed(group[key], home) for key in _GLOBAL)
        run = RunState(product2=product2, max_norm=max_norm, mean_square=mean_square)
        hyper = self._hyper(group, home)
        factor, clipped = begin_step(self.rule, run, hyper, square, n_entries)
        group.update({key: getattr(run, key) for key in _GLOBAL})
        if self.rule.clip:
            self._clipped = clipped if self._clipped is None else self._clipped | clipped
        return factor, run.gradient_rms if self.rule.relative_eps else None

    def _update(
        self, group: dict[str, Any], p: Tensor, clip: Number | None, rms: Number | None
    ) -> None:
        state, hyper, dtype = self.state[p], self._hyper(group, p.device), held_in(p.dtype)
        # counted per parameter: one that joins late, or is skipped, has its own bias correction
        run = RunState()
        if state:
            run.step = state["step"]
            run.product1, run.product2 = (placed(state[key], p.device) for key in _PRODUCTS)
        else:
            start = p.detach().to(dtype, copy=True).contiguous()
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(start), torch.zeros_like(start)
            if self.rule.average:
                state["average"] = start
        run.move(hyper)
        if rms is not None:
            run.gradient_rms = placed(rms, p.device)
        _note(state, run)
        assert p.grad is not None
        # a view, or a copy if the memory is not in order or too narrow
        param = p.detach().to(dtype).reshape(1, -1)
        average = state.get("average")
        update_block(
            self.rule,
            run,
            hyper,
            param,
            p.grad.to(dtype).reshape(1, -1),
            state["exp_avg"].view(1, -1),
            state["exp_avg_sq"].view(1, -1),
            None if average is None else average.view(1, -1),
            matrices((tuple(p.shape),)),
            None if clip is None else placed(clip, p.device),
            self._scratch,
        )
        _sweep(run.step, state["exp_avg"], state["exp_avg_sq"])
        if param.data_ptr() != p.data_ptr():
            p.copy_(param.view(p.shape))
        self._last[p] = _Alone(run, hyper)

    def _hyper(self, group: dict[str, Any], device: torch.device) -> Hyperparameters:
        """A group's values; columns on a device are made again only when one of them changed."""
        beta1, beta2 = group["betas"]
        values = (
            group["lr"], beta1, beta2, group["eps"], group["weight_decay"], group["clip_ratio"],
        )  # fmt: skip
        fixed = not any(isinstance(value, Tensor) for value in values)
        key = (device, *values)
        if fixed and key in self._columns:
            return self._columns[key]
        lr, one, two, eps, decay, clip = (placed(value, device) for value in values)
        # a tensor that is written in place must not move the columns of the last step
        lr = lr.clone() if isinstance(lr, Tensor) else lr
        hyper = Hyperparameters(lr, 1.0 - one, 1.0 - two, eps, decay, clip)
        if fixed:
            if len(self._columns) > 4 * len(self.param_groups):
                self._columns.clear()
            self._columns[key] = hyper
        return hyper

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Put the averaged weights into the parameters, and the raw ones back afterwards.

        They come back after an exception too. A parameter that never moved, or a rule without
        averaging, leaves the weights as they are. For the while, a copy of the weights is held.

        Raises:
            ConfigurationError: They are swapped in already.
        """
        raw: list[tuple[Tensor, Tensor]] = []
        with self.swapping():
            try:
                with torch.no_grad():
                    for p, state in self.state.items():
                        if "average" in state:
                            raw.append((p, p.detach().clone()))
                            p.copy_(state["average"])
                yield
            finally:
                with torch.no_grad():
                    for p, value in raw:
                        p.copy_(value)

    @contextmanager
    def swapping(self) -> Iterator[None]:
        """While somebody has put other weights into the parameters: no step, no averages.

        Raises:
            ConfigurationError: Somebody has already.
        """
        if self._swapped:
            raise ConfigurationError(
                "averaged_weights() inside averaged_weights() or best_weights(): other weights are "
                "in the parameters already. Leave the outer `with` block first."
            )
        self._swapped = True
        try:
            yield
        finally:
            self._swapped = False

    def average(self, param: Tensor) -> Tensor | None:
        """The averaged weights, not a copy; `None` if `param` never moved, or nothing averages."""
        return self._held(param, "average")

    def momentum(self, param: Tensor) -> Tensor | None:
        """Bias-corrected first moment, as of the last step; `None` if `param` never moved."""
        last, held = self._last.get(param), self._held(param, "exp_avg")
        if last is None or last.hyper is None or held is None:
            return None
        c1, _ = corrections(self.rule, last.run, last.hyper)
        return held / flat(c1, held.dtype)

    def adam_like(self, param: Tensor) -> Tensor | None:
        """Where sqrt(v) > eps, as of the last step; `None` if `param` never moved."""
        last, held = self._last.get(param), self._held(param, "exp_avg_sq")
        if last is None or last.hyper is None or held is None:
            return None
        _, c2 = corrections(self.rule, last.run, last.hyper)
        eps = last.hyper.eps * last.run.gradient_rms
        return (held / flat(c2, held.dtype)).sqrt() > flat(eps, held.dtype)

    def _held(self, param: Tensor, key: str) -> Tensor | None:
        # `state` makes an entry for whatever it is asked by [], and others may clear it
        held: Tensor | None = self.state.get(param, {}).get(key)
        return held

    @property
    def last_clipped(self) -> float | None:
        """1.0 if the last step clipped, else 0.0; `None` where nothing clips. Waits for it."""
        return None if self._clipped is None else float(self._clipped)

    def reset_moments(self) -> None:
        """Start the moments anew; the weight average goes on.

        Where the rule's bias correction counts steps ("step"), the count starts anew too, and with
        it the average's share of the next weights, which is all of them.
        """
        for state in filter(None, self.state.values()):
            _note(state, RunState(step=state["step"]))
            if self.rule.bias_correction == "step":
                state["step"] = 0
            for key in _TENSORS[:2]:
                state[key] = torch.zeros_like(state[key])
        self._forget()

    def state_dict(self) -> dict[str, Any]:
        """As torch's, and the rule under "rule"."""
        return {**super().state_dict(), "rule": asdict(self.rule)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a `state_dict()`, to the bit; the rule must be the one it was saved with.

        Raises:
            ConfigurationError: The state is of another optimizer or rule, or the averaged weights
                are swapped in. Nothing was loaded.
        """
        if self._swapped:
            raise ConfigurationError("load_state_dict() inside averaged_weights(); leave it first.")
        self._check_saved(state_dict)
        super().load_state_dict(state_dict)
        reload(self, state_dict, _TENSORS)
        ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for i, p in zip(ids, params, strict=True):
            saved = state_dict["state"].get(i)
            if saved is None:
                continue
            for key in _PRODUCTS:  # torch made them the parameter's dtype
                self.state[p][key] = placed(saved[key], p.device)
            for key in _TENSORS:
                if key in saved:  # `to` keeps strides, the steps want memory in order
                    self.state[p][key] = self.state[p][key].contiguous()
        self._forget()

    def _check_saved(self, state_dict: dict[str, Any]) -> None:
        """Refuse a state of another optimizer or rule."""
        wanted = {"step", *_PRODUCTS, "exp_avg", "exp_avg_sq"}
        wanted |= {"average"} if self.rule.average else set()
        for state in state_dict["state"].values():
            if set(state) != wanted:
                raise ConfigurationError(
                    f"The saved state holds {', '.join(sorted(state))}; this optimizer holds "
                    f"{', '.join(sorted(wanted))}. It is of another optimizer, or was saved with "
                    f"another rule than {self.rule}."
                )
        for group in state_dict["param_groups"]:
            absent = [key for key in _KEYS if key not in group]
            if absent:
                raise ConfigurationError(
                    f"A group of the saved state has no {', '.join(absent)}: it is of another "
                    "optimizer. Load it into the one that it was saved from."
                )
        # checkpoints of before the rule was saved are told by what they hold; one of before a field
        # existed had what is now its default
        saved, here = state_dict.get("rule"), asdict(self.rule)
        differing = [] if saved is None else _differing({**asdict(StepRule()), **saved}, here)
        if differing:
            raise ConfigurationError(
                f"The saved state is of another rule ({'; '.join(differing)}). Make SteerableAdamW "
                "with the rule that it was saved with."
            )


def _differing(saved: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What two rules do not agree on, in words."""
    keys = [key for key in sorted({*saved, *here}) if saved.get(key) != here.get(key)]
    return [f"{key} was {saved.get(key)!r} and is {here.get(key)!r} here" for key in keys]


def _square_on_cpu(gradients: list[Tensor]) -> float:
    """Squared norm of all gradients together.

    Pieces are summed in float32 and the pieces in float64: one sum of a hundred million squares
    would be off by percents, and float64 throughout costs a multiple.
    """
    total = 0.0
    for g in gradients:
        wider = torch.float32 if g.dtype in HALF else None
        if g.numel() <= _PIECE:
            norms = [float(torch.linalg.vector_norm(g, dtype=wider))]
        else:
            flat = g.reshape(-1)
            cut = len(flat) // _PIECE * _PIECE
            pieces = flat[:cut].view(-1, _PIECE)
            norms = torch.linalg.vector_norm(pieces, dim=1, dtype=wider).tolist()
            norms.append(float(torch.linalg.vector_norm(flat[cut:], dtype=wider)))
        total += sum(norm * norm for norm in norms)  # norm**2 would raise where it overflows
    if total == 0.0 or not math.isfinite(total):  # squares beyond float32, or below
        norms = [float(torch.linalg.vector_norm(g, dtype=torch.float64)) for g in gradients]
        total = sum(norm * norm for norm in norms)
    return total


def _sweep(step: int, momentum: Tensor, second: Tensor) -> None:
    """Set what dead units leave to 0, now and then, before it decays to denormal numbers.

    Relative to the second moment, so that gradients of any size are alike, and the moment itself
    only where there is no momentum. An accelerator does not mind such numbers.
    """
    if step % _SWEEP or momentum.device.type != "cpu":
        return
    dead = momentum.abs() <= second.sqrt().mul_(_NOTHING)
    momentum.masked_fill_(dead, 0.0)
    # a thousand times the smallest normal number: it decays slowly, and the next look is near
    second.masked_fill_(dead & (second < 1e3 * torch.finfo(second.dtype).tiny), 0.0)


def _note(state: dict[str, Any], run: RunState) -> None:
    """What a parameter's state keeps of a step."""
    state["step"], state["product1"], state["product2"] = run.step, run.product1, run.product2


def _check(group: dict[str, Any]) -> None:
    """Refuse values that would train nothing, or nan."""

    def refuse(name: str, value: Any, allowed: str) -> None:
        raise ConfigurationError(f"{name} is {value!r}; {allowed}.")

    def number(value: Any) -> float:
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            return math.nan

    lr, betas, eps = group["lr"], group["betas"], group["eps"]
    if not 0.0 <= number(lr) < math.inf:
        refuse("lr", lr, "it must be a finite number of at least 0, or a tensor with one")
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        refuse("betas", betas, "two numbers are wanted, the decays of both moments")
    if not all(0.0 <= number(beta) < 1.0 for beta in betas):
        refuse("betas", betas, "both must lie in [0, 1): at 1 nothing is ever taken in")
    if not 0.0 < number(eps) < math.inf:
        refuse("eps", eps, "it must be greater than 0, or an entry without gradient is 0 / 0")
    if not 0.0 <= number(group["weight_decay"]) < math.inf:
        refuse("weight_decay", group["weight_decay"], "it must be a finite number of at least 0")
    if not 0.0 < number(group["clip_ratio"]) < 1.0:
        refuse(
            "clip_ratio",
            group["clip_ratio"],
            "it must lie in (0, 1), a share of the decaying maximum of past gradient norms; to "
            "clip nothing, pass a rule with clip=False",
        )
