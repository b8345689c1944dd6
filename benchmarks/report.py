"""From raw rows to what is published: tables, verdicts, a summary as JSON, three pictures.

`build` groups the rows by tier and reads them against their tasks' frontiers (`summary.py`);
`verdicts.py` holds them against the project's bars; `report_text.py` and `report_pictures.py` say
and draw what came out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ConfigurationError
from ..policy.artifact import Policy
from . import disclosure, report_text
from .bootstrap import RESAMPLES
from .frontier import BenchTask
from .profile import Profile
from .records import Row
from .summary import Section
from .summary import summarise as summarise_tier
from .verdicts import judge, permitted


@dataclass(frozen=True)
class Report:
    """What the rows say.

    Attributes:
        sections: One per tier, in the order of the rows.
        disclosed: What the figures depend on, a JSON object.
        paths: Paths of the hyperparameters, as the raw results name and hold them.
    """

    sections: tuple[Section, ...]
    disclosed: Mapping[str, Any]
    paths: Mapping[str, Mapping[str, Any]]

    def text(self) -> str:
        """Tables, verdicts and disclosure."""
        parts = [report_text.render(section) for section in self.sections]
        return "\n\n\n".join([*parts, disclosure.text(self.disclosed)]) + "\n"

    def json(self) -> str:
        """The same as JSON; what is not finite (a time never reached) is null."""
        tiers = {section.tier: _section(section) for section in self.sections}
        whole = {"tiers": tiers, "disclosure": self.disclosed}
        return json.dumps(_finite(whole), indent=1, allow_nan=False) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """Write `summary.json`, `table.txt` and, for the first tier, the three pictures.

        A tier after the first has its name in its pictures' names. The picture of paths is written
        where there are paths.

        Returns:
            The files.
        """
        from .report_pictures import draw_paths, draw_profile, draw_speeds

        folder.mkdir(parents=True, exist_ok=True)
        summary, text = folder / "summary.json", folder / "table.txt"
        summary.write_text(self.json())
        text.write_text(self.text())
        written = [summary, text]
        for i, section in enumerate(self.sections):
            mark = f"-{section.tier}" if i else ""
            speeds, profile = folder / f"speeds{mark}.png", folder / f"profile{mark}.png"
            paths = folder / f"paths{mark}.png"
            draw_speeds(section, speeds)
            written.append(speeds)
            if section.profile.times:
                draw_profile(section, profile)
                written.append(profile)
            if draw_paths(section, self.paths, paths):
                written.append(paths)
        return written


def build(
    rows: Sequence[Row],
    tasks: Sequence[BenchTask],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    paths: Mapping[str, Mapping[str, Any]] | None = None,
    policies: Mapping[str, Policy] | None = None,
) -> Report:
    """Read rows against the frontiers of their tasks.

    Args:
        rows: Of one tier or several; a tier's arms need not have the same tasks and seeds.
        tasks: At least those of the rows, by name and length.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
        paths: Records "path <arm> <task> <seed> <offset>" of the raw results.
        policies: By the optimizer that they steer, for the disclosure.

    Raises:
        ConfigurationError: There is no row, a row's task is not among the tasks, or two rows are
            of the same run.
    """
    if not rows:
        raise ConfigurationError("No rows to report: run `lhopt bench` first.")
    by_run = {(task.spec.task, task.spec.steps): task for task in tasks}
    sections = []
    for tier in dict.fromkeys(row.tier for row in rows):
        own = [row for row in rows if row.tier == tier]
        wanted = list(dict.fromkeys((row.task, row.steps) for row in own))
        unknown = [
            f"{name} ({steps} steps)" for name, steps in wanted if (name, steps) not in by_run
        ]
        if unknown:
            raise ConfigurationError(
                f"Rows of tier {tier!r} are of {', '.join(unknown)}, whose frontiers were not "
                "given; give the tasks that the rows were made with, or delete the file of rows."
            )
        if len({name for name, _ in wanted}) < len(wanted):
            raise ConfigurationError(
                f"Tier {tier!r} has rows of one task with several lengths; a tier has each task "
                "once. Delete the rows of the other length."
            )
        chosen = [by_run[run] for run in wanted]
        sections.append(summarise_tier(tier, own, chosen, resamples=resamples, seed=seed))
    return Report(tuple(sections), disclosure.disclose(sections, policies or {}), dict(paths or {}))


def _section(section: Section) -> dict[str, Any]:
    return {
        "arms": {
            line.arm: {**asdict(line), "words": permitted(line)} for line in section.lines
        },
        "pairs": [asdict(pair) for pair in section.pairs.values()],
        "profile": _profile(section.profile),
        "cpu_profile": _profile(section.cpu_profile),
        "trials": {str(k): worth for k, worth in section.tuning.items()},
        "read_up_to": section.horizon,
        "verdicts": [
            {
                "text": verdict.text,
                "found": verdict.found if isinstance(verdict.found, float | None)
                else asdict(verdict.found),
                "reached": None if verdict.found is None else verdict.reached,
                "stretch": None if verdict.found is None else verdict.stretched,
            }
            for verdict in judge(section)
        ],
    }  # fmt: skip


def _profile(profile: Profile) -> dict[str, Any]:
    return {
        arm: {
            "times": dict(times),
            "score": profile.score(arm),
            "missed": list(profile.misses(arm)),
        }
        for arm, times in profile.times.items()
    }


def _finite(value: Any) -> Any:
    """The same without nan and infinities, which JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
