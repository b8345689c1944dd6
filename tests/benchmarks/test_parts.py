from __future__ import annotations

import numpy as np
import pytest

from lhopt.benchmarks import parts
from lhopt.benchmarks.parts import FACTORS, READ_ON, measure, text, variants
from lhopt.benchmarks.search import STEERABLE_NAME, Setting, default, speeds
from lhopt.core.schedules import Schedule
from lhopt.env.frontier import Frontier
from lhopt.env.pool import Entry, TaskSpec
from lhopt.inner_tasks.registry import get_task
from lhopt.optimizers.update import ADAMW, StepRule

WHOLE = Setting(
    StepRule(orthogonal=True, trust_power=0.5, average=0.1, clip=True, relative_eps=True),
    {
        "learning_rate": 0.05,
        "one_minus_beta1": 0.15,
        "one_minus_beta2": 0.01,
        "eps": 0.01,
        "weight_decay": 0.05,
        "clip_ratio": 0.8,
    },
    Schedule(),
)


def entry(name: str, steps: int) -> Entry:
    frontier = Frontier(
        name, steps, (0.25, 0.5, 1.0, 2.0), (4.0, 2.0, 1.0, 0.5), (0.01,) * 4, 0.0, 10.0,
        (0.001, 0.01, 0.1),
    )  # fmt: skip
    return Entry(TaskSpec(name, steps), get_task(name), frontier)


def test_each_variant_lacks_one_part_and_nothing_else() -> None:
    found = variants(WHOLE)
    assert found["nothing"] == WHOLE
    for name, setting in found.items():
        if name.startswith(("nothing", "everything")):
            continue
        rule = [k for k, v in vars(WHOLE.rule).items() if getattr(setting.rule, k) != v]
        moved = [k for k, v in WHOLE.values.items() if setting.values[k] != v]
        shape = setting.schedule != WHOLE.schedule
        if name == "relative eps":  # an eps of 0.01 means another thing where it is absolute
            assert (rule, moved, shape) == (["relative_eps"], ["eps"], False)
        elif name.startswith("betas"):
            assert (rule, moved) == ([], ["one_minus_beta1", "one_minus_beta2"])
        else:
            assert len(rule) + len(moved) + shape == 1, name
    assert found["everything (AdamW, warm-up + cosine)"].rule == ADAMW
    assert "cautious updates" not in found  # this one does not have it


def test_the_parts_of_todays_default_are_all_left_out_once() -> None:
    whole = default(STEERABLE_NAME)
    found = variants(whole)
    wanted = {
        "preconditioning (by the second moment)", "larger steps of vectors", "cautious updates",
        "orthogonal momentum", "trust ratio", "weight average", "clip",
    }  # fmt: skip
    assert wanted <= set(found)
    assert found["larger steps of vectors"].rule.vector_scale == 1.0
    assert not found["preconditioning (by the second moment)"].rule.precondition
    assert len({str(setting) for setting in found.values()}) == len(found)


def test_the_default_is_what_its_owner_gets() -> None:
    found = default(STEERABLE_NAME)
    assert found.values["learning_rate"] > 0.0
    assert found.schedule is not None


def test_a_rate_is_chosen_on_other_seeds_than_it_is_read_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # on the seeds of the choice the third rate is best, on the others the fifth
    table = np.zeros((len(FACTORS), 3))
    table[2, :1], table[4, 1:], table[2, 1:] = 1.0, 5.0, 0.25
    monkeypatch.setattr(parts, "_speeds", lambda setting, entry: table.tolist())
    found = measure([entry("friedman-mlp", 40)], {"nothing": WHOLE})
    assert found[0].factor == 1.0
    assert found[0].log2_speed == pytest.approx([0.25])


def test_parts_are_read_where_the_search_reads_them() -> None:
    task = entry("friedman-mlp", 60)
    found = variants(WHOLE)
    names = ("nothing", "orthogonal momentum", "schedule (warm-up + cosine instead)")
    measured = measure([task], {name: found[name] for name in names})
    assert [part.name for part in measured] == list(names)
    own = speeds(task, [WHOLE], READ_ON)
    assert measured[0].at_one == pytest.approx([own.mean()], abs=1e-4)
    assert all(part.milliseconds > 0.0 for part in measured)
    lines = text(measured, ["friedman-mlp"])
    assert "left out" in lines
    assert "in time" in lines
