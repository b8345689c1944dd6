"""Language models: characters of Python and Shakespeare, words of WikiText-2."""

from __future__ import annotations

from typing import ClassVar

from .data import Dataset
from .nets import Net
from .sequence_nets import Recurrent, TokenMLP, Transformer
from .supervised import ALL_ACTIVATIONS, NORMS, Config, Settings, SupervisedFamily
from .text import (
    SHAKESPEARE,
    WIKITEXT,
    WIKITEXT_VOCABULARY,
    python_source,
    shakespeare,
    wikitext,
)

# Sequence models are compute bound: batching many runs gains little, so their batches are small.
_SMALL_BATCHES = (8, 16, 32)
_TRANSFORMER: Settings = {
    "width": (16, (16, 16, 24, 32)),
    "depth": (1, (1, 1, 2)),
    "context": (16, (16, 16, 24)),
    "activation": ("gelu", ("gelu", "relu", "silu")),
    "loss": ("cross-entropy", ("cross-entropy",)),
    "batch_size": (8, (8, 16)),
}


def _transformer(config: Config, vocabulary: int) -> Transformer:
    return Transformer(
        width=config["width"],
        blocks=config["depth"],
        heads=2,
        n_tokens=config["context"],
        n_outputs=vocabulary,
        vocabulary=vocabulary,
        activation=config["activation"],
        gain=config["init_gain"],
    )


def _gru(config: Config, vocabulary: int) -> Recurrent:
    return Recurrent(
        n_inputs=config["embed"],
        width=config["width"],
        n_outputs=vocabulary,
        vocabulary=vocabulary,
        norm=config["norm"],
        gain=config["init_gain"],
    )


class CharMLP(SupervisedFamily):
    """Predict the next character of Python source from the last eight, with an MLP.

    Data: the standard library's own text (json, http, argparse, ...), 96 characters.
    Model: embeddings side by side, 1 or 2 hidden layers.
    Drawn: embedding, width, depth, activation, norm, batch size, gain, loss scale, label noise.
    Source: Bengio et al., 2003, "A Neural Probabilistic Language Model".
    """

    name = "char-mlp"
    dataset = "python-source"
    architecture = "mlp"
    settings: ClassVar[Settings] = {
        "embed": (8, (4, 8, 12)),
        "width": (32, (24, 32, 48, 64)),
        "depth": (1, (1, 1, 2)),
        "activation": ("tanh", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", ("cross-entropy",)),
        "batch_size": (32, (16, 32, 64, 128)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `TokenMLP` over eight characters."""
        data = python_source(8, last_only=True)
        hidden = (config["width"],) * config["depth"]
        shape = (config["activation"], config["norm"], config["init_gain"])
        return TokenMLP(data.n_outputs, 8, config["embed"], hidden, *shape), data


class CharGRU(SupervisedFamily):
    """Predict each next character of Python source with a GRU.

    Data: as char-mlp, windows of 16 or 24 characters.
    Model: embedding, one GRU layer of 16 to 40, linear read-out.
    Drawn: embedding, width, context, norm, batch size, gain, loss scale, label noise.
    Source: Cho et al., 2014, arXiv:1406.1078.
    """

    name = "char-gru"
    dataset = "python-source"
    architecture = "gru"
    settings: ClassVar[Settings] = {
        "embed": (12, (8, 12, 16)),
        "width": (24, (16, 24, 32, 40)),
        "context": (16, (16, 16, 24)),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", ("cross-entropy",)),
        "batch_size": (8, _SMALL_BATCHES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `Recurrent` net over characters."""
        data = python_source(config["context"])
        return _gru(config, data.n_outputs), data


class CharTransformer(SupervisedFamily):
    """Predict each next character of Python source with a transformer.

    Data: as char-mlp, windows of 16 or 24 characters.
    Model: 1 or 2 causal blocks of width 16 to 32, 2 heads.
    Drawn: width, depth, context, activation, batch size, gain, loss scale, label noise.
    Source: Vaswani et al., 2017, arXiv:1706.03762; pre-norm.
    """

    name = "char-transformer"
    dataset = "python-source"
    architecture = "transformer"
    settings: ClassVar[Settings] = _TRANSFORMER

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A causal `Transformer` over characters."""
        data = python_source(config["context"])
        return _transformer(config, data.n_outputs), data


class ShakespeareTransformer(SupervisedFamily):
    """Predict each next character of Shakespeare with a transformer.

    Data: Tiny Shakespeare, 1.1 million characters, 65 distinct.
    Model, drawn: as char-transformer.
    Source: data from A. Karpathy, 2015, char-rnn.
    """

    name = "shakespeare-transformer"
    dataset = "shakespeare"
    architecture = "transformer"
    data_files = (SHAKESPEARE,)
    settings: ClassVar[Settings] = _TRANSFORMER

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A causal `Transformer` over characters."""
        data = shakespeare(config["context"])
        return _transformer(config, data.n_outputs), data


class ShakespeareGRU(SupervisedFamily):
    """Predict each next character of Shakespeare with a GRU.

    Data: as shakespeare-transformer.
    Model, drawn: as char-gru.
    Source: data from A. Karpathy, 2015, char-rnn.
    """

    name = "shakespeare-gru"
    dataset = "shakespeare"
    architecture = "gru"
    data_files = (SHAKESPEARE,)
    settings: ClassVar[Settings] = CharGRU.settings

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `Recurrent` net over characters."""
        data = shakespeare(config["context"])
        return _gru(config, data.n_outputs), data


class WikitextGRU(SupervisedFamily):
    """Predict each next word of WikiText-2 with a GRU whose read-out is its embedding.

    Data: WikiText-2, the 2,000 most frequent words and <unk>; windows of 12 words.
    Model: one GRU layer of 12 to 24, tied embedding. The slowest family: 2,000 logits per word.
    Drawn: width, norm, batch size, gain, loss scale, label noise.
    Source: Merity et al., 2016, arXiv:1609.07843; tying by Press and Wolf, 2016, arXiv:1608.05859.
    """

    name = "wikitext-gru"
    dataset = "wikitext"
    architecture = "gru"
    data_files = WIKITEXT
    settings: ClassVar[Settings] = {
        "width": (16, (12, 16, 24)),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", ("cross-entropy",)),
        "batch_size": (8, (8, 16)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A tied `Recurrent` net over words."""
        net = Recurrent(
            n_inputs=config["width"],
            width=config["width"],
            n_outputs=WIKITEXT_VOCABULARY,
            vocabulary=WIKITEXT_VOCABULARY,
            tied=True,
            norm=config["norm"],
            gain=config["init_gain"],
        )
        return net, wikitext(12)


class WikitextMLP(SupervisedFamily):
    """Predict the next word of WikiText-2 from the last five, with an MLP.

    Data: as wikitext-gru, windows of 5 words and one target.
    Model: embeddings of 6 to 10 side by side, one hidden layer of 8 to 16.
    Drawn: embedding, width, activation, norm, batch size, gain, loss scale, label noise.
    Source: Bengio et al., 2003, "A Neural Probabilistic Language Model".
    """

    name = "wikitext-mlp"
    dataset = "wikitext"
    architecture = "mlp"
    data_files = WIKITEXT
    settings: ClassVar[Settings] = {
        "embed": (8, (6, 8, 10)),
        "width": (12, (8, 12, 16)),
        "activation": ("tanh", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", ("cross-entropy",)),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `TokenMLP` over five words."""
        shape = (config["activation"], config["norm"], config["init_gain"])
        net = TokenMLP(WIKITEXT_VOCABULARY, 5, config["embed"], (config["width"],), *shape)
        return net, wikitext(5, last_only=True)
