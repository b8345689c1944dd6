"""Other nets on drawn tables, functions and answers, most of which see few rows.

A policy that was trained on these has met that data.
"""

from __future__ import annotations

from .answers import BallotsMLP, HandsMLP
from .clusters import ClustersResMLP
from .crossing import EXPERTS, GATED, MAXOUT, PLAIN, POLYNOMIALS, RADIAL, RESIDUAL, TIED, Crossing
from .functions import CoordinateMLP, FriedmanMLP
from .logic import FormulaResMLP
from .measurements import PricesMLP
from .mixed_tables import ForestMLP
from .synthetic import TeacherRegression
from .tabular import TabularMLP


class TabularResMLP(Crossing):
    """Classify or regress the rows of small real tables with a residual MLP.

    Data: as tabular-mlp.
    Model: 1 to 4 residual branches of width 16 to 64.
    Drawn: table, width, depth, activation, norm, loss, batch size, gain, scales, label noise.
    Source: as tabular-mlp; net after He et al., 2016, arXiv:1603.05027,
    without convolutions.
    """

    name = "tabular-resmlp"
    parent = TabularMLP
    data = ("table",)
    module = RESIDUAL
    rows = ()


class TabularGated(Crossing):
    """Classify or regress the rows of small real tables with a gated MLP.

    Data: as tabular-mlp.
    Model: 1 to 3 gated hidden layers of 16 to 64.
    Drawn: table, width, depth, norm, loss, batch size, gain, scales, label noise.
    Source: as tabular-mlp; net of Dauphin et al., 2017, arXiv:1612.08083.
    """

    name = "tabular-gated"
    parent = TabularMLP
    data = ("table",)
    module = GATED
    rows = ()


class TeacherMaxout(Crossing):
    """Fit a random teacher network with a maxout MLP.

    Data: as teacher-regression, 400 to 4,800 rows to train on.
    Model: 1 or 2 hidden layers of 12 to 48 units, each the largest of 2 or 3.
    Drawn: dimensions, teacher width, teacher seed, rows, width, depth, pieces, loss, batch
    size, gain, scales, target noise.
    Source: as teacher-regression; net of Goodfellow et al., 2013, arXiv:1302.4389.
    """

    name = "teacher-maxout"
    parent = TeacherRegression
    data = ("n_inputs", "teacher_width", "teacher_seed")
    module = MAXOUT


class TeacherResMLP(Crossing):
    """Fit a random teacher network with a residual MLP.

    Data: as teacher-regression, 400 to 4,800 rows to train on.
    Model: 1 to 4 residual branches of width 16 to 64.
    Drawn: dimensions, teacher width, teacher seed, rows, width, depth, activation, norm, loss,
    batch size, gain, scales, target noise.
    Source: as teacher-regression; net after He et al., 2016, arXiv:1603.05027,
    without convolutions.
    """

    name = "teacher-resmlp"
    parent = TeacherRegression
    data = ("n_inputs", "teacher_width", "teacher_seed")
    module = RESIDUAL


class FriedmanGated(Crossing):
    """Regress Friedman's functions with a gated MLP.

    Data: as friedman-mlp.
    Model: 1 to 3 gated hidden layers of 16 to 64.
    Drawn: problem, rows, noise, data seed, width, depth, norm, loss, batch size, gain, scales,
    target noise.
    Source: as friedman-mlp; net of Dauphin et al., 2017, arXiv:1612.08083.
    """

    name = "friedman-gated"
    parent = FriedmanMLP
    data = ("problem", "rows", "noise", "data_seed")
    module = GATED
    rows = ()


class FriedmanPolynomials(Crossing):
    """Regress Friedman's functions with a net of polynomials.

    Data: as friedman-mlp.
    Model: 1 or 2 hidden layers of 8 to 16, polynomials of degree 2 to 4.
    Drawn: problem, rows, noise, data seed, width, depth, degree, loss, batch size, gain,
    scales, target noise.
    Source: as friedman-mlp; net after Liu et al., 2024, arXiv:2404.19756, with
    Chebyshev's polynomials.
    """

    name = "friedman-polynomials"
    parent = FriedmanMLP
    data = ("problem", "rows", "noise", "data_seed")
    module = POLYNOMIALS
    rows = ()


class CoordinateRadial(Crossing):
    """Fit a random field over the plane with bumps around learned centres.

    Data: as coordinate-mlp, 400 to 4,800 rows to train on.
    Model: 24 to 96 centres, each with a width of its own, and a linear read-out.
    Drawn: features, roughness, data seed, rows, centres, loss, batch size, gain, scales, target
    noise.
    Source: as coordinate-mlp; net of Broomhead and Lowe, 1988.
    """

    name = "coordinate-radial"
    parent = CoordinateMLP
    data = ("features", "roughness", "data_seed")
    module = RADIAL


class CoordinateResMLP(Crossing):
    """Fit a random field over the plane with a residual MLP.

    Data: as coordinate-mlp, 400 to 4,800 rows to train on.
    Model: 1 to 4 residual branches of width 16 to 64.
    Drawn: features, roughness, data seed, rows, width, depth, activation, norm, loss, batch
    size, gain, scales, target noise.
    Source: as coordinate-mlp; net after He et al., 2016, arXiv:1603.05027,
    without convolutions.
    """

    name = "coordinate-resmlp"
    parent = CoordinateMLP
    data = ("features", "roughness", "data_seed")
    module = RESIDUAL


class ClustersMaxout(Crossing):
    """Classify points of overlapping clusters with a maxout MLP.

    Data: as clusters-resmlp, 400 to 4,800 rows to train on.
    Model: 1 or 2 hidden layers of 12 to 48 units, each the largest of 2 or 3.
    Drawn: dimensions, spread, data seed, rows, width, depth, pieces, loss, batch size, gain,
    scales, label noise.
    Source: as clusters-resmlp; net of Goodfellow et al., 2013, arXiv:1302.4389.
    """

    name = "clusters-maxout"
    parent = ClustersResMLP
    data = ("n_inputs", "spread", "data_seed")
    module = MAXOUT


class ClustersGated(Crossing):
    """Classify points of overlapping clusters with a gated MLP.

    Data: as clusters-resmlp, 400 to 4,800 rows to train on.
    Model: 1 to 3 gated hidden layers of 16 to 64.
    Drawn: dimensions, spread, data seed, rows, width, depth, norm, loss, batch size, gain,
    scales, label noise.
    Source: as clusters-resmlp; net of Dauphin et al., 2017, arXiv:1612.08083.
    """

    name = "clusters-gated"
    parent = ClustersResMLP
    data = ("n_inputs", "spread", "data_seed")
    module = GATED


class ForestExperts(Crossing):
    """Classify the rows of a drawn table with a mixture of experts.

    Data: as forest-mlp, 400 to 4,800 rows to train on.
    Model: 3 to 8 experts of 8 to 24 hidden units, weighted by a softmax.
    Drawn: classes, sharpness, data seed, rows, experts, width, activation, loss, batch size,
    gain, scales, label noise.
    Source: as forest-mlp; net after Jacobs et al., 1991, "Adaptive Mixtures of Local
    Experts", blended.
    """

    name = "forest-experts"
    parent = ForestMLP
    data = ("classes", "sharpness", "data_seed")
    module = EXPERTS


class ForestTied(Crossing):
    """Classify the rows of a drawn table with a branch that is gone through again.

    Data: as forest-mlp, 400 to 4,800 rows to train on.
    Model: a residual branch of width 24 to 64, 2 to 5 times with the same weights.
    Drawn: classes, sharpness, data seed, rows, width, times, activation, norm, loss, batch
    size, gain, scales, label noise.
    Source: as forest-mlp; net after Dehghani et al., 2019, arXiv:1807.03819,
    without attention.
    """

    name = "forest-tied"
    parent = ForestMLP
    data = ("classes", "sharpness", "data_seed")
    module = TIED


class FormulaGated(Crossing):
    """Tell which formula of logic holds with a gated MLP.

    Data: as formula-resmlp, 400 to 4,800 rows to train on.
    Model: 1 to 3 gated hidden layers of 16 to 64.
    Drawn: literals, data seed, rows, width, depth, norm, loss, batch size, gain, scales, label
    noise.
    Source: as formula-resmlp; net of Dauphin et al., 2017, arXiv:1612.08083.
    """

    name = "formula-gated"
    parent = FormulaResMLP
    data = ("literals", "data_seed")
    module = GATED


class FormulaDense(Crossing):
    """Tell which formula of logic holds with a plain MLP.

    Data: as formula-resmlp, 400 to 4,800 rows to train on.
    Model: 1 to 3 hidden layers of 16 to 64.
    Drawn: literals, data seed, rows, width, depth, activation, norm, loss, batch size, gain,
    scales, label noise.
    Source: as formula-resmlp.
    """

    name = "formula-dense"
    parent = FormulaResMLP
    data = ("literals", "data_seed")
    module = PLAIN


class PricesResMLP(Crossing):
    """Predict a price with heavy tails with a residual MLP.

    Data: as prices-mlp, 400 to 4,800 rows to train on.
    Model: 1 to 4 residual branches of width 16 to 64.
    Drawn: degrees of freedom, data seed, rows, width, depth, activation, norm, loss, batch size,
    gain, scales, target noise.
    Source: as prices-mlp; net after He et al., 2016, arXiv:1603.05027,
    without convolutions.
    """

    name = "prices-resmlp"
    parent = PricesMLP
    data = ("tail", "data_seed")
    module = RESIDUAL


class HandsResMLP(Crossing):
    """Tell what five cards are worth with a residual MLP.

    Data: as hands-mlp, 400 to 4,800 rows to train on.
    Model: 1 to 4 residual branches of width 16 to 64.
    Drawn: data seed, rows, width, depth, activation, norm, loss, batch size, gain, scales,
    label noise.
    Source: as hands-mlp; net after He et al., 2016, arXiv:1603.05027,
    without convolutions.
    """

    name = "hands-resmlp"
    parent = HandsMLP
    data = ("data_seed",)
    module = RESIDUAL


class BallotsExperts(Crossing):
    """Guess a voter's party with a mixture of experts.

    Data: as ballots-mlp.
    Model: 3 to 8 experts of 8 to 24 hidden units, weighted by a softmax.
    Drawn: questions, candour, rows, data seed, experts, width, activation, loss, batch size,
    gain, scales, label noise.
    Source: as ballots-mlp; net after Jacobs et al., 1991, "Adaptive Mixtures of Local
    Experts", blended.
    """

    name = "ballots-experts"
    parent = BallotsMLP
    data = ("questions", "candour", "rows", "data_seed")
    module = EXPERTS
    rows = ()
