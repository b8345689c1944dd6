"""Every family by name; a new one is one line in `FAMILIES`."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

from ..core.errors import ConfigurationError, UnknownNameError
from .base import InnerTask, TaskFamily
from .data import available

# Name: "module:class" inside this package, imported when first asked for.
FAMILIES: Final[dict[str, str]] = {
    "noisy-quadratic": "noisy_quadratic:NoisyQuadraticFamily",
    "digits-mlp": "digits:DigitsMLP",
    "digits-cnn": "digits:DigitsCNN",
    "digits-vit": "digits:DigitsViT",
    "digits-autoencoder": "digits:DigitsAutoencoder",
    "tabular-mlp": "tabular:TabularMLP",
    "teacher-regression": "synthetic:TeacherRegression",
    "parity-rnn": "synthetic:ParityRNN",
    "addition-rnn": "synthetic:AdditionRNN",
    "friedman-mlp": "functions:FriedmanMLP",
    "coordinate-mlp": "functions:CoordinateMLP",
    "clusters-resmlp": "clusters:ClustersResMLP",
    "sets-net": "clusters:SetsNet",
    "topics-bag": "topics:TopicsBag",
    "grammar-mlp": "topics:GrammarMLP",
    "entities-mlp": "categories:EntitiesMLP",
    "zipf-bilinear": "categories:ZipfBilinear",
    "forest-mlp": "mixed_tables:ForestMLP",
    "vocabulary-mlp": "vocabulary:VocabularyMLP",
    "graph-distance": "graphs:GraphDistance",
    "tensor-factors": "factors:TensorFactors",
    "clusters-few": "few_rows:ClustersFew",
    "glyphs-few": "few_rows:GlyphsFew",
    "shells-mlp": "few_rows:ShellsMLP",
    "forest-few": "few_of_others:ForestFew",
    "signal-few": "few_of_others:SignalFew",
    "texture-few": "few_of_others:TextureFew",
    "docs-few": "few_of_others:DocsFew",
    "coordinate-few": "few_of_others:CoordinateFew",
    "chaos-few": "few_of_others:ChaosFew",
    "glyphs-inpaint": "many_outputs:GlyphsInpaint",
    "signal-denoise": "many_outputs:SignalDenoise",
    "texture-mixer": "second_nets:TextureMixer",
    "glyphs-rnn": "second_nets:GlyphsRNN",
    "signal-rnn": "second_nets:SignalRNN",
    "chaos-conv": "second_nets:ChaosConv",
    "coordinate-sine": "second_nets:CoordinateSine",
    "friedman-rbf": "second_nets:FriedmanRBF",
    "forest-cross": "second_nets:ForestCross",
    "forest-gated": "second_nets:ForestGated",
    "topics-linear": "second_nets:TopicsLinear",
    "docs-bilinear": "second_nets:DocsBilinear",
    "glyphs-mlp": "glyphs:GlyphsMLP",
    "glyphs-cnn": "glyphs:GlyphsCNN",
    "glyphs-mixer": "glyphs:GlyphsMixer",
    "texture-cnn": "textures:TextureCNN",
    "signal-conv": "signals:SignalConv",
    "chaos-mlp": "signals:ChaosMLP",
    "docs-mlp": "stdlib_text:DocsMLP",
    "names-conv": "stdlib_text:NamesConv",
    "formula-resmlp": "logic:FormulaResMLP",
    "automaton-gated": "logic:AutomatonGated",
    "pendulum-mlp": "measurements:PendulumMLP",
    "prices-mlp": "measurements:PricesMLP",
    "spectra-few": "measurements:SpectraFew",
    "spots-cnn": "scenes:SpotsCNN",
    "gratings-mixer": "scenes:GratingsMixer",
    "ground-cnn": "scenes:GroundCNN",
    "molecules-graphnet": "molecules:MoleculesGraphNet",
    "hands-mlp": "answers:HandsMLP",
    "ballots-mlp": "answers:BallotsMLP",
    "tides-conv": "rhythms:TidesConv",
    "rhythms-rnn": "rhythms:RhythmsRNN",
    "orbits-mlp": "heavens:OrbitsMLP",
    "stars-few": "heavens:StarsFew",
    "mazes-cnn": "ways:MazesCNN",
    "strokes-mixer": "ways:StrokesMixer",
    "motifs-rnn": "letters:MotifsRNN",
    "brackets-causal": "letters:BracketsCausal",
    "exams-pairs": "records:ExamsPairs",
    "claims-gated": "records:ClaimsGated",
    "queues-few": "records:QueuesFew",
    "spins-mlp": "crowds:SpinsMLP",
    "boards-resmlp": "crowds:BoardsResMLP",
    "swarms-few": "crowds:SwarmsFew",
    "facts-distmult": "relations:FactsDistMult",
    "meetings-mlp": "relations:MeetingsMLP",
    "recall-linear": "recall:RecallLinear",
    "automaton-conv": "third_nets:AutomatonConv",
    "pendulum-sine": "third_nets:PendulumSine",
    "pendulum-few": "third_nets:PendulumFew",
    "prices-cross": "third_nets:PricesCross",
    "spectra-conv": "third_nets:SpectraConv",
    "spots-mixer": "third_nets:SpotsMixer",
    "gratings-cnn": "third_nets:GratingsCNN",
    "ground-mixer": "third_nets:GroundMixer",
    "tides-rnn": "third_nets:TidesRNN",
    "rhythms-linear": "third_nets:RhythmsLinear",
    "facts-mlp": "third_nets:FactsMLP",
    "formula-maxout": "composed:FormulaMaxout",
    "prices-experts": "composed:PricesExperts",
    "hands-experts": "composed:HandsExperts",
    "ballots-tied": "composed:BallotsTied",
    "tides-polynomials": "composed:TidesPolynomials",
    "tabular-resmlp": "crossed_tables:TabularResMLP",
    "tabular-gated": "crossed_tables:TabularGated",
    "teacher-maxout": "crossed_tables:TeacherMaxout",
    "teacher-resmlp": "crossed_tables:TeacherResMLP",
    "friedman-gated": "crossed_tables:FriedmanGated",
    "friedman-polynomials": "crossed_tables:FriedmanPolynomials",
    "coordinate-radial": "crossed_tables:CoordinateRadial",
    "coordinate-resmlp": "crossed_tables:CoordinateResMLP",
    "clusters-maxout": "crossed_tables:ClustersMaxout",
    "clusters-gated": "crossed_tables:ClustersGated",
    "chaos-gated": "crossed_signals:ChaosGated",
    "chaos-sine": "crossed_signals:ChaosSine",
    "forest-experts": "crossed_tables:ForestExperts",
    "forest-tied": "crossed_tables:ForestTied",
    "glyphs-tied": "crossed_signals:GlyphsTied",
    "glyphs-maxout": "crossed_signals:GlyphsMaxout",
    "signal-dense": "crossed_signals:SignalDense",
    "signal-gated": "crossed_signals:SignalGated",
    "texture-resmlp": "crossed_signals:TextureResMLP",
    "inpaint-gated": "crossed_signals:InpaintGated",
    "denoise-tied": "crossed_signals:DenoiseTied",
    "formula-gated": "crossed_tables:FormulaGated",
    "formula-dense": "crossed_tables:FormulaDense",
    "automaton-tied": "crossed_signals:AutomatonTied",
    "pendulum-gated": "crossed_signals:PendulumGated",
    "prices-resmlp": "crossed_tables:PricesResMLP",
    "spectra-gated": "crossed_signals:SpectraGated",
    "hands-resmlp": "crossed_tables:HandsResMLP",
    "ballots-experts": "crossed_tables:BallotsExperts",
    "chaos-pieces": "crossed_signals:ChaosPieces",
    "spots-dense": "crossed_signals:SpotsDense",
    "gratings-tied": "crossed_signals:GratingsTied",
    "causes-mlp": "drawn_tables:CausesMLP",
    "causes-resmlp": "drawn_tables:CausesResMLP",
    "causes-gated": "drawn_tables:CausesGated",
    "causes-few": "drawn_tables:CausesFew",
    "causes-experts": "drawn_tables:CausesExperts",
    "causes-values": "drawn_tables:CausesValues",
    "causes-values-few": "drawn_tables:CausesValuesFew",
    "chains-rnn": "drawn_sequences:ChainsRNN",
    "chains-mlp": "drawn_sequences:ChainsMLP",
    "chains-conv": "drawn_sequences:ChainsConv",
    "chains-few": "drawn_sequences:ChainsFew",
    "dreams-cnn": "drawn_images:DreamsCNN",
    "dreams-mixer": "drawn_images:DreamsMixer",
    "dreams-few": "drawn_images:DreamsFew",
    "ill-conditioned-regression": "ill_conditioned:IllConditionedRegression",
    "recommender": "recommender:Recommender",
    "neumf": "movielens:NeuMFMovielens",
    "char-mlp": "language:CharMLP",
    "char-gru": "language:CharGRU",
    "char-transformer": "language:CharTransformer",
    "mnist-mlp": "images:MnistMLP",
    "mnist-cnn": "images:MnistCNN",
    "fashion-mlp": "images:FashionMLP",
    "fashion-cnn": "images:FashionCNN",
    "cifar-cnn": "images:CifarCNN",
    "shakespeare-gru": "language:ShakespeareGRU",
    "shakespeare-transformer": "language:ShakespeareTransformer",
    "wikitext-mlp": "language:WikitextMLP",
    "wikitext-gru": "language:WikitextGRU",
    "california-mlp": "tabular:CaliforniaMLP",
    "adult-mlp": "tabular:AdultMLP",
    "covertype-mlp": "tabular:CovertypeMLP",
}


def get_family(name: str) -> TaskFamily:
    """The family of this name; its data need not be there yet.

    Raises:
        UnknownNameError: No family has this name.
    """
    if name not in FAMILIES:
        raise UnknownNameError("task family", name, FAMILIES)
    module, attribute = FAMILIES[name].split(":")
    family = getattr(importlib.import_module(f".{module}", __package__), attribute)()
    assert isinstance(family, TaskFamily)
    return family


def get_task(name: str) -> InnerTask:
    """The task of this name.

    "digits-mlp" is `default()`, "digits-mlp/17" is `sample(17)`, and
    "digits-cnn:norm=batch,batch_size=64" is the default with these settings changed, by `build`;
    a value is read as JSON, and as text where it is none.

    Raises:
        UnknownNameError: No family has this name.
        ConfigurationError: The name is no text, what follows the slash is no seed, or a setting
            is unknown, given twice or out of range.
        MissingDataError: The family's data are not there.
    """
    part = parse(name)
    family = get_family(part.family)
    if part.settings is not None:
        if not isinstance(family, Configurable):
            raise ConfigurationError(
                f"Inner task {name!r}: {part.family} has no settings to change; ask for "
                f"'{part.family}' or '{part.family}/17'."
            )
        return family.build(part.settings, name)
    return family.default() if part.seed is None else family.sample(part.seed)


def family_of(name: str) -> str:
    """The family in a task's name; "digits-cnn" for "digits-cnn/3" and "digits-cnn:width=4"."""
    return re.split("[/:@]", name, maxsplit=1)[0]


@runtime_checkable
class Configurable(Protocol):
    """A family whose members differ by a flat configuration."""

    def build(self, config: Mapping[str, Any], name: str | None = None) -> InnerTask:
        """The default member with some settings changed."""


@runtime_checkable
class Configured(Protocol):
    """A family that tells its members' configurations without reading their data."""

    dataset: str
    architecture: str

    def draw(self, seed: int) -> dict[str, Any]:
        """The configuration of `sample(seed)`."""

    def plain_config(self) -> dict[str, Any]:
        """The configuration of `default()`."""

    def complete(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration of `build(config)`, checked."""


@dataclass(frozen=True)
class TaskName:
    """The parts of a task's name.

    Attributes:
        family: The family's name; it need not exist.
        seed: What follows a slash, for a drawn member.
        settings: What follows a colon, for the default member with settings changed.
    """

    family: str
    seed: int | None = None
    settings: Mapping[str, Any] | None = None


def parse(name: str) -> TaskName:
    """Take a task's name apart; see `get_task`.

    Raises:
        ConfigurationError: The name is no text, what follows the slash is no seed, or what follows
            the colon is no list of settings.
    """
    if not isinstance(name, str):
        raise ConfigurationError(
            f"An inner task is asked for by its name, and {name!r} is none; a family's task with "
            "seed 3 is 'digits-mlp/3'."
        )
    head, colon, changes = name.partition(":")
    family, slash, seed = head.partition("/")
    if slash and not (seed.isascii() and seed.isdigit()):
        raise ConfigurationError(
            f"Inner task {name!r}: the seed is {seed!r}; it must be a whole number of at least 0, "
            f"as in '{family}/17'. Leave it out for the family's default task."
        )
    if not colon:
        return TaskName(family, int(seed) if slash else None)
    if slash:
        raise ConfigurationError(
            f"Inner task {name!r} has a seed and settings; settings change the family's default "
            f"task, so leave the seed out: '{family}:{changes}'."
        )
    settings: dict[str, Any] = {}
    for change in changes.split(","):
        key, equals, value = (part.strip() for part in change.partition("="))
        if not (key and equals and value):
            raise ConfigurationError(
                f"Inner task {name!r}: {change!r} is no setting; write KEY=VALUE with commas "
                f"between, as in 'digits-cnn:norm=batch,batch_size=64'."
            )
        if key in settings:
            raise ConfigurationError(f"Inner task {name!r} sets {key} twice; leave one out.")
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = value
    return TaskName(family, settings=settings)


def families(*, available_only: bool = False) -> Iterator[TaskFamily]:
    """Every family in the order of registration; on request only those whose data are there."""
    for name in FAMILIES:
        family = get_family(name)
        if not available_only or available(family.data_files):
            yield family
