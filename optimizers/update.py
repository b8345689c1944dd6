"""The one update rule behind `SteerableAdamW` and the batched engine: a function over K runs.

Everything is a `(K, d)` block: K runs side by side, each with its own hyperparameters, in `(K, 1)`
tensors or, for one run on a CPU, floats. The engine calls it once a step on all parameters of all
runs; the optimizer face once for its small parameters and once for each large one, with K = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..core.averages import SHORT, share
from ..core.errors import ConfigurationError, UnknownNameError
from .blocks import Matrix, Scratch, alike, outside
from .numbers import HALF, Number, at_least, larger, root, where
from .orthogonal import orthogonalise

BIAS_CORRECTIONS = ("running", "step")
#: What a norm, or a bias correction, is divided by at least.
_NORM = 1e-30
#: Of what the fields of a rule mean. 2: cautious updates keep entries without a gradient.
RULE_VERSION = 2


@dataclass(frozen=True)
class StepRule:
    """What stays fixed over a run; what may be steered is in `Hyperparameters`.

    Attributes:
        orthogonal: On matrices, replace Adam's update by orthogonalised momentum (Muon).
        ns_steps: Newton-Schulz iterations when `orthogonal`; 0 only gives every row the same norm.
        nesterov: Orthogonalise a look-ahead of the momentum, as Muon does.
        precondition: With `orthogonal`: orthogonalise Adam's direction, momentum over root second
            moment, instead of momentum alone: entries count by how steady their gradient is, not by
            how large.
        trust_power: Scale a matrix's update by (|p| / |u|) to this power: 0 is plain, 1 is LAMB,
            where the learning rate is the relative change of a matrix per step.
        vector_scale: Factor of the update of everything that is no matrix (biases, norms).
        cautious: Leave out entries whose update would climb along this step's gradient. Entries
            without one stay: the rows of a table that a step does not touch live on their momentum.
        relative_eps: Hold eps relative to the root mean square of all recent gradients together,
            which makes it unitless.
        average: Horizon of the weight average as a fraction of the steps so far; 0 is none.
        clip: Clip the gradient at `clip_ratio` times the decaying maximum of past norms.
        clip_decay: Decay of that maximum per step.
        bias_correction: "running" divides by the product of the betas really used, right when
            betas move; "step" is torch.optim.AdamW's 1 - beta**t with today's beta.

    Source: cautious updates: Liang et al., 2024, arXiv:2411.16085, without their rescaling, and
    with u g >= 0 for their u g > 0.
    """

    orthogonal: bool = False
    ns_steps: int = 5
    nesterov: bool = True
    precondition: bool = False
    trust_power: float = 0.0
    vector_scale: float = 1.0
    cautious: bool = False
    relative_eps: bool = False
    average: float = 0.0
    clip: bool = False
    clip_decay: float = 0.99
    bias_correction: Literal["running", "step"] = "running"

    def __post_init__(self) -> None:
        if self.bias_correction not in BIAS_CORRECTIONS:
            raise UnknownNameError("bias correction", self.bias_correction, BIAS_CORRECTIONS)
        if not 0.0 <= self.trust_power <= 1.0:
            raise ConfigurationError(
                f"trust_power is {self.trust_power}; it must lie in [0, 1]: 0 is AdamW, 1 is LAMB."
            )
        if self.average < 0.0 or self.ns_steps < 0 or not 0.0 < self.clip_decay <= 1.0:
            raise ConfigurationError(
                f"average={self.average}, ns_steps={self.ns_steps}, clip_decay={self.clip_decay}: "
                "average must be >= 0, ns_steps >= 0, clip_decay in (0, 1]."
            )
        if self.vector_scale <= 0.0:
            raise ConfigurationError(f"vector_scale is {self.vector_scale}; it must be above 0.")

    @property
    def elementwise(self) -> bool:
        """Whether it is AdamW's update, whatever else the rule does to gradient and average."""
        return not (
            self.orthogonal or self.trust_power or self.cautious or self.vector_scale != 1.0
        )

    def meaning(self) -> dict[str, int]:
        """What a measurement of this rule is filed under, beside its fields."""
        # plain AdamW means what it always did, and what was measured of it stays good
        return {} if self == ADAMW else {"version": RULE_VERSION}


#: torch.optim.AdamW to the letter, formula for moving betas included.
ADAMW = StepRule(bias_correction="step")
#: `SteerableAdamW` at its defaults.
STEERABLE = StepRule(
    orthogonal=True,
    ns_steps=3,
    precondition=True,
    trust_power=0.5,
    vector_scale=2.0,
    cautious=True,
    average=SHORT,
    clip=True,
)


@dataclass
class Hyperparameters:
    """Steered values: of K runs `(K, 1)` float64 tensors, of one on a CPU floats.

    Betas are held as their distance from 1, and all in float64: 1 - 0.999 in float32 is off by
    5e-5, which shows in the first steps' bias corrections.
    """

    lr: Number
    one_minus_beta1: Number
    one_minus_beta2: Number
    eps: Number
    weight_decay: Number
    clip_ratio: Number


@dataclass(frozen=True)
class MatrixFactors:
    """What a block's matrices have other than its values: parameter groups of their own, in effect.

    Attributes:
        lr: `(K, matrices)` factors on the learning rate, in the order of the block.
        weight_decay: `(K, matrices)` factors on the weight decay, which the rate's multiply too, as
            decoupled decay is times the rate.
    """

    lr: Tensor
    weight_decay: Tensor


@dataclass
class RunState:
    """Optimizer state shared by all blocks of a run; `(K, 1)` float64 tensors, or floats.

    Attributes:
        product1: Product of beta1 over the steps so far.
        product2: Product of beta2 over the steps so far.
        max_norm: Decaying maximum of past gradient norms; 0 before the first step.
        mean_square: Decayed mean of the whole gradient's square per entry, not bias-corrected;
            moves only where eps is relative to it.
        gradient_rms: Root of the same, bias-corrected; 1 where eps is absolute.
        step: Steps taken, one number for all K.
    """

    product1: Number = 1.0
    product2: Number = 1.0
    max_norm: Number = 0.0
    mean_square: Number = 0.0
    gradient_rms: Number = 1.0
    step: int = 0

    @classmethod
    def initial(cls, like: Tensor, n_runs: int) -> RunState:
        """Of K runs before the first step, on the device of `like`."""
        one = torch.ones(n_runs, 1, dtype=torch.float64, device=like.device)
        zero = torch.zeros_like(one)
        return cls(one, one, zero, zero, one)

    def move(self, hyper: Hyperparameters) -> None:
        """Count a step: what no gradient is needed for."""
        self.step += 1
        self.product1 = self.product1 * (1.0 - hyper.one_minus_beta1)
        self.product2 = self.product2 * (1.0 - hyper.one_minus_beta2)

    def each(self, change: Callable[[Tensor], Tensor]) -> RunState:
        """The same with every tensor changed; floats stay."""

        def changed(x: Number) -> Number:
            return change(x) if isinstance(x, Tensor) else x

        return RunState(
            changed(self.product1),
            changed(self.product2),
            changed(self.max_norm),
            changed(self.mean_square),
            changed(self.gradient_rms),
            self.step,
        )


def begin_step(
    rule: StepRule,
    state: RunState,
    hyper: Hyperparameters,
    gradient_square: Number,
    n_entries: int = 1,
) -> tuple[Number | None, Tensor | bool]:
    """Advance the shared state by one step; once per step, before the blocks.

    Args:
        rule: Fixed settings.
        state: Moves on.
        hyper: This step's values.
        gradient_square: `(K, 1)` squared norm of the whole gradient, or a float.
        n_entries: Entries of the whole gradient; counts only where eps is relative.

    Returns:
        The factor that clips the gradient, or `None` where nothing clips; and whether it clipped.
        `(K, 1)` each, or a float and a bool.
    """
    state.move(hyper)
    square = gradient_square.double() if isinstance(gradient_square, Tensor) else gradient_square
    factor: Number | None = None
    clipped: Tensor | bool = False
    if rule.clip:
        norm = root(square)
        # before the first step there is no past norm to clip at
        limit = where(state.max_norm > 0, hyper.clip_ratio * state.max_norm, norm)
        clipped = norm > limit
        state.max_norm = larger(rule.clip_decay * state.max_norm, norm)
        factor = where(clipped, limit / at_least(norm, _NORM), 1.0)
    if rule.relative_eps:
        if factor is not None:
            square = square * factor**2
        state.mean_square = state.mean_square + hyper.one_minus_beta2 * (
            square / n_entries - state.mean_square
        )
        # the running product whatever the bias correction: the mean has been decayed by it
        mean = state.mean_square / at_least(1.0 - state.product2, _NORM)
        state.gradient_rms = at_least(root(mean), _NORM)
    return factor, clipped


def corrections(rule: StepRule, state: RunState, hyper: Hyperparameters) -> tuple[Number, Number]:
    """Bias corrections of the first and second moment."""
    if rule.bias_correction == "running":
        return 1.0 - state.product1, 1.0 - state.product2
    return (
        1.0 - (1.0 - hyper.one_minus_beta1) ** state.step,
        1.0 - (1.0 - hyper.one_minus_beta2) ** state.step,
    )


def update_block(
    rule: StepRule,
    state: RunState,
    hyper: Hyperparameters,
    param: Tensor,
    gradient: Tensor,
    momentum: Tensor,
    second: Tensor,
    average: Tensor | None,
    block_matrices: Sequence[Matrix],
    clip: Number | None,
    scratch: Scratch | None = None,
    matrix_factors: MatrixFactors | None = None,
) -> None:
    """One step of one block, in place on `param`, `momentum`, `second` and `average`.

    With m, v the moments, c1, c2 their bias corrections, per entry

        u = (m / c1) / (sqrt(v / c2) + eps)
        p = p - lr weight_decay p - lr u

    and on each matrix, where `rule` says so, u is the orthogonalised look-ahead of the momentum,
    (1 - one_minus_beta1) m + one_minus_beta1 g, with `precondition` divided by sqrt(v / c2) + eps
    before, but for a factor (scaled to Muon's sqrt(max(1, rows / columns))), and is multiplied by
    (rms(p) / rms(u)) ** trust_power; the rest is multiplied by `vector_scale`. Where `rule` is
    cautious, entries with u g < 0 are left out at last.

    Args:
        rule: Fixed settings.
        state: After `begin_step`.
        hyper: This step's values.
        param: `(K, d)`.
        gradient: `(K, d)`, not modified.
        momentum: `(K, d)` first moment, not bias-corrected.
        second: `(K, d)` second moment, not bias-corrected.
        average: `(K, d)` averaged weights, or `None` where `rule.average` is 0.
        block_matrices: Matrices inside the block.
        clip: From `begin_step`.
        scratch: Where the caller keeps memory between steps; by default all of it is new.
        matrix_factors: Of single matrices; by default all of them have the block's values.
    """
    f = _factors(rule, state, hyper, clip, param.dtype)
    work = (scratch or Scratch()).take(4, param)
    g = gradient if f.clip is None else torch.mul(gradient, f.clip, out=work[0])
    momentum.lerp_(g, f.new1)
    second.lerp_(torch.mul(g, g, out=work[1]), f.new2)
    if rule.elementwise:
        # torch.optim.AdamW's order of operations, so that float32 agrees to the last digits
        denominator = torch.sqrt(second, out=work[1]).div_(f.root).add_(f.eps)
        update = torch.div(momentum, denominator, out=work[2]).mul_(f.adam)
    else:
        update = _steered_update(rule, f, param, g, momentum, second, tuple(block_matrices), work)
    if matrix_factors is None:
        param.mul_(f.left)
    else:
        per_step = hyper.lr * hyper.weight_decay
        _by_matrix(f, per_step, matrix_factors, tuple(block_matrices), param, update)
    if rule.cautious:
        param.addcmul_(update, _agreeing(update, g, work[1]), value=-1.0)
    else:
        param.sub_(update)
    if average is not None:
        average.lerp_(param, share(rule.average, state.step))


def _by_matrix(
    f: _Factors,
    per_step: Number,
    matrix_factors: MatrixFactors,
    inside: tuple[Matrix, ...],
    param: Tensor,
    update: Tensor,
) -> None:
    """Decay the weights, and scale the update, of every matrix by its own factors, in place.

    What a decay of `per_step` leaves is formed in float64, as for whole blocks, and is never below
    0: the product of two factors is bounded by no control.
    """
    for i, m in enumerate(inside):
        part, rate = slice(m.start, m.stop), matrix_factors.lr[:, i : i + 1]
        decay = rate.double() * matrix_factors.weight_decay[:, i : i + 1].double()
        left = (1.0 - per_step * decay).clamp_min(0.0)
        param[:, part].mul_(left.to(param.dtype))
        update[:, part].mul_(rate)
    for part in outside(inside, param.shape[1]):
        param[:, part].mul_(f.left)


class _Factors(NamedTuple):
    """What entries are multiplied by in a step: floats, or `(K, 1)` in the parameters' dtype.

    A pass over a block costs more than arithmetic on these, so bias corrections, rates and decays
    are multiplied here, in float64, and meet the entries once.

    Attributes:
        new1: Share of the new gradient in the first moment.
        old1: The rest.
        new2: Share of the new square in the second moment.
        left: Of the weights after weight decay.
        root: sqrt(c2).
        eps: What sqrt(v / c2) gets added; where the rule is not elementwise, what sqrt(v) does.
        unit: What turns momentum over denominator into Adam's direction.
        adam: And into its update.
        lr: Learning rate.
        clip: Of the gradient.
    """

    new1: Number
    old1: Number
    new2: Number
    left: Number
    root: Number
    eps: Number
    unit: Number
    adam: Number
    lr: Number
    clip: Number | None = None


def _factors(
    rule: StepRule,
    state: RunState,
    hyper: Hyperparameters,
    clip: Number | None,
    dtype: torch.dtype,
) -> _Factors:
    c1, c2 = corrections(rule, state, hyper)
    root2, c1, eps = root(c2), at_least(c1, _NORM), hyper.eps * state.gradient_rms
    unit, adam = 1.0 / c1, hyper.lr / c1
    if not rule.elementwise:
        # sqrt(v / c2) + eps without its division by sqrt(c2), which is no pass over a block then
        eps, unit = eps * root2, unit * root2
        adam = hyper.lr * unit
    values = [
        hyper.one_minus_beta1, 1.0 - hyper.one_minus_beta1, hyper.one_minus_beta2,
        1.0 - hyper.lr * hyper.weight_decay, root2, eps, unit, adam, hyper.lr,
    ]  # fmt: skip
    if clip is not None:
        values.append(clip)
    columns = [value for value in values if isinstance(value, Tensor)]
    if not columns:
        return _Factors(*values)
    assert len(columns) == len(values)
    return _Factors(*torch.stack(columns).to(dtype).unbind())


def _steered_update(
    rule: StepRule,
    f: _Factors,
    param: Tensor,
    g: Tensor,
    momentum: Tensor,
    second: Tensor,
    inside: tuple[Matrix, ...],
    work: Sequence[Tensor],
) -> Tensor:
    """What is taken from the weights, rate included; written into `work`, whose first is g."""
    denominator = torch.sqrt(second, out=work[1]).add_(f.eps)
    if param.dtype is torch.float16:
        # an eps of 1e-8 is 0 there, and an entry that never had a gradient 0 / 0
        denominator.clamp_min_(torch.finfo(param.dtype).smallest_normal)
    update, vectors = work[3], outside(inside, param.shape[1])
    if vectors or not rule.orthogonal:
        # all columns at once, those that are not wanted too: on small blocks the calls cost most
        torch.div(momentum, denominator, out=update)
    if inside and rule.orthogonal:
        ahead = momentum
        if rule.nesterov:
            ahead = torch.lerp(g, momentum, f.old1, out=work[2])
        if rule.precondition:
            ahead = torch.div(ahead, denominator, out=work[2])
        _orthogonalised(rule, f, inside, ahead, param, update)
    elif inside:
        _trusted(rule, f, inside, param, update)
    of_vectors = f.adam * rule.vector_scale
    for part in vectors:
        update[:, part].mul_(of_vectors)
    return update


def _trusted(
    rule: StepRule, f: _Factors, inside: tuple[Matrix, ...], param: Tensor, update: Tensor
) -> None:
    """Give the matrices of `update` their unit, rate and trust ratio, in place."""
    parts = [update[:, m.start : m.stop] for m in inside]
    if not rule.trust_power:
        for u in parts:
            u.mul_(f.adam)
        return
    norms = torch.stack([_norm(u) for u in parts]) * _row(f.unit)
    factors = _trust(rule, inside, param, norms) * _row(f.adam)
    for u, factor in zip(parts, _held(factors, update.dtype).unsqueeze(2).unbind(), strict=True):
        u.mul_(factor)


def _orthogonalised(
    rule: StepRule,
    f: _Factors,
    inside: tuple[Matrix, ...],
    ahead: Tensor,
    param: Tensor,
    update: Tensor,
) -> None:
    """Put the matrices of `ahead`, orthogonalised, times rate and trust ratio, into `update`."""
    order: list[Matrix] = []
    directions: list[Tensor] = []
    norms: list[Tensor] = []
    for group in alike(inside):
        x = [m.wide_way_round(ahead) for m in group]
        direction = orthogonalise(x[0] if len(x) == 1 else torch.cat(x), rule.ns_steps)
        order += group
        each = (len(group), len(param), *direction.shape[1:])
        directions += direction.view(each).unbind()
        if rule.trust_power:
            norms.append(_norm(direction.flatten(1)).view(each[:2]))
    # as Muon scales them
    spread = _column([max(1.0, m.rows / m.columns) ** 0.5 for m in order], param)
    factors = spread * _row(f.lr)
    if rule.trust_power:
        factors = factors * _trust(rule, order, param, torch.cat(norms) * spread)
    factors = _held(factors.expand(-1, len(param)), param.dtype)[:, :, None, None]
    for m, direction, factor in zip(order, directions, factors.unbind(), strict=True):
        torch.mul(direction, factor, out=m.wide_way_round(update))


def _trust(rule: StepRule, inside: Sequence[Matrix], param: Tensor, norms_u: Tensor) -> Tensor:
    """Power of the ratio of the norms of weights and update, `(matrices, K)`."""
    norms_p = torch.stack([_norm(param[:, m.start : m.stop]) for m in inside])
    roots = _column([(m.stop - m.start) ** 0.5 for m in inside], param)
    # a matrix that starts at zero must be able to leave it: root mean squares of 1e-3 and 1e-8
    ratios = torch.maximum(norms_p, 1e-3 * roots) / torch.maximum(norms_u, 1e-8 * roots)
    return ratios.pow_(rule.trust_power)


def _norm(rows: Tensor) -> Tensor:
    """Norm of each row, `(K,)`; of half precision in float32, which has room for what follows."""
    wider = torch.float32 if rows.dtype in HALF else None
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=wider)
    return norms


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """A number per matrix, `(matrices, 1)`, in the dtype that norms have."""
    dtype = torch.float32 if like.dtype in HALF else like.dtype
    return torch.tensor(values, dtype=dtype, device=like.device).unsqueeze(1)


def _held(factors: Tensor, dtype: torch.dtype) -> Tensor:
    """In the parameters' dtype, and finite there: times an update of 0 it must stay 0."""
    return factors.clamp_max(torch.finfo(dtype).max).to(dtype) if dtype in HALF else factors


def _row(x: Number) -> Number:
    """A `(K, 1)` tensor as `(1, K)`; a float as it is."""
    return x.mT if isinstance(x, Tensor) else x


def _agreeing(update: Tensor, g: Tensor, out: Tensor) -> Tensor:
    """1 where the update does not climb along the gradient, else 0; written into `out`."""
    if update.dtype is torch.float16:
        # a product of small numbers is 0 there
        return torch.mul(update.sign(), g.sign(), out=out).ge_(0.0)
    return torch.mul(update, g, out=out).ge_(0.0)
