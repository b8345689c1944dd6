"""The one update rule behind `SteerableAdamW` and the batched engine: a function over K runs.

Everything is a `(K, d)` block: K runs side by side, each with its own hyperparameters in `(K, 1)`
tensors. The engine calls it once a step on all parameters of all runs; the optimizer face calls it
once per parameter with K = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from ..core.errors import ConfigurationError, UnknownNameError

#: Quintic Newton-Schulz coefficients, as torch.optim.Muon (Jordan, 2024).
NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
#: Matrices at least this many times as wide as high are orthogonalised through their Gram matrix.
GRAM_ASPECT = 2.5
BIAS_CORRECTIONS = ("running", "step")
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
    average=0.1,
    clip=True,
)


@dataclass
class Hyperparameters:
    """Steered values of K runs, each a `(K, 1)` float64 tensor on the parameters' device.

    Betas are held as their distance from 1, and all in float64: 1 - 0.999 in float32 is off by
    5e-5, which shows in the first steps' bias corrections.
    """

    lr: Tensor
    one_minus_beta1: Tensor
    one_minus_beta2: Tensor
    eps: Tensor
    weight_decay: Tensor
    clip_ratio: Tensor


@dataclass
class RunState:
    """Optimizer state shared by all blocks of a run; `(K, 1)` float64 tensors, updated in place.

    Attributes:
        step: Steps taken, one number for all K.
        product1: Product of beta1 over the steps so far.
        product2: Product of beta2 over the steps so far.
        max_norm: Decaying maximum of past gradient norms; 0 before the first step.
        mean_square: Decayed mean of the whole gradient's square per entry, not bias-corrected;
            moves only where eps is relative to it.
        gradient_rms: Root of the same, bias-corrected; 1 where eps is absolute.
    """

    product1: Tensor
    product2: Tensor
    max_norm: Tensor
    mean_square: Tensor
    gradient_rms: Tensor
    step: int = 0

    @classmethod
    def initial(cls, like: Tensor, n_runs: int) -> RunState:
        """Before the first step, on the device of `like`."""
        one = torch.ones(n_runs, 1, dtype=torch.float64, device=like.device)
        zero = torch.zeros_like(one)
        return cls(one, one.clone(), zero, zero.clone(), one.clone())

    def to(self, device: torch.device | str) -> RunState:
        """The same on another device; on its own, the very same tensors."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "step"}
        return RunState(**{n: t.to(device) for n, t in tensors.items()}, step=self.step)


@dataclass(frozen=True)
class Matrix:
    """A matrix inside a block: columns `start` to `stop`, seen as `(rows, columns)`."""

    start: int
    stop: int
    rows: int
    columns: int


def matrices(shapes: Sequence[tuple[int, ...]]) -> tuple[Matrix, ...]:
    """The matrices among tensors laid one after another; a convolution is out x (in h w).

    A tensor whose first dimension or rest is 1 is a vector in disguise, and left to Adam.
    """
    found, start = [], 0
    for shape in shapes:
        size = 1
        for n in shape:
            size *= n
        if len(shape) >= 2 and shape[0] > 1 and size // shape[0] > 1:
            found.append(Matrix(start, start + size, shape[0], size // shape[0]))
        start += size
    return tuple(found)


def begin_step(
    rule: StepRule,
    state: RunState,
    hyper: Hyperparameters,
    gradient_square: Tensor,
    n_entries: int = 1,
) -> tuple[Tensor | None, Tensor]:
    """Advance the shared state by one step; once per step, before the blocks.

    Args:
        rule: Fixed settings.
        state: Updated in place.
        hyper: This step's values.
        gradient_square: `(K, 1)` squared norm of the whole gradient.
        n_entries: Entries of the whole gradient; counts only where eps is relative.

    Returns:
        The factor that clips the gradient, `(K, 1)`, or `None` where nothing clips; and whether it
        clipped, `(K, 1)` boolean.
    """
    state.step += 1
    state.product1.mul_(1.0 - hyper.one_minus_beta1)
    state.product2.mul_(1.0 - hyper.one_minus_beta2)
    factor, clipped = None, torch.zeros_like(gradient_square, dtype=torch.bool)
    if not (rule.clip or rule.relative_eps):
        return factor, clipped
    square = gradient_square.double()
    if rule.clip:
        norm = square.sqrt()
        # before the first step there is no past norm to clip at
        limit = torch.where(state.max_norm > 0, hyper.clip_ratio * state.max_norm, norm)
        clipped = norm > limit
        state.max_norm.mul_(rule.clip_decay).copy_(torch.maximum(state.max_norm, norm))
        factor = torch.where(clipped, limit / norm.clamp_min(1e-30), torch.ones_like(norm))
        square = square * factor.square()
    if rule.relative_eps:
        state.mean_square.lerp_(square / n_entries, hyper.one_minus_beta2)
        # the running product whatever the bias correction: the mean has been decayed by it
        mean = state.mean_square / (1.0 - state.product2).clamp_min(1e-30)
        state.gradient_rms = mean.sqrt().clamp_min(1e-30)
    return factor, clipped


def corrections(rule: StepRule, state: RunState, hyper: Hyperparameters) -> tuple[Tensor, Tensor]:
    """Bias corrections of the first and second moment, `(K, 1)` each."""
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
    clip: Tensor | None,
) -> None:
    """One step of one block, in place on `param`, `momentum`, `second` and `average`.

    With m, v the moments, c1, c2 their bias corrections, per entry

        u = (m / c1) / (sqrt(v / c2) + eps)
        p = p - lr weight_decay p - lr u

    and on each matrix, where `rule` says so, u is the orthogonalised look-ahead of the momentum,
    (1 - one_minus_beta1) m + one_minus_beta1 g, with `precondition` divided by sqrt(v / c2) + eps
    before (scaled to Muon's sqrt(max(1, rows / columns))), and is multiplied by
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
    """
    dtype = param.dtype
    g = gradient if clip is None else gradient * clip.to(dtype)
    momentum.lerp_(g, hyper.one_minus_beta1.to(dtype))
    second.lerp_(g.square(), hyper.one_minus_beta2.to(dtype))
    c1, c2 = corrections(rule, state, hyper)
    lr, eps = hyper.lr.to(dtype), (hyper.eps * state.gradient_rms).to(dtype)
    # torch.optim.AdamW's order of operations, so that float32 agrees to the last digits
    denominator = (second.sqrt() / c2.sqrt().to(dtype)).add_(eps)
    if rule.orthogonal or rule.trust_power or rule.cautious or rule.vector_scale != 1.0:
        # all columns at once, those that are not wanted too: on small matrices the calls cost most
        update = (momentum / c1.to(dtype)).div_(denominator)
        if rule.orthogonal and block_matrices:
            ahead = momentum
            if rule.nesterov:
                ahead = g.lerp(momentum, (1.0 - hyper.one_minus_beta1).to(dtype))
            if rule.precondition:
                # in half precision an eps of 1e-8 is 0, and an entry without gradient 0 / 0
                ahead = ahead / denominator.clamp_min(torch.finfo(dtype).tiny)
            for matrix in block_matrices:
                _orthogonalise_part(rule, matrix, ahead, update)
        if rule.trust_power:
            for matrix in block_matrices:
                _trust_part(rule, matrix, param, update)
        if rule.cautious:
            # by their signs: a product of small numbers is 0 in half precision
            update.mul_(update.sign() * g.sign() >= 0)
        if rule.vector_scale != 1.0:
            for part in _outside([slice(m.start, m.stop) for m in block_matrices], param.shape[1]):
                update[:, part].mul_(rule.vector_scale)
        update.mul_(lr)
    else:
        update = momentum.div(denominator).mul_((hyper.lr / c1).to(dtype))
    param.mul_((1.0 - hyper.lr * hyper.weight_decay).to(dtype)).sub_(update)
    if average is not None:
        average.lerp_(param, 1.0 / (1.0 + rule.average * (state.step - 1)))


def _outside(inside: Sequence[slice], stop: int) -> list[slice]:
    """The columns between those slices, which are in order."""
    starts = [0, *(part.stop for part in inside)]
    stops = [*(part.start for part in inside), stop]
    return [slice(a, b) for a, b in zip(starts, stops, strict=True) if a < b]


def _orthogonalise_part(rule: StepRule, matrix: Matrix, ahead: Tensor, update: Tensor) -> None:
    """Put one matrix of `ahead`, orthogonalised, into `update`."""
    columns = slice(matrix.start, matrix.stop)
    square = ahead[:, columns].reshape(-1, matrix.rows, matrix.columns)
    part = update[:, columns]
    scale = max(1.0, matrix.rows / matrix.columns) ** 0.5
    part.copy_(orthogonalise(square, rule.ns_steps).reshape(part.shape)).mul_(scale)


def _trust_part(rule: StepRule, matrix: Matrix, param: Tensor, update: Tensor) -> None:
    """Scale one matrix of `update` by the power of its trust ratio, in place."""
    columns = slice(matrix.start, matrix.stop)
    u, root = update[:, columns], (matrix.stop - matrix.start) ** 0.5
    norm_p = torch.linalg.vector_norm(param[:, columns], dim=1, keepdim=True)
    norm_u = torch.linalg.vector_norm(u, dim=1, keepdim=True)
    # a matrix that starts at zero must be able to leave it: root mean squares of 1e-3 and 1e-8
    ratio = norm_p.clamp_min(1e-3 * root) / norm_u.clamp_min(1e-8 * root)
    u.mul_(ratio**rule.trust_power)


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrix, roughly: singular values move to about 0.7 to 1.2.

    With no steps, the rows (of the wider way round) get the same norm each, and a norm in all like
    that of a semi-orthogonal matrix: the direction of steepest descent where rows count one by one.

    Args:
        matrix: `(K, rows, columns)`, any scale.
        steps: Newton-Schulz iterations.

    Source: Jordan et al., 2024, "Muon"; the same quintic as torch.optim.Muon, in `matrix`'s dtype.
    """
    a, b, c = NS_COEFFICIENTS
    wide = matrix.shape[1] <= matrix.shape[2]
    x = matrix if wide else matrix.transpose(1, 2)
    least = 1e-7 if x.dtype is torch.float32 else 1e-12
    if not steps:
        x = x / x.square().sum(2, keepdim=True).sqrt().clamp_min(least)
        return x if wide else x.transpose(1, 2)
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp_min(least)
    rows, columns = x.shape[1:]
    if columns >= GRAM_ASPECT * rows:
        return _orthogonalise_wide(x, steps) if wide else _orthogonalise_wide(x, steps).mT
    for _ in range(steps):
        gram = torch.bmm(x, x.transpose(1, 2))
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.transpose(1, 2)


def _orthogonalise_wide(x: Tensor, steps: int) -> Tensor:
    """The same iterations on the Gram matrix alone, which commutes with all of them.

    The matrix itself is met twice instead of twice per iteration: less work where it is wide.
    """
    a, b, c = NS_COEFFICIENTS
    gram = torch.bmm(x, x.mT)
    product: Tensor | None = None
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else torch.bmm(factor, product)
        if step + 1 < steps:
            gram = torch.bmm(factor, torch.bmm(factor, gram))
    assert product is not None
    return torch.bmm(product, x)
