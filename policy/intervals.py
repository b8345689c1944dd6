"""Which quantiles of resampled means an interval over few tasks or families lies between.

The plain percentiles are those of the normal distribution, which cover too little with a dozen
clusters or fewer: with eight or nine some 90% for 95%. Student's t for as many has wider ones
(Hesterberg, 2015, arXiv:1411.5279, on expanded percentiles), which would be wider still by a factor
of the root of n / (n - 1) in the deviate: as they are they cover 93 to 94% of normal means of eight
to twelve.
"""

from __future__ import annotations

from statistics import NormalDist

from scipy.stats import t as student


def levels(n: int) -> tuple[float, float]:
    """Quantiles of resampled means that a 95% interval over so many clusters lies between.

    One alone says nothing of others: its interval is that of what it holds.

    >>> [round(level, 4) for level in levels(8)]
    [0.009, 0.991]
    """
    low = 0.025 if n < 2 else NormalDist().cdf(float(student.ppf(0.025, n - 1)))
    return low, 1.0 - low
