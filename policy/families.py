"""Which task families policies are trained on, evaluated with and compared by."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from ..core.errors import ConfigurationError, UnknownNameError
from ..inner_tasks.registry import FAMILIES
from ..inner_tasks.registry import families as all_families

logger = logging.getLogger("lhopt")

#: Families that policies train on. None shares its data, or an architecture held out, with a task
#: of the benchmarks. The noisy quadratic is none of them: its optimum is 0, where a baseline whose
#: weight decay is tuned is led by the decay alone.
TRAIN_FAMILIES: tuple[str, ...] = (
    "tabular-mlp", "teacher-regression", "parity-rnn", "addition-rnn",
    "friedman-mlp", "coordinate-mlp", "clusters-resmlp", "topics-bag", "glyphs-mlp", "glyphs-cnn",
    "glyphs-mixer", "texture-cnn", "signal-conv", "chaos-mlp", "docs-mlp",
    "entities-mlp", "zipf-bilinear", "forest-mlp", "vocabulary-mlp", "graph-distance",
    "clusters-few", "glyphs-few", "glyphs-inpaint", "signal-denoise",
    "texture-mixer", "glyphs-rnn", "signal-rnn", "chaos-conv", "coordinate-sine", "friedman-rbf",
    "forest-cross", "forest-gated", "topics-linear", "docs-bilinear",
    "forest-few", "signal-few", "texture-few", "docs-few", "coordinate-few", "chaos-few",
)  # fmt: skip
#: Families of the periodic evaluation: they choose among checkpoints and, in entry 16 of
#: docs/training-log.md, among defaults of the optimizer; they are in no benchmark.
VALID_FAMILIES: tuple[str, ...] = (
    "sets-net", "grammar-mlp", "names-conv", "tensor-factors", "shells-mlp",
)  # fmt: skip
#: Families that `lhopt policies compare` adds to those, to choose among policies: on data of their
#: own, no training touches them unless it is told to, and no checkpoint is chosen by them.
COMPARE_FAMILIES: tuple[str, ...] = (
    "formula-resmlp", "automaton-gated", "pendulum-mlp", "prices-mlp", "spectra-few", "spots-cnn",
    "gratings-mixer", "facts-distmult", "meetings-mlp", "recall-linear",
    "ground-cnn", "molecules-graphnet", "hands-mlp", "ballots-mlp", "tides-conv", "rhythms-rnn",
)  # fmt: skip
#: Families that a choice made by the others is confirmed with, rarely, and once it is made: nothing
#: is trained on them, no checkpoint and no setting chosen by them. How often they were asked, and
#: for what, says docs/training-log.md, from entry 43 on.
CONFIRM_FAMILIES: tuple[str, ...] = (
    "orbits-mlp", "stars-few", "mazes-cnn", "strokes-mixer", "motifs-rnn", "brackets-causal",
    "exams-pairs", "claims-gated", "queues-few", "spins-mlp", "boards-resmlp", "swarms-few",
)  # fmt: skip

#: Other nets on the data of `COMPARE_FAMILIES`, for trainings that go on with those as well
#: (docs/training-log.md, entries 45 and 46). The package ships no experts of either for a warm
#: start. A policy that was trained on them is to be judged by `CONFIRM_FAMILIES`.
FURTHER_FAMILIES: tuple[str, ...] = (
    "automaton-conv", "pendulum-sine", "pendulum-few", "prices-cross", "spectra-conv",
    "spots-mixer", "gratings-cnn", "ground-mixer", "tides-rnn", "rhythms-linear", "facts-mlp",
    "formula-maxout", "prices-experts", "hands-experts", "ballots-tied", "tides-polynomials",
)  # fmt: skip
#: More nets on the data of `TRAIN_FAMILIES` and `COMPARE_FAMILIES`, most tasks with few rows
#: (docs/training-log.md, entry 52). What was said of `FURTHER_FAMILIES` holds for them, too.
CROSSED_FAMILIES: tuple[str, ...] = (
    "tabular-resmlp", "tabular-gated", "teacher-maxout", "teacher-resmlp",
    "friedman-gated", "friedman-polynomials", "coordinate-radial", "coordinate-resmlp",
    "clusters-maxout", "clusters-gated", "chaos-gated", "chaos-sine",
    "forest-experts", "forest-tied", "glyphs-tied", "glyphs-maxout",
    "signal-dense", "signal-gated", "texture-resmlp", "inpaint-gated",
    "denoise-tied", "formula-gated", "formula-dense", "automaton-tied",
    "pendulum-gated", "prices-resmlp", "spectra-gated", "hands-resmlp",
    "ballots-experts", "chaos-pieces", "spots-dense", "gratings-tied",
)  # fmt: skip
#: Families whose data seed draws another program, not other rows of one, so that the eight tasks of
#: a family are nearly always eight worlds; five of them have few rows. What was said of
#: `FURTHER_FAMILIES` holds.
DRAWN_FAMILIES: tuple[str, ...] = (
    "causes-mlp", "causes-resmlp", "causes-gated", "causes-few", "causes-experts",
    "causes-values", "causes-values-few", "chains-rnn", "chains-mlp", "chains-conv", "chains-few",
    "dreams-cnn", "dreams-mixer", "dreams-few",
)  # fmt: skip
#: What no training by default touches: what policies are compared by, and what a broader training
#: takes. Its frontiers ship as well.
BEYOND_FAMILIES: tuple[str, ...] = (
    *COMPARE_FAMILIES, *CONFIRM_FAMILIES, *FURTHER_FAMILIES, *CROSSED_FAMILIES, *DRAWN_FAMILIES,
)  # fmt: skip
#: Of a family, relative to the others.
MAX_WEIGHT = 1000
#: What stands for all families of a group, where families are named.
GROUPS: dict[str, tuple[str, ...]] = {
    "training": TRAIN_FAMILIES,
    "evaluation": VALID_FAMILIES,
    "comparison": COMPARE_FAMILIES,
    "confirmation": CONFIRM_FAMILIES,
    "further": FURTHER_FAMILIES,
    "crossed": CROSSED_FAMILIES,
    "drawn": DRAWN_FAMILIES,
}


def named(families: Sequence[str], what: str = "families") -> tuple[str, ...]:
    """Families by name, each once and in order; a group's name stands for its families.

    Args:
        families: Their names, or groups'.
        what: What they are, for the error.

    Raises:
        ConfigurationError: One text in place of several, or something that is no text.
    """
    if isinstance(families, str) or not all(isinstance(name, str) for name in families):
        raise ConfigurationError(
            f"{what} is {families!r}; several names are wanted, of families or of the groups "
            f"{', '.join(GROUPS)}."
        )
    parts = (GROUPS.get(name, (name,)) for name in families)
    return tuple(dict.fromkeys(name for part in parts for name in part))


def weights_by_family(
    weights: Mapping[str, float], families: Sequence[str], what: str
) -> dict[str, float]:
    """A weight by family; a group's is each of its families', and a family's own comes before it.

    Args:
        weights: By the names of families or groups.
        families: What may be weighted; of a group, those that are among them are.
        what: What the weights are, for the error.

    Raises:
        ConfigurationError: Not a mapping to numbers above 0 and up to `MAX_WEIGHT`, or of families
            that are not there.
        UnknownNameError: Nothing has this name.
    """
    if not isinstance(weights, Mapping) or not all(
        isinstance(name, str)
        and isinstance(weight, int | float)
        and not isinstance(weight, bool)
        and 0.0 < weight <= MAX_WEIGHT
        for name, weight in weights.items()
    ):
        raise ConfigurationError(
            f"{what} is {weights!r}; numbers above 0 and up to {MAX_WEIGHT} are wanted by names "
            f'of families or of the groups {", ".join(GROUPS)}, e.g. {{"training": 0.25}}. A '
            "family that is not to be drawn at all is left out of the families, or in leave_out."
        )
    of_groups: dict[str, float] = {}
    own: dict[str, float] = {}
    for name, weight in weights.items():
        if name not in GROUPS and name not in FAMILIES:
            raise UnknownNameError("task family", name, (*FAMILIES, *GROUPS))
        found = {f: float(weight) for f in GROUPS.get(name, (name,)) if f in families}
        if not found:
            raise ConfigurationError(
                f"{what} names {name}, which is none of the families that are drawn. Name some of "
                f"{', '.join(families)}, or a group that they belong to."
            )
        (of_groups if name in GROUPS else own).update(found)
    return of_groups | own


def available(families: Sequence[str]) -> list[str]:
    """Those families whose data is there; the others are named in the log.

    Which tasks a policy trained on stands in its artifact.

    Raises:
        UnknownNameError: No family has this name.
    """
    for family in families:
        if family not in FAMILIES:
            raise UnknownNameError("task family", family, (*FAMILIES, *GROUPS))
    there = {family.name for family in all_families(available_only=True)}
    for family in families:
        if family not in there:
            logger.warning("family %s is left out: its data is missing under LHOPT_DATA", family)
    return [family for family in families if family in there]
