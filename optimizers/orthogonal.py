"""Newton-Schulz steps towards the nearest semi-orthogonal matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from .numbers import HALF

#: Quintic coefficients, as torch.optim.Muon (Jordan, 2024).
NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
#: Matrices at least this many times as wide as high are orthogonalised through their Gram matrix.
GRAM_ASPECT = 2.5
#: What a norm is divided by at least; below it a matrix counts as nearly zero.
_LEAST = {torch.float32: 1e-7, torch.float16: torch.finfo(torch.float16).smallest_normal}


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrix, roughly: singular values move to about 0.7 to 1.2.

    With no steps, the rows (of the wider way round) get the same norm each, and a norm in all like
    that of a semi-orthogonal matrix: the direction of steepest descent where rows count one by one.

    Args:
        matrix: `(K, rows, columns)`, any scale.
        steps: Newton-Schulz iterations.

    Source: Jordan et al., 2024, "Muon"; the same quintic as torch.optim.Muon, in `matrix`'s dtype.
    """
    wide = matrix.shape[1] <= matrix.shape[2]
    x = matrix if wide else matrix.mT
    out = _wide_way_round(x, steps, _LEAST.get(x.dtype, 1e-12))
    return out if wide else out.mT


def _wide_way_round(x: Tensor, steps: int, least: float) -> Tensor:
    a, b, c = NS_COEFFICIENTS
    if not steps:
        return x / x.square().sum(2, keepdim=True).sqrt().clamp_min(least)
    rows, columns = x.shape[1:]
    wide, half = columns >= GRAM_ASPECT * rows, x.dtype in HALF
    if half or not wide:
        x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp_min(least)
    if wide:
        return _through_gram(x, steps, least)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _through_gram(x: Tensor, steps: int, least: float) -> Tensor:
    """The same iterations on the Gram matrix alone, which commutes with all of them.

    The matrix itself is met twice instead of twice per iteration: less work where it is wide. Its
    norm is the root of the Gram matrix's trace, which float32 has room for up to norms of 1e19.
    """
    a, b, c = NS_COEFFICIENTS
    gram = torch.bmm(x, x.mT)
    square = gram.diagonal(dim1=1, dim2=2).sum(1).clamp_min_(least**2).view(-1, 1, 1)
    gram /= square
    product: Tensor | None = None
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else torch.bmm(factor, product)
        if step + 1 < steps:
            gram = torch.bmm(factor, torch.bmm(factor, gram))
    assert product is not None
    return torch.bmm(product / square.sqrt(), x)
