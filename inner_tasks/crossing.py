"""A kind of net on the data of another family: what families of crossed modules and data share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from ..core.errors import ConfigurationError
from .composed_nets import Experts, MaxoutMLP, PolynomialNet, TiedMLP
from .data import Dataset
from .few_rows import first
from .mixing_nets import ResidualMLP
from .nets import MLP, Net
from .sequence_nets import Recurrent
from .supervised import (
    ALL_ACTIVATIONS,
    NORMS,
    Config,
    Settings,
    SupervisedFamily,
)
from .unusual_nets import GatedMLP, InPieces, RadialBasis, SineMLP

#: Rows to train on where the data's own family draws none: most draws see few of them, over and
#: over, which is where a run that is told nothing of held-out data has to know better.
ROWS: Final = (400, 800, 1600, 3200, 4800)
#: Steps of a recurrent net over a flat row.
_PIECES: Final = 8
_WIDTH: Final = (32, (16, 24, 32, 48, 64))


@dataclass(frozen=True)
class Module:
    """A kind of net, and what is drawn for it.

    Attributes:
        architecture: As the held-out rule compares it.
        settings: As those of a family.
        build: The net of so many inputs and outputs and a configuration.
    """

    architecture: str
    settings: Settings
    build: Callable[[int, int, Config], Net]


class Crossing(SupervisedFamily):
    """A module on the data of another family.

    Drawn: what says which data, rows, what the module draws, loss, batch size, gain, scales, noise
    of the targets.

    Attributes:
        parent: The family whose data it has, and whose losses and batch sizes.
        data: Keys of the parent's settings that say which data.
        module: The kind of net.
        rows: How many rows it draws to train on; none where the parent's data have few, or rows are
            among `data`.
    """

    parent: ClassVar[type[SupervisedFamily]]
    data: ClassVar[tuple[str, ...]]
    module: ClassVar[Module]
    rows: ClassVar[tuple[int, ...]] = ROWS

    def __init_subclass__(cls, **words: Any) -> None:
        super().__init_subclass__(**words)
        theirs = cls.parent.settings
        cls.dataset, cls.architecture = cls.parent.dataset, cls.module.architecture
        cls.data_files, cls.undrawn = cls.parent.data_files, cls.parent.undrawn
        cls.selection = cls.parent.selection
        cls.settings = {
            **{key: theirs[key] for key in cls.data},
            **({"rows": (_default_rows(cls.rows), cls.rows)} if cls.rows else {}),
            **cls.module.settings,
            "loss": theirs["loss"],
            "batch_size": theirs["batch_size"],
        }

    def settle(self, config: Config) -> Config:
        """As the data's own family does: which losses go with which data it knows."""
        return self.parent().settle(config)

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """The module on the first rows of the parent's data."""
        parent = self.parent()
        wanted = {**parent.plain_config(), **{key: config[key] for key in self.data}}
        _, data = parent.make(parent.settle(wanted))
        if self.rows:
            data = first(data, config["rows"])
        return self.module.build(data.n_inputs, data.n_outputs, config), data


def _default_rows(rows: tuple[int, ...]) -> int:
    """1,600, or the middle where so many are never drawn."""
    return 1600 if 1600 in rows else rows[len(rows) // 2]


def _widths(n_inputs: int, n_outputs: int, config: Config) -> tuple[int, ...]:
    return (n_inputs, *(config["width"],) * config["depth"], n_outputs)


def _mlp(n_inputs: int, n_outputs: int, config: Config) -> Net:
    shape = (config["activation"], config["norm"], config["init_gain"])
    return MLP(_widths(n_inputs, n_outputs, config), *shape)


def _residual(n_inputs: int, n_outputs: int, config: Config) -> Net:
    width, shape = config["width"], (config["activation"], config["norm"], config["init_gain"])
    return ResidualMLP(n_inputs, width, config["depth"], width, n_outputs, *shape)


def _gated(n_inputs: int, n_outputs: int, config: Config) -> Net:
    return GatedMLP(_widths(n_inputs, n_outputs, config), config["norm"], config["init_gain"])


def _maxout(n_inputs: int, n_outputs: int, config: Config) -> Net:
    return MaxoutMLP(_widths(n_inputs, n_outputs, config), config["pieces"], config["init_gain"])


def _experts(n_inputs: int, n_outputs: int, config: Config) -> Net:
    sizes = (n_inputs, config["experts"], config["width"], n_outputs)
    return Experts(*sizes, config["activation"], config["init_gain"])


def _tied(n_inputs: int, n_outputs: int, config: Config) -> Net:
    sizes = (n_inputs, config["width"], config["times"], n_outputs)
    return TiedMLP(*sizes, config["activation"], config["norm"], config["init_gain"])


def _radial(n_inputs: int, n_outputs: int, config: Config) -> Net:
    return RadialBasis(n_inputs, config["centres"], n_outputs, config["init_gain"])


def _sine(n_inputs: int, n_outputs: int, config: Config) -> Net:
    widths = _widths(n_inputs, n_outputs, config)
    return SineMLP(widths, float(config["frequency"]), config["init_gain"])


def _polynomial(n_inputs: int, n_outputs: int, config: Config) -> Net:
    widths = _widths(n_inputs, n_outputs, config)
    return PolynomialNet(widths, config["degree"], config["init_gain"])


def _recurrent(n_inputs: int, n_outputs: int, config: Config) -> Net:
    if n_inputs % _PIECES:
        raise ConfigurationError(
            f"{n_inputs} columns cannot be cut into {_PIECES} equal pieces; a multiple is wanted."
        )
    net = Recurrent(
        n_inputs=n_inputs // _PIECES,
        width=config["width"],
        n_outputs=n_outputs,
        cell="rnn",
        last_only=True,
        norm=config["norm"],
        gain=config["init_gain"],
    )
    return InPieces(net, _PIECES)


#: A plain MLP.
PLAIN: Final = Module(
    "mlp",
    {
        "width": _WIDTH,
        "depth": (2, (1, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
    },
    _mlp,
)
#: After He et al., 2016, arXiv:1603.05027, without convolutions.
RESIDUAL: Final = Module(
    "residual-mlp",
    {
        "width": _WIDTH,
        "depth": (2, (1, 2, 3, 4)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("layer", ("none", "layer", "layer")),
    },
    _residual,
)
#: Dauphin et al., 2017, arXiv:1612.08083.
GATED: Final = Module(
    "gated-mlp",
    {
        "width": _WIDTH,
        "depth": (1, (1, 2, 3)),
        "norm": ("none", ("none", "layer")),
    },
    _gated,
)
#: Goodfellow et al., 2013, arXiv:1302.4389.
MAXOUT: Final = Module(
    "maxout-mlp",
    {
        "width": (24, (12, 16, 24, 32, 48)),
        "depth": (1, (1, 1, 2)),
        "pieces": (2, (2, 2, 3)),
    },
    _maxout,
)
#: After Jacobs et al., 1991, "Adaptive Mixtures of Local Experts", blended.
EXPERTS: Final = Module(
    "mixture-of-experts",
    {
        "experts": (4, (3, 4, 6, 8)),
        "width": (12, (8, 12, 16, 24)),
        "activation": ("relu", ALL_ACTIVATIONS),
    },
    _experts,
)
#: After Dehghani et al., 2019, arXiv:1807.03819, without attention.
TIED: Final = Module(
    "tied-mlp",
    {
        "width": (32, (24, 32, 48, 64)),
        "times": (3, (2, 3, 4, 5)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("layer", ("none", "layer", "layer")),
    },
    _tied,
)
#: Broomhead and Lowe, 1988.
RADIAL: Final = Module("radial-basis", {"centres": (48, (24, 48, 96))}, _radial)
#: Sitzmann et al., 2020, arXiv:2006.09661.
SINES: Final = Module(
    "sine-mlp",
    {
        "width": (32, (16, 24, 32, 48)),
        "depth": (2, (1, 2, 3)),
        "frequency": (1, (1, 1, 2)),
    },
    _sine,
)
#: After Liu et al., 2024, arXiv:2404.19756, with Chebyshev's polynomials.
POLYNOMIALS: Final = Module(
    "polynomial-net",
    {
        "width": (12, (8, 12, 16)),
        "depth": (1, (1, 1, 2)),
        "degree": (3, (2, 3, 4)),
    },
    _polynomial,
)
#: Elman, 1990, "Finding Structure in Time", over eight pieces of a row.
PIECES: Final = Module(
    "rnn",
    {"width": (24, (16, 24, 32, 48)), "norm": ("none", NORMS)},
    _recurrent,
)
