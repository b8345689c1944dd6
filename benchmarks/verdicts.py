"""The bars that the project set itself, and the words that its figures permit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .bootstrap import Estimate
from .summary import AVERAGED, POLICY, VALIDATED, Line, Section

#: The optimizer alone, at its one fixed default.
DEFAULT = "steerable-default"
#: The policy from where its owner gets it: the optimizer's default rate.
AS_SHIPPED = "steerable-policy-default-rate"
#: The baseline's setting on the arms' seeds: what nothing gained reads as.
BASELINE = "adamw-tuned"
#: "Faster" needs fewer harmed runs than this.
HARM_FOR_FASTER = 0.1
#: Words need so many tasks: an interval over fewer says little about others.
TASKS_FOR_WORDS = 8

Figure = Literal["steps", "wide", "5x7", "5x7 wide", "cpu", "test", "harm", "ratio"]


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        text: What is asked, for people.
        figure: Which figure is held against it: a reading's name, the harm rate (which must lie
            below the bar), or the paired ratio to `against`.
        arm: Whose.
        tiers: Where it holds.
        least: What the figure must reach; None where only the interval counts.
        low: What the interval's lower end must exceed; None where it does not count.
        against: The other arm of a ratio.
        stretch: What would be better still; None where nothing is set.
    """

    text: str
    figure: Figure
    arm: str = POLICY
    tiers: tuple[str, ...] = ("small", "real")
    least: float | None = None
    low: float | None = None
    against: str = ""
    stretch: float | None = None


def _ahead(rival: str) -> Bar:
    return Bar(f"ahead of {rival}, paired", "ratio", least=1.0, against=rival, stretch=2.0)


def _given(what: str, arm: str) -> tuple[Bar, ...]:
    """The bars that a policy is held to by its speed and harm, for one that is given more."""
    return (
        Bar(f"given {what}, h* against tuned AdamW", "steps", arm=arm, least=1.5, low=1.2,
            stretch=2.0),
        Bar(f"given {what}, h* against 5 rates x 7 schedules", "5x7", arm=arm, least=1.8,
            stretch=2.5),
        Bar(f"given {what}, h* in CPU time", "cpu", arm=arm, tiers=("real",), least=1.2,
            stretch=1.8),
        Bar(f"given {what}, harm rate", "harm", arm=arm, least=0.05, stretch=0.0),
        Bar(f"given {what}, h* at 4 times the longest training run", "steps", arm=arm,
            tiers=("real-long",), least=1.2, stretch=1.5),
    )  # fmt: skip


def _over(text: str, arm: str, against: str) -> Bar:
    return Bar(text, "ratio", arm=arm, low=1.0, against=against)


BARS: tuple[Bar, ...] = (
    Bar("h* against tuned AdamW", "steps", least=1.5, low=1.2, stretch=2.0),
    Bar("h* against 5 rates x 7 schedules", "5x7", least=1.8, stretch=2.5),
    Bar("h* in CPU time", "cpu", tiers=("real",), least=1.2, stretch=1.8),
    Bar("harm rate", "harm", least=0.05, stretch=0.0),
    Bar("over its own no-op, paired", "ratio", low=1.0, against="steerable-noop", stretch=1.15),
    Bar("over its open-loop replay, paired", "ratio", tiers=("small",), low=1.0,
        against="steerable-replay", stretch=1.15),
    Bar("over the default alone, paired, both at the default rate", "ratio", arm=AS_SHIPPED,
        low=1.0, against=DEFAULT, stretch=1.15),
    Bar("h* at 4 times the longest training run", "steps", tiers=("real-long",), least=1.2,
        stretch=1.5),
    _ahead("schedule-free"),
    _ahead("prodigy"),
    _ahead("momo-adam"),
    _ahead("muon"),
    Bar("default alone: h* against tuned AdamW", "steps", arm=DEFAULT, least=1.4),
    Bar("default alone: h* in CPU time", "cpu", arm=DEFAULT, tiers=("real",), least=1.2),
    # the policy's own bars once more, for jobs that have held-out data to show
    *_given("validate=", VALIDATED),
    _over("given validate=, over the policy without, paired", VALIDATED, POLICY),
    # and once more for those that spend a copy of the weights besides
    *_given("validate= and averages=", AVERAGED),
    _over("given averages=, over validate= alone, paired", AVERAGED, VALIDATED),
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """A bar and what was found.

    Attributes:
        bar: Which.
        found: The figure, with its interval where it has one; None if it was not measured.
        reached: Whether the bar is.
        stretched: Whether the stretch is, too; by the clipped reading, because beyond 2 the
            baseline's setting, which was tuned at our length, flatters every arm.
        text: The line for people.
    """

    bar: Bar
    found: Estimate | float | None
    reached: bool
    stretched: bool
    text: str


def judge(section: Section) -> list[Verdict]:
    """One verdict per bar that holds in this tier."""
    return [_judge(bar, section) for bar in BARS if section.tier in bar.tiers]


def _judge(bar: Bar, section: Section) -> Verdict:
    name = f"{bar.arm}: {bar.text}"
    line = section.line(bar.arm)
    if bar.figure == "harm":
        if line is None:
            return _missing(bar, name)
        assert bar.least is not None
        reached = line.harm < bar.least
        text = (
            f"{name} {line.harm:.1%} ({round(line.harm * line.runs)} of {line.runs} runs; "
            f"{line.harm_on_test:.1%} by test losses; bar: below {bar.least:.0%}"
            f"{_stretch(bar, '{:.0%}')})"
        )
        if not reached:
            text += f", missed by {100 * (line.harm - bar.least):.1f} points"
        stretched = bar.stretch is not None and line.harm <= bar.stretch
        return _verdict(bar, line.harm, reached, stretched, text)
    found = _figure(bar, section, line)
    if line is None or found is None:
        return _missing(bar, name)
    text = f"{name} {found.value:.2f} (interval {found.low:.2f} - {found.high:.2f}; {_asked(bar)})"
    short = []
    # two arms that both lie on a bound have the ratio 1, and neither is ahead
    behind = bar.least is not None and (
        found.value <= bar.least if bar.figure == "ratio" else found.value < bar.least
    )
    if behind and bar.least is not None:
        short.append(f"missed by {1 - found.value / bar.least:.1%}")
    if bar.low is not None and found.low <= bar.low:
        short.append(f"the interval begins {bar.low - found.low:.2f} too low")
    if not short and bar.low is None and bar.figure == "ratio" and found.low <= 1.0:
        text += ", but the interval includes 1"
    if short:
        text += ", " + ", ".join(short)
    if not short and _void(bar, section):
        baseline = section.line(BASELINE)
        assert baseline is not None
        own = baseline.speeds[bar.figure]
        assert own is not None
        return Verdict(
            bar, found, False, False, f"{'VOID':<8} {text}: the baseline's own runs have "
            f"{own.value:.2f}, too"
        )  # fmt: skip
    stretched = bar.stretch is not None and found.value >= bar.stretch
    return _verdict(bar, found, not short, stretched, text)


def _void(bar: Bar, section: Section) -> bool:
    """Whether the tuned baseline itself, on seeds of its own, reaches a bar on its speed."""
    baseline = section.line(BASELINE)
    if bar.figure == "ratio" or bar.least is None or baseline is None:
        return False
    own = baseline.speeds[bar.figure]
    return own is not None and own.value >= bar.least


def _figure(bar: Bar, section: Section, line: Line | None) -> Estimate | None:
    if bar.figure == "ratio":
        pair = section.pairs.get((bar.arm, bar.against))
        return pair.ratio if pair else None
    return line.speeds[bar.figure] if line else None


def _asked(bar: Bar) -> str:
    asked = []
    if bar.least is not None:
        asked.append(f"{bar.least:.2f}")
    if bar.low is not None:
        asked.append(f"interval above {bar.low:.2f}")
    return "bar: " + ", ".join(asked) + _stretch(bar, "{:.2f}")


def _stretch(bar: Bar, form: str) -> str:
    return "" if bar.stretch is None else f", stretch {form.format(bar.stretch)}"


def _missing(bar: Bar, name: str) -> Verdict:
    return _verdict(bar, None, False, False, f"{name}: not measured in this run")


def _verdict(
    bar: Bar, found: Estimate | float | None, reached: bool, stretched: bool, text: str
) -> Verdict:
    if found is None:
        word = "open"
    elif stretched and reached:
        word = "STRETCH"
    else:
        word = "reached" if reached else "MISSED"
    return Verdict(bar, found, reached, reached and stretched, f"{word:<8} {text}")


def permitted(line: Line, *, whole: bool = True) -> str:
    """What may be said about an arm against the tuned baseline.

    Args:
        line: The arm.
        whole: Whether it ran on enough tasks, and on all the tier's tasks and seeds.
    """
    found = line.headline
    figures = f"interval {found.low:.2f} - {found.high:.2f}, harm {line.harm:.1%}"
    if not whole:
        return f"no claim from a part of a tier, or a small one; {found.value:.2f} ({figures})"
    if found.low > 1.0 and line.harm < HARM_FOR_FASTER:
        return f"faster than tuned AdamW ({figures})"
    if found.low >= 0.9:
        return f"matches tuned AdamW ({figures})"
    return f"no claim; {found.value:.2f} ({figures})"
